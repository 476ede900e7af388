"""References that are given: in the files and notations of other programs, and in their units."""

import json

import numpy as np
import pytest
import torch
from ase import units
from omegaconf import OmegaConf
from torch_geometric.data import Data

from ofdft_norm.errors import ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.element_references import LinearReferencesConfig
from ofdft_norm.normalization.given_references import create_element_references, references_from_values
from ofdft_norm.normalization.reference_config import load_references_from_config

ENERGIES = {1: -13.6, 8: -2041.5}
BY_NUMBER = [0.0, -13.6, *[0.0] * 6, -2041.5]
NOISE = [-8.107700490621648e-19, *BY_NUMBER[1:]]


def found(references):
    seen = references.seen_elements.nonzero().squeeze(1).tolist()
    return {z: float(references.element_references[z]) for z in seen}


@pytest.mark.parametrize(
    "values",
    [
        "{1: -13.6, 8: -2041.5}",
        str(BY_NUMBER),
        NOISE,
        OmegaConf.create(NOISE),
        np.array(BY_NUMBER),
        torch.tensor(BY_NUMBER, dtype=torch.float64)[:, None],
        {"H": torch.tensor(-13.6, dtype=torch.float64), 8: np.array([-2041.5])},
        {1: {0: -13.6, 1: 0.0}, 8: {-1: -2043.0, 0: -2041.5}},
    ],
)
def test_notations_of_other_programs_are_read(values):
    assert found(references_from_values(values)) == ENERGIES


def test_a_value_at_index_0_is_refused_with_what_others_do_with_it():
    with pytest.raises(StatisticsError, match=r"value -13.6 at index 0, .*other programs ignore: put 0 there, or,"):
        references_from_values(BY_NUMBER[1:])


def mace(path):
    path.write_text(json.dumps({str(z): e for z, e in ENERGIES.items()}))


def mace_statistics(path):
    path.write_text(json.dumps({"atomic_energies": str(ENERGIES), "mean": 0.0, "std": 1.0}))


def schnetpack(path):
    np.savez(path, atom_ref=np.array(BY_NUMBER)[:, None])


def uma(path):
    path.write_text("oc20_elem_refs:\n" + "".join(f"  - {e}\n" for e in NOISE))


def by_symbol(path):
    path.write_text("H: -13.6\nO: -2041.5\n")


def array(path):
    np.save(path, BY_NUMBER)


def tensor(path):
    torch.save(torch.tensor(BY_NUMBER, dtype=torch.float64), path)


def scalars(path):
    torch.save({z: torch.tensor(e, dtype=torch.float64) for z, e in ENERGIES.items()}, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (mace, "E0s.json"),
        (mace_statistics, "statistics.json"),
        (schnetpack, "atomref.npz"),
        (uma, "uma_v1_hof_lin_refs.yaml"),
        (by_symbol, "references.yml"),
        (array, "references.npy"),
        (tensor, "references.pt"),
        (scalars, "references.pt"),
    ],
)
def test_files_of_other_programs_are_read_in_their_unit(tmp_path, write, name):
    write(tmp_path / name)
    assert found(create_element_references(tmp_path / name)) == ENERGIES
    in_hartree = found(create_element_references(tmp_path / name, unit="eV"))
    assert in_hartree == pytest.approx({z: e / units.Hartree for z, e in ENERGIES.items()}, rel=1e-15)
    of_target = load_references_from_config({"energy": {"file": tmp_path / name, "unit": "kcal/mol"}}, None)["energy"]
    assert found(of_target)[1] == pytest.approx(-13.6 * units.kcal / units.mol / units.Hartree, rel=1e-15)


def test_a_column_is_chosen_by_its_label(tmp_path):
    path = tmp_path / "atomref.npz"
    np.savez(path, atom_ref=np.stack([BY_NUMBER, np.multiply(2, BY_NUMBER)], 1), labels=["zpve", "energy_U0"])
    assert found(create_element_references(path, target="energy_U0"))[1] == -27.2
    references = load_references_from_config({"file": path}, None)
    assert {target: found(r)[1] for target, r in references.items()} == {"zpve": -13.6, "energy_U0": -27.2}
    with pytest.raises(ConfigError, match=r"references of \['zpve', 'energy_U0'\]: name one.*data.reference.target"):
        create_element_references(path)
    np.savez(path, atom_ref=np.zeros((9, 2)), labels=["one"])
    with pytest.raises(StatisticsError, match="2 columns, but 'labels' are"):
        create_element_references(path)


def test_entries_of_targets_take_what_fairchem_s_do(tmp_path):
    mace(tmp_path / "E0s.json")
    config = {
        "energy": {"state_dict": {"element_references": torch.tensor(BY_NUMBER)}, "unseen_elements": "zero"},
        "gap": {"file": str(tmp_path / "E0s.json")},
        "text": "{1: -13.6}",
        "tensor": torch.tensor(BY_NUMBER, dtype=torch.float64),
        "in_ev": {"values": {"H": -13.6}, "unit": "eV"},
    }
    references = load_references_from_config(config, None)
    assert found(references["gap"]) == found(references["tensor"]) == ENERGIES
    assert found(references["text"]) == {1: -13.6}
    assert found(references["in_ev"])[1] == pytest.approx(-13.6 / units.Hartree, rel=1e-15)
    carbon = Data(z=torch.tensor([6]))
    assert references["energy"].energy(carbon).tolist() == [0.0]
    with pytest.raises(NormalizationError, match="beside the target's file, values or state_dict"):
        references["gap"].energy(carbon)
    with pytest.raises(ConfigError, match=r"unit = .ev.: expected one of .*data.reference.unit"):
        load_references_from_config({"energy": {"values": {"H": 1.0}, "unit": "ev"}}, None)
    with pytest.raises(ConfigError, match="unseen_elements = 'skip'"):
        load_references_from_config({"energy": {"values": {"H": 1.0}, "unseen_elements": "skip"}}, None)


def test_files_that_are_something_else_are_refused(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "twice.json").write_text('{"1": 0.5, "1": 0.6}')
    (tmp_path / "text.json").write_text('"H"')
    (tmp_path / "references.csv").write_text("1,2")
    for name, message in (
        ("broken.json", "cannot be read"),
        ("twice.json", "the key '1' twice"),
        ("text.json", "cannot be read"),
        ("references.csv", r"kinds \['.ckpt', '.json', '.npy', '.npz'.*not '.csv'"),
    ):
        with pytest.raises(StatisticsError, match=message):
            create_element_references(tmp_path / name)


def test_the_setting_takes_what_the_functions_take():
    assert LinearReferencesConfig(values="{1: -13.6}", unit="eV").values == "{1: -13.6}"
    assert LinearReferencesConfig(values=BY_NUMBER).values == BY_NUMBER
    with pytest.raises(ConfigError, match=r"data\.reference\.unit = .ev."):
        LinearReferencesConfig(values={"H": 1.0}, unit="ev")
