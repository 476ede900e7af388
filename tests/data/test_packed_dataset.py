from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ofdft_norm import OFData, OFDataset, ProjectGradient
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError
from tests import processes


def doubled(sample: OFData) -> OFData:
    """A transform for single samples, which knows nothing of batches."""
    sample.twice = 2 * sample.energy_label
    return sample


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    """Water, methane and formaldehyde, with 4, 3 and 5 SCF iterations."""
    return labels.write_several()


@pytest.fixture
def packed(paths: list[Path], basis_info: Any, tmp_path: Path) -> Path:
    return pack_labels(PackingPlan(paths, basis_info, ["kin", "tot"]), tmp_path / "packed", progress=False)


@pytest.mark.parametrize("transform", [None, ProjectGradient(), doubled])
@pytest.mark.parametrize("limit", [None, [-1], [2, 1], -2])
@pytest.mark.parametrize("target", ["kin", "tot"])
def test_samples_and_batches_are_those_of_the_label_files(
    transform: Any, limit: Any, target: str, packed: Path, paths: list[Path], basis_info: Any, assert_same_fields: Any
) -> None:
    settings: Any = {"transform": transform, "limit_scf_iterations": limit, "keep_initial_guess": False}
    keys = (f"e_{target}", f"grad_{target}")
    expected = OFDataset(paths, basis_info, *keys, **settings)
    found = PackedDataset([packed], None, *keys, **settings)
    assert len(found) == len(expected)
    assert found.n_molecules == 3
    assert found.sample_offsets.tolist() == expected.sample_offsets.tolist()
    for a, b in zip(found, expected, strict=True):
        assert_same_fields(a, b)
    assert_same_fields(found[-1], expected[-1])
    for m in range(3):
        assert_same_fields(found.molecule_batch(m), expected.molecule_batch(m))


@pytest.mark.parametrize("samples", [[0], [11, 0, 5, 6, 4], list(range(12)), [3, 3, 2]])
def test_any_samples_are_joined_as_pyg_does(
    samples: list[int], packed: Path, paths: list[Path], basis_info: Any, make_batch: Any, assert_same_fields: Any
) -> None:
    raw = OFDataset(paths, basis_info)
    expected = make_batch([raw[i] for i in samples])
    for dataset in (PackedDataset([packed]), raw):
        batch = dataset.batch(samples)
        assert_same_fields(batch, expected)
        assert type(batch) is type(expected)
        assert batch.num_graphs == len(samples)
        for a, b in zip(batch.to_data_list(), expected.to_data_list(), strict=True):
            assert_same_fields(a, b)


def test_samples_may_be_changed_without_changing_the_set(packed: Path) -> None:
    dataset = PackedDataset([packed])
    before = dataset[1].coeffs.clone()
    dataset[1].coeffs.zero_()
    dataset.batch([1]).coeffs.zero_()
    assert torch.equal(dataset[1].coeffs, before)


def test_several_sets_and_chosen_molecules(
    paths: list[Path], basis_info: Any, tmp_path: Path, make_batch: Any, assert_same_fields: Any
) -> None:
    a, b = (
        pack_labels(PackingPlan(chosen, basis_info), tmp_path / name, progress=False)
        for name, chosen in (("a", paths[:1]), ("b", paths[1:]))
    )
    raw = OFDataset(paths, basis_info)
    both = PackedDataset([a, b])
    for i, sample in enumerate(raw):
        assert_same_fields(both[i], sample)
    order = [5, 0, 11, 7, 1]
    assert_same_fields(both.batch(order), make_batch([raw[i] for i in order]))
    assert both.paths == [a / paths[0].name, b / paths[1].name, b / paths[2].name]
    some = PackedDataset([a, b], [np.array([], dtype=np.int64), np.array([1, 0])])
    assert_same_fields(some.batch(range(8)), make_batch([raw[i] for i in (7, 8, 9, 10, 11, 4, 5, 6)]))


def test_sets_that_were_packed_differently_are_not_mixed(
    packed: Path, paths: list[Path], basis_info: Any, tmp_path: Path, labels: Any
) -> None:
    def other(name: str, *arguments: Any, **settings: Any) -> Path:
        return pack_labels(PackingPlan(paths, *arguments, **settings), tmp_path / name, progress=False)

    projected = other("projected", basis_info, pre_transforms=[ProjectGradient()])
    single = other("single", basis_info, dtype="float32")
    xyz = other("xyz", type(basis_info)(**(basis_info.to_dict() | {"p_order": "xyz"})))
    for folder, error, what in (
        (projected, ConfigError, "pre_transforms"),
        (single, ConfigError, "dtype"),
        (xyz, BasisError, "basis_info"),
    ):
        with pytest.raises(error, match=rf"packed with different {what}.*data\.source\.paths"):
            PackedDataset([packed, folder])
    with pytest.raises(ConfigError, match="no packed set"):
        PackedDataset([])


def test_a_target_that_was_not_packed_is_refused_by_name(packed: Path) -> None:
    with pytest.raises(LabelFileError, match=r"lacks 'e_xc'; it has \['e_kin', 'e_tot'\].*data\.source\.energy_key"):
        PackedDataset([packed], energy_key="e_xc")
    with pytest.raises(LabelFileError, match=r"lacks 'grad_xc'.*data\.source\.gradient_key.*--targets xc"):
        PackedDataset([packed], gradient_key="grad_xc")


def test_a_selection_of_nothing_names_the_molecule(packed: Path) -> None:
    with pytest.raises(LabelFileError, match=r"packed: methane\.zarr: none of its 3 SCF iterations"):
        PackedDataset([packed], limit_scf_iterations=[3], keep_initial_guess=False)


def test_the_state_tells_sets_and_selections_apart(packed: Path) -> None:
    states = [
        PackedDataset([packed], *arguments, **settings).state()
        for arguments, settings in (
            ((), {}),
            (([np.array([1, 0])],), {}),
            ((), {"limit_scf_iterations": -1}),
            ((), {"keep_initial_guess": False}),
            ((), {"energy_key": "e_tot"}),
        )
    ]
    assert PackedDataset([packed]).state() == states[0]
    assert len({repr(state) for state in states}) == len(states)


@pytest.mark.parametrize("context", ["fork", "forkserver"])  # a server's processes get what spawned ones get, pickled
def test_workers_open_the_set_themselves(context: str, packed: Path, assert_same_fields: Any) -> None:
    processes.context()
    dataset = PackedDataset([packed])
    assert len(pickle.dumps(dataset)) < 5000  # the basis, mostly
    _ = dataset[0], dataset.batch([1])
    assert len(pickle.dumps(dataset)) < 5000  # the basis, mostly
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=context, collate_fn=_unchanged)
    for found, expected in zip(loader, dataset, strict=True):
        assert_same_fields(found, expected)


def _unchanged(sample: OFData) -> OFData:
    return sample


def test_float32_sets_keep_energies_in_float64(paths: list[Path], basis_info: Any, tmp_path: Path) -> None:
    plan = PackingPlan(paths, basis_info, dtype="float32")
    found = PackedDataset([pack_labels(plan, tmp_path / "single", progress=False)])
    expected = OFDataset(paths, basis_info)
    for dataset in (list(found), [found.batch(range(12))]):
        for a in dataset:
            for field in ("coeffs", "ground_state_coeffs", "gradient_label"):
                assert a[field].dtype == torch.float32
            for field in ("pos", "energy_label", "dual_basis_integrals"):
                assert a[field].dtype == torch.float64
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.coeffs, b.coeffs.float())
        assert torch.equal(a.energy_label, b.energy_label)
