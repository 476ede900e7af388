"""Fitted statistics are reused where nothing changed, fitted again where anything did, and never half written."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_geometric.transforms import BaseTransform

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    HasEnergyLabelSampleWeigher,
    OFDataset,
    ProjectGradient,
)
from ofdft_norm.data.dataset import compose
from ofdft_norm.data.pack import pack_labels
from ofdft_norm.data.packed import PackedDataset
from ofdft_norm.errors import LabelFileError, StatisticsError
from ofdft_norm.statistics.cache import FittedStatistics, describe_fit, load_or_fit
from ofdft_norm.statistics.fit_statistics import StatisticsConfig
from tests.processes import context

ORIGIN = {"pre_transforms": ["ProjectGradient()"], "energy_key": "e_kin", "unit": "hartree"}


class Scaled(BaseTransform):
    """Multiplies the coefficients."""

    works_on_batches = True

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def forward(self, data: Any) -> Any:
        return doubled(data, self.factor)


class Case:
    """A training split of three molecules, each of H, C and O, and how to fit it."""

    def __init__(self, folder: Path, basis_info: BasisInfo) -> None:
        self.folder = folder
        self.basis_info = basis_info
        self.config = StatisticsConfig(dir=str(folder / "cache"), progress=False)

    def dataset(self, transforms: Any = None, n: int = 3, **options: Any) -> OFDataset:
        paths = sorted((self.folder / "labels").iterdir())[:n]
        transforms = [ProjectGradient()] if transforms is None else transforms
        return OFDataset(paths, self.basis_info, transform=compose(transforms), **options)

    def fit(self, dataset: Any = None, basis_info: BasisInfo | None = None, **settings: Any) -> FittedStatistics:
        opened = self.dataset() if dataset is None else dataset
        return load_or_fit(lambda: opened, basis_info or self.basis_info, replace(self.config, **settings), ORIGIN)


@pytest.fixture
def case(labels: Any, tmp_path: Path) -> Case:
    labels.folder = tmp_path / "labels"
    labels.folder.mkdir()
    labels.write("formaldehyde.zarr.zip", (6, 8, 1, 1), 4)
    labels.write("methanol.zarr", (6, 8, 1, 1, 1, 1), 3)
    labels.write("ketene.zarr.zip", (6, 6, 8, 1, 1), 5)
    return Case(tmp_path, labels.basis_info)


def test_nothing_changed_is_reused(case: Case) -> None:
    first, second = case.fit(), case.fit()
    fingerprint = describe_fit(case.dataset(), case.basis_info, case.config, ("energy_label", "atomic_numbers"))[1]
    assert (first.reused, second.reused) == (False, True)
    assert first.fingerprint == second.fingerprint == fingerprint
    np.testing.assert_equal(second.statistics.to_arrays(), first.statistics.to_arrays())
    assert second.statistics.attributes == first.statistics.attributes
    assert second.statistics.attributes["unit"] == "hartree"
    [entry] = (case.folder / "cache").iterdir()
    assert entry.name == f"{str(first.fingerprint)[:32]}.npz"
    assert first.statistics.path == second.statistics.path == entry


def doubled(data: Any, factor: float = 2.0) -> Any:
    data.coeffs = data.coeffs * factor
    return data


def with_fluorine(basis: BasisInfo) -> BasisInfo:
    return BasisInfo([*basis.atomic_numbers.tolist(), 9], [*basis.irreps_per_atom, "1x0e"])


CHANGES: dict[str, Callable[[Case], FittedStatistics]] = {
    "a file less": lambda case: case.fit(case.dataset(n=2)),
    "target energy": lambda case: case.fit(case.dataset(energy_key="e_tot")),
    "target gradient": lambda case: case.fit(case.dataset(gradient_key="grad_tot")),
    "iterations": lambda case: case.fit(case.dataset(limit_scf_iterations=2)),
    "initial guess": lambda case: case.fit(case.dataset(keep_initial_guess=False)),
    "no pre-transform": lambda case: case.fit(case.dataset([])),
    "a pre-transform": lambda case: case.fit(case.dataset([ProjectGradient(), Scaled(2.0)])),
    "weighers": lambda case: case.fit(weighers=[HasEnergyLabelSampleWeigher(), ConstantSampleWeigher()]),
    "initial guess weigher": lambda case: case.fit(initial_guess_weighers=[ConstantSampleWeigher()]),
    "bias": lambda case: case.fit(with_bias=False),
    "residuals": lambda case: case.fit(residuals=False),
    "contents": lambda case: case.fit(fingerprint="contents"),
    "a basis with one more element": lambda case: case.fit(basis_info=with_fluorine(case.basis_info)),
    "a function": lambda case: case.fit(case.dataset([doubled])),
    "energies alone": lambda case: load_or_fit(case.dataset, None, case.config, ORIGIN),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:the basis has the elements")
def test_any_change_leads_to_a_new_fit(case: Case, change: str) -> None:
    case.fit()
    changed, again = CHANGES[change](case), CHANGES[change](case)
    assert (changed.reused, again.reused) == (False, True)
    assert again.fingerprint == changed.fingerprint
    assert case.fit().reused


@pytest.mark.parametrize("file", ["formaldehyde.zarr.zip", "methanol.zarr/of_labels/spatial/coeffs/0.0"])
def test_a_changed_label_file_leads_to_a_new_fit(case: Case, file: str) -> None:
    case.fit()
    case.fit(fingerprint="contents")
    os.utime(case.folder / "labels" / file, ns=(0, 1))
    assert not case.fit().reused
    assert case.fit(fingerprint="contents").reused


def test_what_cannot_be_recognised_is_fitted_each_time(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    class Local(Scaled):
        lock = threading.Lock()

    for dataset in (case.dataset([Local(2.0)]), case.dataset([lambda data: doubled(data, 4)]), list(case.dataset())):
        for fitted in (case.fit(dataset), case.fit(dataset)):
            assert (fitted.reused, fitted.fingerprint, fitted.statistics.path) == (False, None, None)
    assert not (case.folder / "cache").exists()
    said = [r.message for r in caplog.records if "fitted in every run: the transform cannot" in r.message]
    assert len(said) == 1


def test_a_damaged_entry_is_fitted_again(case: Case) -> None:
    first, other = case.fit(), case.fit(with_bias=False)
    paths = [Path(str(fitted.statistics.path)) for fitted in (first, other)]
    paths[0].write_bytes(paths[1].read_bytes())
    assert not case.fit().reused
    paths[0].write_bytes(paths[0].read_bytes()[:-70])
    with pytest.warns(UserWarning, match="cannot be read as dataset statistics.*fitting again"):
        again = case.fit()
    assert not again.reused
    assert again.statistics.equals(first.statistics)
    assert case.fit().reused


def test_a_damaged_pack_leaves_the_cache_alone(case: Case) -> None:
    packed = pack_labels(case.dataset([]), case.folder / "packed", progress=False)
    assert not case.fit(PackedDataset([packed])).reused
    assert case.fit(PackedDataset([packed])).reused
    damaged = packed / "coeffs.npy"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    os.utime(damaged, ns=(0, 1))
    for fit in (case.fit, lambda dataset: DatasetStatistics.from_dataset(None, dataset, case.basis_info)):
        with pytest.raises(LabelFileError, match=r"coeffs\.npy has changed"):
            fit(PackedDataset([packed]))


def test_a_folder_that_cannot_be_written_is_a_warning(case: Case) -> None:
    (case.folder / "cache").write_text("a file")
    with pytest.warns(UserWarning, match=r"could not be written .*data\.statistics\.dir"):
        assert not case.fit().reused


def test_given_statistics(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise AssertionError("the data set was opened")

    path = case.folder / "given.zarr"
    case.fit().statistics.save_to(path)
    config = replace(case.config, path=str(path))
    given = load_or_fit(refuse, case.basis_info, config, ORIGIN)
    assert (given.reused, given.fingerprint, given.statistics.path) == (True, None, path)
    for name, value in (("pre_transforms", []), ("energy_key", "e_tot"), ("unit", "eV")):
        with pytest.raises(StatisticsError, match=rf"taken with {name} = .*\(config: data\.[a-z.]*{name}"):
            load_or_fit(refuse, case.basis_info, config, {**ORIGIN, name: value})
    silent = DatasetStatistics.from_arrays(given.statistics.to_arrays())
    silent.save_to(case.folder / "silent.zarr")  # as STRUCTURES25's
    taken = load_or_fit(refuse, case.basis_info, replace(config, path=str(case.folder / "silent.zarr")), ORIGIN)
    assert taken.statistics.equals(given.statistics)
    with pytest.raises(StatisticsError, match=r"nowhere\.zarr.*config: data\.statistics\.path"):
        load_or_fit(refuse, case.basis_info, replace(config, path=str(case.folder / "nowhere.zarr")), ORIGIN)


def fit_and_save(folder: Path, basis_info: BasisInfo, out: str) -> None:
    Case(folder, basis_info).fit().statistics.save_to(folder / out)


def test_fits_at_once_all_succeed(case: Case) -> None:
    outs = [f"{i}.npz" for i in range(3)]
    processes = [context().Process(target=fit_and_save, args=(case.folder, case.basis_info, out)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    [entry] = (case.folder / "cache").iterdir()
    assert all(DatasetStatistics(case.folder / out).equals(DatasetStatistics(entry)) for out in outs)
