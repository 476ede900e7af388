"""The store of statistics, and typed views of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ofdft_norm import ConstantSampleWeigher, DatasetStatistics, HasEnergyLabelSampleWeigher
from ofdft_norm.errors import MissingStatisticError, MissingStatisticsFileError, StatisticsError
from ofdft_norm.statistics.references import REFERENCES

BASIS = {"atomic_numbers": [1], "irreps_per_atom": ["3x0e"]}
NAMES = ("s.zarr", "s.zarr.zip", "s.npz")


def some_statistics() -> DatasetStatistics:
    arrays = {
        "constant/coeffs/mean": np.array([1.0, -2.5e-300, 0.0]),
        "constant/coeffs/std": np.zeros(3),
        "constant/atom_ref_global_bias": np.array(-75.0),
        "constant/energy_factor": np.arange(9.0).reshape(3, 3),
        "constant/n_samples": np.array(3),
        "has_energy_label/n_atoms": np.array([2, 1]),
    }
    return DatasetStatistics.from_arrays(arrays, {"created_by": "test", "basis_info": BASIS})


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    statistics = some_statistics()
    statistics.save_to(tmp_path / name)
    again = DatasetStatistics(tmp_path / name)
    for key, expected in statistics.to_arrays().items():
        found = again.to_arrays()[key]
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert again.attributes == statistics.attributes
    assert again.basis_info == statistics.basis_info
    assert again.keys_recursive() == statistics.keys_recursive()
    assert again.weigher_keys() == ["constant", "has_energy_label"]
    assert "constant/coeffs/mean" in again
    assert "constant" in again
    assert "const" not in again
    again.load_statistic("constant", "coeffs/mean")[:] = 7  # a copy
    assert again.load_statistic("constant", "coeffs/mean")[0] == 1
    assert "constant" in repr(again)
    if name.endswith(".npz"):
        return
    zipped = name.endswith(".zip")
    place: Any = zarr.storage.ZipStore(tmp_path / name, mode="r") if zipped else str(tmp_path / name)
    root: Any = zarr.open_group(place, mode="r", zarr_format=2)
    for key, expected in statistics.to_arrays().items():
        np.testing.assert_array_equal(np.asarray(root[key][...]), expected)
    assert dict(root.attrs) == statistics.attributes


def test_reads_what_others_write(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=2)
    values = {
        "has_energy_label/coeffs/mean": np.arange(5.0),
        "has_energy_label/coeffs/std": np.zeros(5),
        "has_energy_label/coeffs/abs_max": np.ones(5),
        "has_energy_label/energy_minus_atom_ref/mean": np.array(3.0),
        "has_energy_label/energy_minus_atom_ref/std": np.array(5.0),  # the root mean square, uncentred
        "has_energy_label/atom_ref_atom_type_bias": np.zeros(2),
    }
    for key, value in values.items():
        # zarr 2, which STRUCTURES25 uses, writes chunks of zeros as well
        array = root.create_array(key, shape=value.shape, dtype=value.dtype, config={"write_empty_chunks": True})
        array[...] = value
    statistics = DatasetStatistics(tmp_path / "s.zarr")
    assert statistics.load_statistic("has_energy_label", "energy_minus_atom_ref/rms") == 5
    found = statistics["has_energy_label"]
    np.testing.assert_array_equal(found.coeffs.mean, np.arange(5.0))
    assert (found.coeffs.minimum, found.n_samples, found.energy, found.gradient_extremes) == (None,) * 4
    assert found.linear_problem("sample") is found.linear_problem("molecule") is None
    reference = found.reference("atom_ref")
    assert reference is not None
    assert reference.residual is not None
    assert reference.residual.std == pytest.approx(4)
    assert reference.residual.rms == pytest.approx(5)
    assert (reference.rank, reference.residual.mae, reference.worst) == (None, None, [])
    with pytest.raises(StatisticsError, match=r"elements are not stored.*basis_info"):
        statistics.elements()


def test_views_of_a_fit(labels: Any) -> None:
    from ofdft_norm import OFDataset

    weighers = [HasEnergyLabelSampleWeigher(), ConstantSampleWeigher()]
    dataset = OFDataset(labels.write_several(), labels.basis_info)
    statistics = DatasetStatistics.from_dataset(None, dataset, labels.basis_info, weighers, weighers, progress=False)
    found = statistics["has_energy_label"]
    for name in REFERENCES:
        reference = found.reference(name)
        assert reference is not None
        np.testing.assert_array_equal(reference.t_z, found.load(f"{name}_atom_type_bias"))
        assert reference.residual == found.residual(name)
        assert reference.residual is not None
        assert reference.residual.rms == pytest.approx(float(found.load(f"energy_minus_{name}/rms")))
        assert len(reference.worst) == (3 if name.startswith("linear") else 0)
    assert found.reference("linear_ref").t_global == 0
    assert found.energy is not None
    assert found.energy.mean == found.load("energy/mean")
    assert (found.n_samples, found.n_molecules) == (9, 3)
    assert found.get("nothing") is None
    for count_by, name in (("molecule", "linear_ref"), ("sample", "linear_ref_by_sample")):
        problem = found.linear_problem(count_by)
        assert problem is not None
        solution = np.linalg.lstsq(problem[:-1, :-1], problem[:-1, -1], rcond=None)[0]
        np.testing.assert_allclose(solution, found.load(f"{name}_atom_type_bias"), rtol=1e-9)
    assert found.initial_guess_delta.minimum is None
    assert statistics.elements() == [1, 6, 8]


def test_what_is_no_number_is_not_stored(tmp_path: Path) -> None:
    statistics = DatasetStatistics(tmp_path / "s.zarr", create_store=True)
    for value in ("text", [None], True, 1j):
        with pytest.raises(StatisticsError, match=r"'constant/coeffs/mean' is given as .*, expected real numbers"):
            statistics.save_statistic("constant", "coeffs/mean", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stored_changes_silently(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    statistics = DatasetStatistics(path, create_store=True)
    statistics.save_statistic("constant", "coeffs/mean", np.array([1e-9]))
    statistics.save_statistic("constant", "coeffs/mean", np.array([1e-9]))
    for other in (np.array([5e-9]), np.array([1e-9, 1e-9]), np.array([1e-9], dtype=np.float32)):
        with pytest.raises(StatisticsError, match=r"'constant/coeffs/mean' is already stored.*overwrite=True"):
            statistics.save_statistic("constant", "coeffs/mean", other)
    assert DatasetStatistics(path).load_statistic("constant", "coeffs/mean") == 1e-9
    statistics.save_statistic("constant", "coeffs/mean", np.array([5e-9, 1.0]), overwrite=True)
    np.testing.assert_array_equal(DatasetStatistics(path).load_statistic("constant", "coeffs/mean"), [5e-9, 1.0])
    statistics.save_to(tmp_path / "elsewhere.zarr")
    assert statistics.path == path
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "elsewhere.zarr"])


@pytest.mark.parametrize("name", NAMES)
def test_files_are_replaced_on_request_only(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    some_statistics().save_to(path)
    before = path.stat().st_mtime_ns
    some_statistics().save_to(path)  # equal: nothing happens
    assert path.stat().st_mtime_ns == before
    other = some_statistics().with_arrays({"constant/n_samples": np.array(4)})
    with pytest.raises(StatisticsError, match="already holds other statistics"):
        other.save_to(path)
    assert DatasetStatistics(path)["constant"].n_samples == 3
    other.save_to(path, overwrite=True)
    assert DatasetStatistics(path)["constant"].n_samples == 4
    (tmp_path / "empty.zarr").mkdir()
    other.save_to(tmp_path / "empty.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "empty.zarr"])


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    existing = DatasetStatistics(tmp_path / "old.npz", create_store=True)
    existing.save_statistic("constant", "n_samples", 3)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        some_statistics().save_to(tmp_path / "new.npz")
    with pytest.raises(OSError, match="disk full"):
        existing.save_statistic("constant", "n_samples", 4, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old.npz"]
    assert existing["constant"].n_samples == DatasetStatistics(tmp_path / "old.npz")["constant"].n_samples == 3


def test_missing_statistics_list_what_exists(tmp_path: Path) -> None:
    statistics = some_statistics()
    with pytest.raises(KeyError, match=r"no statistics for the weigher 'constnt'; there are \['constant', 'has"):
        _ = statistics["constnt"]
    with pytest.raises(MissingStatisticError, match=r"no statistic 'coeffs/men'; it has .*'coeffs/mean'") as error:
        statistics.load_statistic("constant", "coeffs/men")
    assert isinstance(error.value, StatisticsError)
    assert str(error.value).startswith("these statistics: ")  # not a repr, as of other KeyErrors
    for create_store in (None, False):
        with pytest.raises(FileNotFoundError, match=r"none\.zarr: there are no statistics") as missing:
            DatasetStatistics(tmp_path / "none.zarr", create_store=create_store)
        assert isinstance(missing.value, MissingStatisticsFileError)


def damaged(path: Path, kind: str) -> Path:
    """Damages a copy of stored statistics."""
    copy = path.with_name(f"damaged{path.suffix}")
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        copy.write_bytes(path.read_bytes())
    if kind == "truncated":
        copy.write_bytes(copy.read_bytes()[:-70])
    elif kind == "flipped":
        content = bytearray(copy.read_bytes())
        content[content.index(np.array([1.0, -2.5e-300]).tobytes()) + 9] ^= 1
        copy.write_bytes(content)
    elif kind == "without a chunk":
        (copy / "constant/coeffs/std/0").unlink()
    elif kind == "short chunk":
        (copy / "constant/coeffs/mean/0").write_bytes(b"1234")
    elif kind == "NaN":
        (copy / "constant/coeffs/mean/0").write_bytes(np.full(3, np.nan).tobytes())
    elif kind == "bad JSON":
        (copy / "constant/coeffs/mean/.zarray").write_text("{")
    elif kind == "bad basis":
        (copy / ".zattrs").write_text(json.dumps({"basis_info": {"atomic_numbers": [1], "irreps_per_atom": [5]}}))
    return copy


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("s.npz", "s.zarr.zip") for kind in ("truncated", "flipped")),
        *(("s.zarr", kind) for kind in ("without a chunk", "short chunk", "NaN", "bad JSON", "bad basis")),
    ],
)
def test_damaged_files_are_named(name: str, kind: str, tmp_path: Path) -> None:
    some_statistics().save_to(tmp_path / name)
    copy = damaged(tmp_path / name, kind)
    with pytest.raises(StatisticsError, match=rf"{copy}: .*\(config: data\.statistics\.path\)"):
        DatasetStatistics(copy)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    np.savez(tmp_path / "objects.npz", values=np.array([{}], dtype=object))
    for name in ("folder", "file", "other.npz", "objects.npz"):
        with pytest.raises(StatisticsError, match=rf"{name}: .*data\.statistics\.path"):
            DatasetStatistics(tmp_path / name)
