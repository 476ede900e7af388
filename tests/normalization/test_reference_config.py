"""References from configurations: values, files, fits, and their order."""

import os
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch_geometric.data import Data

from ofdft_norm.errors import BatchError, ConfigError, OFDFTNormError, StatisticsError
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.given_references import references_from_values
from ofdft_norm.normalization.reference_config import load_references_from_config


def molecules(n=20, seed=0):
    rng = np.random.default_rng(seed)
    data = []
    for _ in range(n):
        z = torch.tensor(rng.choice([1, 6, 8], rng.integers(2, 8)))
        data.append(Data(z=z, energy=float(-3.0 * z.sum() + rng.normal()), gap=float(rng.normal())))
    return data


class NeverRead:
    """A data set that must not be read."""

    def __len__(self):
        raise AssertionError("the data set was read")

    def __getitem__(self, index):
        raise AssertionError("the data set was read")


def values_of(references, *numbers):
    return references.element_references[list(numbers)].tolist()


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"H": -0.5, "O": -75.1},
        {1: -0.5, 8: -75.1},
        {"1": -0.5, "O": -75.1},
        [0.0, -0.5, *[0.0] * 6, -75.1],
        [None, -0.5, *[None] * 6, -75.1, 0, 0],
        OmegaConf.create({"H": -0.5, 8: -75.1}),
        OmegaConf.create([0, -0.5, *[0] * 6, -75.1]),
        np.array([0, -0.5, *[0] * 6, -75.1]).tolist(),
    ],
)
def test_values_by_symbol_number_or_list(values):
    references = references_from_values(values)
    assert values_of(references, 0, 1, 8) == [0, -0.5, -75.1]
    assert references.seen_elements.nonzero().squeeze(1).tolist() == [1, 8]
    assert len(references.element_references) == 119


def test_a_mapping_may_give_zero_and_options_pass_through():
    references = references_from_values({"He": 0, "H": 1}, 5, "zero", "species")
    assert references.seen_elements.tolist() == [False, True, True, False, False, False]
    assert (references.unseen_elements, references.atomic_numbers_field) == ("zero", "species")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"h": -0.5}, "unknown element 'h'.*did you mean 'H'"),
        ({"Ox": -0.5}, "did you mean 'O' or 'Os'|did you mean"),
        ({"O": -75.0, 8: -75.1}, "two reference values for the element 8"),
        ({119: 1.0}, "atomic number 119: expected 1 ... 118"),
        ({0: 1.0}, "atomic number 0: expected 1 ... 118"),
        ({"H": float("nan")}, "element 1 is nan, expected a finite number"),
        ({"H": "-0.5"}, "element 1 is '-0.5', expected a finite number"),
        ({"H": True}, "element 1 is True, expected a finite number"),
        ({False: 1.0}, "YAML reads the symbol No as false; write it in quotes"),
        ([0.0] * 119 + [1.0], "atomic number 119"),
        ({}, "no reference value is given"),
        ([0, 0, None], "no reference value is given"),
        ("H", "'H' are no mapping or list"),
        ("[-0.5", "are no mapping or list"),
        (3.0, "are a float; expected a mapping"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        references_from_values(values)


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_a_fit_marks_the_config_writes_the_checkpoint_and_is_not_repeated(tmp_path, wrap):
    data = molecules()
    config = wrap({"fit": {"targets": ["energy", "gap"], "batch_size": 4, "num_batches": 3, "shuffle": True}})
    if not isinstance(config, dict):
        OmegaConf.set_struct(config, True)
    references = load_references_from_config(config, data, seed=5, checkpoint_dir=tmp_path / "run")
    expected = fit_linear_references(["energy", "gap"], data, 4, num_batches=3, seed=5)
    for target in ("energy", "gap"):
        assert torch.equal(references[target].element_references, expected[target].element_references)
    assert config["fit"]["fitted"] is True

    stored = torch.load(tmp_path / "run" / "element_references.pt", weights_only=True)
    assert set(stored) == {"energy", "gap"}
    assert os.listdir(tmp_path / "run") == ["element_references.pt"]
    resumed = load_references_from_config(config, NeverRead(), seed=6, checkpoint_dir=tmp_path / "run")
    for target in ("energy", "gap"):
        assert torch.equal(resumed[target].element_references, references[target].element_references)
        assert resumed[target].fit_report == references[target].fit_report
    loaded = LinearReferences()
    loaded.load_state_dict(stored["energy"])


def test_a_seed_of_the_fit_wins_and_fits_without_checkpoint_are_not_written(tmp_path):
    data = molecules()
    config = {"fit": {"targets": ["energy"], "batch_size": 4, "num_batches": 2, "seed": 9}}
    fitted = load_references_from_config(config, data, seed=5)["energy"]
    expected = fit_linear_references(["energy"], data, 4, num_batches=2, seed=9)["energy"]
    assert torch.equal(fitted.element_references, expected.element_references)


def test_resuming_without_the_fitted_references_is_an_error(tmp_path):
    config = {"fit": {"targets": ["energy"], "batch_size": 4, "fitted": True}}
    with pytest.raises(ConfigError, match=r"fit\.fitted is true, but checkpoint_dir is not given"):
        load_references_from_config(config, NeverRead())
    with pytest.raises(ConfigError, match=r"element_references\.pt does not exist"):
        load_references_from_config(config, NeverRead(), checkpoint_dir=tmp_path)
    torch.save({"gap": LinearReferences().state_dict()}, tmp_path / "element_references.pt")
    with pytest.raises(StatisticsError, match=r"lacks the references of \['energy'\]; it has \['gap'\]"):
        load_references_from_config(config, NeverRead(), checkpoint_dir=tmp_path)


def test_a_failed_fit_leaves_config_and_checkpoint_alone(tmp_path):
    config = {"fit": {"targets": ["nothing"], "batch_size": 4}}
    (tmp_path / "element_references.pt").write_bytes(b"from before")
    with pytest.raises(BatchError, match="lacks the field 'nothing'"):
        load_references_from_config(config, molecules(), checkpoint_dir=tmp_path)
    assert "fitted" not in config["fit"]
    assert (tmp_path / "element_references.pt").read_bytes() == b"from before"


def test_entries_of_targets_may_be_files_or_values(tmp_path):
    np.savez(tmp_path / "gap.npz", coeff=references_from_values({"H": 0.25}).element_references.numpy())
    config = {
        "gap": {"file": str(tmp_path / "gap.npz")},
        "energy": {"H": -0.5, 8: -75.1},
        "forces": {"values": {"C": 3.0}},
        "uma": [0.0, -0.5, 0.0],
    }
    references = load_references_from_config(config, NeverRead(), checkpoint_dir=tmp_path)
    assert values_of(references["gap"], 1) == [0.25]
    assert values_of(references["energy"], 1, 8) == [-0.5, -75.1]
    assert values_of(references["forces"], 6) == [3.0]
    assert values_of(references["uma"], 1, 2) == [-0.5, 0]
    assert set(torch.load(tmp_path / "element_references.pt", weights_only=True)) == set(config)
    config["energy"] = OmegaConf.create({"values": [0, 1.5]})
    assert values_of(load_references_from_config(config, NeverRead())["energy"], 1) == [1.5]


def test_one_file_may_hold_all_targets(tmp_path):
    given = {"energy": references_from_values({"H": 1.0}), "gap": references_from_values({"H": 2.0})}
    torch.save({target: module.state_dict() for target, module in given.items()}, tmp_path / "all.pt")
    np.savez(tmp_path / "all.npz", **{target: module.element_references.numpy() for target, module in given.items()})
    for name in ("all.pt", "all.npz"):
        references = load_references_from_config({"file": tmp_path / name}, NeverRead())
        assert {target: values_of(module, 1) for target, module in references.items()} == {
            "energy": [1.0],
            "gap": [2.0],
        }


def test_own_entries_win_over_the_file_and_the_file_over_the_fit_with_a_warning(tmp_path):
    data = molecules()
    given = {target: references_from_values({"H": 1.0}).state_dict() for target in ("energy", "gap", "other")}
    torch.save(given, tmp_path / "all.pt")
    for item in data:
        item.fitted = item.energy
    config = {
        "file": str(tmp_path / "all.pt"),
        "fit": {"targets": ["energy", "gap", "fitted"], "batch_size": 4},
        "gap": {"H": 7.0},
    }
    with pytest.warns(UserWarning, match="have several sources") as record:
        references = load_references_from_config(config, data)
    messages = sorted(str(w.message) for w in record)
    assert messages == [
        "the references of 'energy' have several sources, 'file' and 'fit': 'file' is used",
        "the references of 'gap' have several sources, its own entry and 'file' and 'fit': its own entry is used",
    ]
    expected = fit_linear_references(["fitted"], data, 4)["fitted"]
    assert torch.equal(references["fitted"].element_references, expected.element_references)
    assert values_of(references["energy"], 1) == [1.0]
    assert values_of(references["gap"], 1) == [7.0]
    assert values_of(references["other"], 1) == [1.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fit": {"targets": ["energy"], "batchsize": 4}}, "unknown key 'batchsize' in fit.*did you mean 'batch_size'"),
        ({"fit": {"targets": ["energy"], "batch_size": 4, "dataset": 1}}, "unknown key 'dataset' in fit"),
        ({"fit": {"batch_size": 4}}, r"fit lacks \['targets'\]; for example"),
        ({"fit": {"targets": ["energy"]}}, r"fit lacks \['batch_size'\]"),
        ({"fit": {"targets": "energy", "batch_size": 4}}, "fit.targets = 'energy': expected a list"),
        ({"fit": "energy"}, "fit = 'energy': expected a mapping"),
        ({"fit": types.MappingProxyType({"targets": ["e"], "batch_size": 4})}, "expected a mapping of the arguments"),
        ({"fti": {"targets": ["energy"], "batch_size": 4}}, "did you mean the key 'fit' instead of 'fti'"),
        ({"fiel": "references.pt"}, "did you mean the key 'file'"),
        ({"energy": "references.pt"}, r"for a file write energy: \{file: ...\}"),
        ({"energy": {"fiel": "references.pt"}}, "unknown key 'fiel' in energy.*did you mean 'file'"),
        ({"energy": {"file": "references.pt", "values": [0, 1]}}, "expected one of .* alone"),
        ({"energy": {"Hh": 1.0}}, "energy: unknown element 'Hh'"),
        ({"energy": 3.0}, "energy = 3.0: expected"),
        ({}, "names no target"),
    ],
)
def test_unknown_keys_and_values_are_refused_with_the_closest_name(config, message):
    with pytest.raises(ConfigError, match=message):
        load_references_from_config(config, NeverRead())


def test_files_that_need_unpickling_or_hold_one_target_are_refused(tmp_path):
    references = references_from_values({"H": 1.0})
    torch.save({"energy": references}, tmp_path / "modules.pt")
    with pytest.raises(StatisticsError, match="pickled objects, which are never loaded"):
        load_references_from_config({"file": tmp_path / "modules.pt"}, NeverRead())
    torch.save(references.state_dict(), tmp_path / "single.pt")
    with pytest.raises(StatisticsError, match="references of a single target; name the target"):
        load_references_from_config({"file": tmp_path / "single.pt"}, NeverRead())
    torch.save({"energy": "text"}, tmp_path / "text.pt")
    with pytest.raises(ConfigError, match="'energy': reference values 'text' are no mapping or list"):
        load_references_from_config({"file": tmp_path / "text.pt"}, NeverRead())
    with pytest.raises(OFDFTNormError, match="no such file"):
        load_references_from_config({"file": tmp_path / "missing.pt"}, NeverRead())
