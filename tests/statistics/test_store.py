"""The store of statistics, and typed views of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ofdft_norm import DatasetStatistics
from ofdft_norm.errors import MissingStatisticError, MissingStatisticsFileError, StatisticsError
from tests.conftest import write_zarr

NAMES = ("s.zarr", "s.zarr.zip", "s.npz")


def some_statistics() -> DatasetStatistics:
    arrays = {
        "coeffs/mean": np.array([1.0, -2.5e-300, 0.0]),
        "coeffs/std": np.zeros(3),
        "atom_ref_global_bias": np.array(-75.0),
        "n_samples": np.array(3),
    }
    basis = {"atomic_numbers": [1], "irreps_per_atom": ["3x0e"]}
    arrays = {**{f"constant/{key}": array for key, array in arrays.items()}, "other/n_atoms": np.array([2, 1])}
    return DatasetStatistics.from_arrays(arrays, {"created_by": "test", "basis_info": basis})


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    statistics = some_statistics()
    statistics.save_to(tmp_path / name)
    again = DatasetStatistics(tmp_path / name)
    np.testing.assert_equal(again.to_arrays(), statistics.to_arrays())
    assert [a.dtype for a in again.to_arrays().values()] == [a.dtype for a in statistics.to_arrays().values()]
    assert again.attributes == statistics.attributes
    assert again.basis_info == statistics.basis_info
    assert again.keys_recursive() == statistics.keys_recursive()
    assert again.weigher_keys() == ["constant", "other"]
    assert [key in again for key in ("constant/coeffs/mean", "constant", "const")] == [True, True, False]
    again.load_statistic("constant", "coeffs/mean")[:] = 7  # a copy
    assert again.load_statistic("constant", "coeffs/mean")[0] == 1
    assert "constant" in repr(again)
    if name.endswith(".npz"):
        return
    zipped = name.endswith(".zip")
    place: Any = zarr.storage.ZipStore(tmp_path / name, mode="r") if zipped else str(tmp_path / name)
    root: Any = zarr.open_group(place, mode="r")
    np.testing.assert_equal({key: np.asarray(root[key][...]) for key in statistics.to_arrays()}, statistics.to_arrays())
    assert dict(root.attrs) == statistics.attributes


def test_reads_what_others_write(tmp_path: Path) -> None:
    values = {
        "coeffs/mean": np.arange(5.0),
        "coeffs/std": np.zeros(5),
        "coeffs/abs_max": np.ones(5),
        "energy_minus_atom_ref/mean": np.array(3.0),
        "energy_minus_atom_ref/std": np.array(5.0),  # the root mean square, uncentred
        "atom_ref_atom_type_bias": np.zeros(2),
    }
    # zarr 2, which STRUCTURES25 uses, writes chunks of zeros as well
    arrays = {f"has_energy_label/{key}": value for key, value in values.items()}
    write_zarr(tmp_path / "s.zarr", arrays, write_empty_chunks=True)
    statistics = DatasetStatistics(tmp_path / "s.zarr")
    assert statistics.load_statistic("has_energy_label", "energy_minus_atom_ref/rms") == 5
    found = statistics["has_energy_label"]
    np.testing.assert_array_equal(found.coeffs.mean, np.arange(5.0))
    assert (found.coeffs.minimum, found.n_samples, found.energy, found.gradient_holders) == (None,) * 4
    assert found.linear_problem("sample") is found.linear_problem("molecule") is None
    reference: Any = found.reference("atom_ref")
    assert (reference.residual.std, reference.residual.rms) == (pytest.approx(4), pytest.approx(5))
    assert (reference.rank, reference.residual.mae, reference.worst) == (None, None, [])
    with pytest.raises(StatisticsError, match=r"elements are not stored.*basis_info"):
        statistics.elements()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_silently(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    statistics = DatasetStatistics(path, create_store=True)
    for _ in range(2):
        statistics.save_statistic("constant", "coeffs/mean", np.array([1e-9]))
    for other in (np.array([5e-9]), np.array([1e-9, 1e-9]), np.array([1e-9], dtype=np.float32)):
        with pytest.raises(StatisticsError, match=r"'constant/coeffs/mean' is already stored.*overwrite=True"):
            statistics.save_statistic("constant", "coeffs/mean", other)
    for value in ("text", [None], True, 1j):
        with pytest.raises(StatisticsError, match=r"'constant/coeffs/mean' is given as .*, expected real numbers"):
            statistics.save_statistic("constant", "coeffs/mean", value)
    assert DatasetStatistics(path).load_statistic("constant", "coeffs/mean") == 1e-9
    statistics.save_statistic("constant", "coeffs/mean", np.array([5e-9, 1.0]), overwrite=True)
    np.testing.assert_array_equal(DatasetStatistics(path).load_statistic("constant", "coeffs/mean"), [5e-9, 1.0])
    before = path.stat().st_mtime_ns
    statistics.save_to(path)  # equal: nothing happens
    assert path.stat().st_mtime_ns == before
    with pytest.raises(StatisticsError, match="already holds other statistics"):
        some_statistics().save_to(path)
    some_statistics().save_to(path, overwrite=True)
    assert DatasetStatistics(path)["constant"].n_samples == 3
    (tmp_path / "empty.zarr").mkdir()
    statistics.save_to(tmp_path / "empty.zarr")
    assert statistics.path == path
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
    with pytest.raises(KeyError, match=r"no statistics for the weigher 'constnt'; there are \['constant', 'oth"):
        _ = statistics["constnt"]
    with pytest.raises(MissingStatisticError, match=r"no statistic 'coeffs/men'; it has .*'coeffs/mean'") as error:
        statistics.load_statistic("constant", "coeffs/men")
    assert isinstance(error.value, StatisticsError)
    assert str(error.value).startswith("these statistics: ")  # not a repr, as of other KeyErrors
    for create_store in (None, False):
        with pytest.raises(FileNotFoundError, match=r"none\.zarr: there are no statistics") as missing:
            DatasetStatistics(tmp_path / "none.zarr", create_store=create_store)
        assert isinstance(missing.value, MissingStatisticsFileError)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(np.array([1.0, -2.5e-300]).tobytes()) + 9] ^= 1
    path.write_bytes(content)


BAD_BASIS = {"basis_info": {"atomic_numbers": [1], "irreps_per_atom": [5]}}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-70])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("s.npz", "s.zarr.zip") for damage in (truncate, flip)),
        ("s.zarr", lambda path: (path / "constant/coeffs/std/0").unlink()),
        ("s.zarr", lambda path: (path / "constant/coeffs/mean/0").write_bytes(b"1234")),
        ("s.zarr", lambda path: (path / "constant/coeffs/mean/0").write_bytes(np.full(3, np.nan).tobytes())),
        ("s.zarr", lambda path: (path / ".zattrs").write_text(json.dumps(BAD_BASIS))),
        ("s.zarr", lambda path: shutil.rmtree(path) or path.mkdir()),
        ("s.npz", lambda path: np.savez(path, values=np.zeros(3))),
        ("s.npz", lambda path: np.savez(path, values=np.array([{}], dtype=object))),
    ],
)
def test_damaged_and_foreign_files_are_named(name: str, damage: Callable[[Path], Any], tmp_path: Path) -> None:
    some_statistics().save_to(tmp_path / name)
    damage(tmp_path / name)
    with pytest.raises(StatisticsError, match=rf"{name}: .*\(config: data\.statistics\.path\)"):
        DatasetStatistics(tmp_path / name)
