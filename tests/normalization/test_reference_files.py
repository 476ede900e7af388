"""References that are given: notations and files of other programs, and configurations of several targets."""

import itertools
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import units
from omegaconf import OmegaConf
from torch_geometric.data import Data

from ofdft_norm import LinearReferences, Normalizer, fit_linear_references
from ofdft_norm.errors import BatchError, ConfigError, OFDFTNormError, StatisticsError
from ofdft_norm.normalization.reference_files import (
    create_element_references,
    load_references_from_config,
    references_from_values,
)
from ofdft_norm.normalization.state import dump_normalizer

ENERGIES = {1: -13.6, 8: -2041.5}
BY_NUMBER = [0.0, -13.6, *[0.0] * 6, -2041.5]
NOISE = [-8.107700490621648e-19, *BY_NUMBER[1:]]
VECTOR = torch.tensor(BY_NUMBER, dtype=torch.float64)


def found(references: LinearReferences) -> dict[int, float]:
    seen = references.seen_elements.nonzero().squeeze(1).tolist()
    return {z: float(references.element_references[z]) for z in seen}


# --- values -----


@pytest.mark.parametrize(
    "values",
    [
        {"H": -13.6, "O": -2041.5},
        {"1": -13.6, 8: -2041.5},
        [None, -13.6, *[None] * 6, -2041.5, 0, 0],
        OmegaConf.create({"H": -13.6, 8: -2041.5}),
        NOISE,
        VECTOR[:, None],
        {"H": torch.tensor(-13.6, dtype=torch.float64), 8: np.array([-2041.5])},
        {1: {0: -13.6, 1: 0.0}, 8: {-1: -2043.0, 0: -2041.5}},
    ],
)
def test_notations_of_many_programs_are_read(values):
    references = references_from_values(values)
    assert found(references) == ENERGIES
    assert len(references.element_references) == 119


def test_a_mapping_may_give_zero_and_options_pass_through():
    references = references_from_values({"He": 0, "H": 1}, 5, "zero", "species")
    assert references.seen_elements.tolist() == [False, True, True, False, False, False]
    assert (references.unseen_elements, references.atomic_numbers_field) == ("zero", "species")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"h": -0.5}, "unknown element 'h'.*did you mean 'H'"),
        ({"O": -75.0, 8: -75.1}, r"\[8, 8\]"),
        ({"H": float("nan")}, "element 1 is nan"),
        ({"H": True}, "element 1 is True"),
        ({False: 1.0}, "symbol No as false"),
        ({}, "expected one for each"),
        ("[-0.5", "no mapping or list"),
        (BY_NUMBER[1:], "index 0"),
        (torch.ones(3, 3), r"shape \(3, 3\)"),
        (np.array([0, 1j]), "complex"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises((ConfigError, StatisticsError), match=message):
        references_from_values(values)


# --- files -----


def checkpoint(path: Path) -> None:
    state = dump_normalizer(Normalizer(references_from_values(ENERGIES)))
    torch.save({"state_dict": {"model_normalizer._extra_state": state}}, path)


FILES: dict[str, Any] = {
    "E0s.json": lambda path: path.write_text(json.dumps({str(z): e for z, e in ENERGIES.items()})),
    "statistics.json": lambda path: path.write_text(json.dumps({"atomic_energies": str(ENERGIES), "mean": 0.0})),
    "atomref.npz": lambda path: np.savez(path, atom_ref=np.array(BY_NUMBER)[:, None]),
    "fairchem_1.npz": lambda path: np.savez(path, element_references=np.array(BY_NUMBER)),
    "fairchem_2.npz": lambda path: np.savez(path, coeff=np.array(BY_NUMBER)),
    "uma.yaml": lambda path: path.write_text("oc20_elem_refs:\n" + "".join(f"  - {e}\n" for e in NOISE)),
    "by_symbol.yml": lambda path: path.write_text("H: -13.6\nO: -2041.5\n"),
    "array.npy": lambda path: np.save(path, BY_NUMBER),
    "tensor.pt": lambda path: torch.save(VECTOR, path),
    "scalars.pt": lambda path: torch.save({z: torch.tensor(e).double() for z, e in ENERGIES.items()}, path),
    "state.pt": lambda path: torch.save({"element_references": VECTOR}, path),
    "run.ckpt": checkpoint,
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_many_programs_are_read_in_their_unit(tmp_path, name):
    FILES[name](tmp_path / name)
    assert found(create_element_references(tmp_path / name)) == pytest.approx(ENERGIES, rel=1e-6)
    in_hartree = found(create_element_references(tmp_path / name, unit="eV"))
    assert in_hartree == pytest.approx({z: e / units.Hartree for z, e in ENERGIES.items()}, rel=1e-6)
    of_target = load_references_from_config({"energy": {"file": tmp_path / name, "unit": "kcal/mol"}}, None)["energy"]
    assert found(of_target)[1] == pytest.approx(-13.6 * units.kcal / units.mol / units.Hartree, rel=1e-6)


def test_a_target_is_chosen_by_its_name(tmp_path):
    path = tmp_path / "atomref.npz"
    np.savez(path, atom_ref=np.stack([BY_NUMBER, np.multiply(2, BY_NUMBER)], 1), labels=["zpve", "energy_U0"])
    assert found(create_element_references(path, target="energy_U0"))[1] == -27.2
    references = load_references_from_config({"file": path}, None)
    assert {target: found(r)[1] for target, r in references.items()} == {"zpve": -13.6, "energy_U0": -27.2}
    with pytest.raises(ConfigError, match="either a file or a state_dict"):
        create_element_references()
    for target in (None, "gap"):
        with pytest.raises(ConfigError, match=r"\['energy_U0', 'zpve'\].*data.reference.target"):
            create_element_references(path, target=target)


@pytest.fixture
def fairchem_file(tmp_path, monkeypatch):
    """Writes modules as fairchem does, under the names of its classes, and returns the path."""
    name = "fairchem.core.modules.normalization.element_references"
    fake = types.ModuleType(name)

    def module(class_name: str, factor: float = 1.0) -> torch.nn.Module:
        cls = vars(fake).setdefault(class_name, type(class_name, (torch.nn.Module,), {"__module__": name}))
        made: torch.nn.Module = cls()
        made.register_buffer("element_references", factor * VECTOR)
        return made

    def write(make: Any) -> Path:
        with monkeypatch.context() as patch:
            for part in itertools.accumulate(name.split("."), "{}.{}".format):
                patch.setitem(sys.modules, part, fake)
            torch.save(make(module), tmp_path / "element_references.pt")
        return tmp_path / "element_references.pt"

    return write


def test_fairchem_s_pickled_modules_open_without_fairchem_and_no_others(fairchem_file):
    path = fairchem_file(lambda module: {"energy": module("LinearReferences")})
    assert found(create_element_references(path)) == ENERGIES
    fairchem_file(lambda module: module("ElementReferences"))
    assert found(create_element_references(path)) == ENERGIES
    fairchem_file(lambda module: {str(n): module("LinearReferences", n) for n in (1, 2)})
    assert found(create_element_references(path, target="2"))[1] == -27.2
    for make in (
        lambda module: {"e": module("LinearReferences"), "f": module("Other")},
        lambda module: module("Other"),
    ):
        with pytest.raises(StatisticsError, match=r"element_references.pt: has pickled objects"):
            create_element_references(fairchem_file(make))


BAD_FILES: dict[str, Any] = {
    "broken.json": lambda path: path.write_text("{"),
    "references.csv": lambda path: path.write_text("1,2"),
    "broken.npz": lambda path: path.write_bytes(b"PK nothing"),
    "broken.pt": lambda path: path.write_bytes(b""),
    "pickled.npz": lambda path: np.savez(path, element_references=np.array([None, {}], dtype=object)),
    "other.pt": lambda path: torch.save({"other": torch.zeros(2)}, path),
    "empty.ckpt": lambda path: torch.save({"state_dict": {}}, path),
    "missing.pt": lambda path: None,
    "complex.npz": lambda path: np.savez(path, element_references=VECTOR.numpy() + 1j),
    "words.npz": lambda path: np.savez(path, element_references=np.array(["a", "b"])),
    "matrix.npz": lambda path: np.savez(path, element_references=np.ones((2, 119))),
    "meta.pt": lambda path: torch.save({"element_references": torch.zeros(119, device="meta")}, path),
    "seen.pt": lambda path: torch.save({"element_references": VECTOR, "seen_elements": "xx"}, path),
    "nan.npz": lambda path: np.savez(path, element_references=np.array([0, np.nan])),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_without_references_are_refused(tmp_path, name):
    BAD_FILES[name](tmp_path / name)
    with pytest.raises(OFDFTNormError, match=rf"{name}.*data\.reference|{name}.*finite"):
        create_element_references(tmp_path / name)


# --- configurations of several targets -----


def molecules() -> list[Data]:
    rng = np.random.default_rng(0)
    data = []
    for _ in range(20):
        z = torch.tensor(rng.choice([1, 6, 8], rng.integers(2, 8)))
        data.append(Data(z=z, **{name: float(rng.normal()) for name in ("energy", "gap", "dipole")}))
    return data


class NeverRead:
    """A data set that must not be read."""

    def __len__(self) -> int:
        raise AssertionError("the data set was read")


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_what_is_fitted_equals_the_fit_and_is_a_file_for_later_runs(tmp_path, wrap):
    data, run = molecules(), tmp_path / "run"
    config = wrap({"fit": {"targets": ["energy", "gap"], "batch_size": 4, "num_batches": 3, "shuffle": True}})
    references = load_references_from_config(config, data, seed=5, checkpoint_dir=run)
    expected = fit_linear_references(["energy", "gap"], data, 4, num_batches=3, seed=5)
    assert os.listdir(run) == ["element_references.pt"]
    again = load_references_from_config({"file": run / "element_references.pt"}, NeverRead())
    for target in ("energy", "gap"):
        for found in (references, again):
            assert torch.equal(found[target].element_references, expected[target].element_references)
            assert found[target].fit_report == expected[target].fit_report
    before = (run / "element_references.pt").read_bytes()
    with pytest.raises(BatchError, match="'nothing'"):
        load_references_from_config(wrap({"fit": {"targets": ["nothing"], "batch_size": 4}}), data, checkpoint_dir=run)
    assert (run / "element_references.pt").read_bytes() == before


def test_entries_of_targets_may_be_files_values_or_state_dicts(tmp_path):
    np.savez(tmp_path / "gap.npz", coeff=np.array(BY_NUMBER))
    config = {
        "gap": {"file": str(tmp_path / "gap.npz")},
        "energy": {"H": -0.5, 8: -75.1},
        "forces": OmegaConf.create({"values": [0, 1.5]}),
        "state": {"state_dict": {"element_references": VECTOR}, "unseen_elements": "zero"},
        "text": "{1: -13.6}",
        "in_ev": {"values": {"H": -13.6}, "unit": "eV"},
    }
    references = load_references_from_config(config, NeverRead(), checkpoint_dir=tmp_path)
    expected = {"gap": ENERGIES, "energy": {1: -0.5, 8: -75.1}, "forces": {1: 1.5}, "state": ENERGIES}
    expected |= {"text": {1: -13.6}, "in_ev": {1: pytest.approx(-13.6 / units.Hartree, rel=1e-15)}}
    assert {target: found(r) for target, r in references.items()} == expected
    assert references["state"].unseen_elements == "zero"
    assert set(torch.load(tmp_path / "element_references.pt", weights_only=True)) == set(config)


def test_a_file_a_fit_and_own_entries_together(tmp_path):
    data = molecules()
    torch.save({"gap": references_from_values({"H": 1.0}).state_dict()}, tmp_path / "all.pt")
    fit = {"targets": ["dipole"], "batch_size": 4, "seed": 9, "num_batches": 2}
    config = {"file": str(tmp_path / "all.pt"), "fit": fit, "energy": {"H": 7.0}}
    references = load_references_from_config(config, data, seed=1)
    expected = fit_linear_references(["dipole"], data, 4, num_batches=2, seed=9)["dipole"]
    assert torch.equal(references["dipole"].element_references, expected.element_references)
    assert [found(references[target])[1] for target in ("gap", "energy")] == [1.0, 7.0]
    with pytest.raises(ConfigError, match=r"'dipole'.*for each once"):
        load_references_from_config({**config, "dipole": {"H": 7.0}}, data)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fit": {"targets": ["energy"], "batch_size": 4, "batchsize": 4}}, "fit = .*batchsize"),
        ({"fit": {"batch_size": 4}}, "list of targets, batch_size"),
        ({"fiel": "references.pt"}, "fiel: reference values 'references.pt'"),
        ({"energy": {"file": "references.pt", "values": [0, 1]}}, "expected one of file, values, state_dict"),
        ({"energy": {"file": "references.pt", "Unit": "eV"}}, "energy has the keys .*Unit"),
        ({"energy": {"values": {"H": 1.0}, "unit": "ev"}}, r"unit = 'ev'.*data\.reference\.unit"),
        ({"energy": {"values": {"H": 1.0}, "unseen_elements": "skip"}}, "unseen_elements = 'skip'"),
        ({"file": "single.pt"}, "references of a single target"),
        ({}, "an entry"),
    ],
)
def test_unknown_keys_and_values_are_refused(config, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(references_from_values({"H": 1.0}).state_dict(), "single.pt")
    with pytest.raises((ConfigError, StatisticsError), match=message):
        load_references_from_config(config, NeverRead())
