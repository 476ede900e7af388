"""The store of statistics."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ofdft_norm import DatasetStatistics
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics import zarr_store


def some_statistics() -> DatasetStatistics:
    arrays = {
        "constant/coeffs/mean": np.array([1.0, -2.5e-300, 0.0]),
        "constant/coeffs/std": np.zeros(3),
        "constant/atom_ref_global_bias": np.array(-75.0),
        "constant/n_samples": np.array(3),
        "has_energy_label/n_atoms": np.array([2, 1]),
    }
    return DatasetStatistics.from_arrays(arrays, {"created_by": "test", "basis_info": {"atomic_numbers": [1]}})


def test_written_and_read_by_plain_zarr(tmp_path: Path) -> None:
    statistics = some_statistics()
    statistics.save_to(tmp_path / "s.zarr")
    root = zarr.open_group(str(tmp_path / "s.zarr"), mode="r", zarr_format=2)
    again = DatasetStatistics(tmp_path / "s.zarr")
    for key in statistics.keys_recursive():
        expected = statistics.load_statistic(*key.split("/", 1))
        np.testing.assert_array_equal(np.asarray(root[key][...]), expected)
        assert again.load_statistic(*key.split("/", 1)).dtype == expected.dtype
    assert dict(root.attrs) == again.attributes == statistics.attributes
    assert again.keys_recursive() == statistics.keys_recursive()
    assert again.weigher_keys() == ["constant", "has_energy_label"]
    assert "constant/coeffs/mean" in again


def test_what_a_killed_writer_left_is_removed_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / "s[1].zarr"
    old, new, other = (tmp_path / name for name in (f".{path.name}.old", f".{path.name}.new", ".other.zarr.old"))
    for folder in (old, new, other):
        (folder / "constant").mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (time.time() - 2 * 24 * 3600,) * 2)
    some_statistics().save_to(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, new.name, other.name])


def test_reads_what_others_write(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=2)
    values = {
        "has_energy_label/coeffs/mean": np.arange(5.0),
        "has_energy_label/energy_minus_atom_ref/mean": np.array(3.0),
        "has_energy_label/energy_minus_atom_ref/std": np.array(5.0),  # the root mean square, uncentred
        "has_energy_label/coeffs/std": np.zeros(5),
    }
    for key, value in values.items():
        # zarr 2, which STRUCTURES25 uses, writes chunks of zeros as well
        array = root.create_array(key, shape=value.shape, dtype=value.dtype, config={"write_empty_chunks": True})
        array[...] = value
    statistics = DatasetStatistics(tmp_path / "s.zarr")
    np.testing.assert_array_equal(statistics.load_statistic("has_energy_label", "coeffs/mean"), np.arange(5.0))
    assert not statistics.load_statistic("has_energy_label", "coeffs/std").any()
    assert statistics.load_statistic("has_energy_label", "energy_minus_atom_ref/rms") == 5
    assert statistics.load_statistic("has_energy_label", "energy_minus_atom_ref/std") == pytest.approx(4)


def test_nothing_stored_changes_silently(tmp_path: Path) -> None:
    statistics = DatasetStatistics(tmp_path / "s.zarr")
    statistics.save_statistic("constant", "coeffs/mean", np.array([1e-9]))
    statistics.save_statistic("constant", "coeffs/mean", np.array([1e-9]))
    for other in (np.array([5e-9]), np.array([1e-9, 1e-9]), np.array([1e-9], dtype=np.float32)):
        with pytest.raises(StatisticsError, match=r"'constant/coeffs/mean' is already stored.*overwrite=True"):
            statistics.save_statistic("constant", "coeffs/mean", other)
    assert DatasetStatistics(tmp_path / "s.zarr").load_statistic("constant", "coeffs/mean") == 1e-9
    statistics.save_statistic("constant", "coeffs/mean", np.array([5e-9, 1.0]), overwrite=True)
    read = DatasetStatistics(tmp_path / "s.zarr").load_statistic("constant", "coeffs/mean")
    np.testing.assert_array_equal(read, [5e-9, 1.0])
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_loaded_arrays_are_copies() -> None:
    statistics = some_statistics()
    statistics.load_statistic("constant", "coeffs/mean")[:] = 7
    assert statistics.load_statistic("constant", "coeffs/mean")[0] == 1


def test_directories_are_replaced_on_request_only(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    some_statistics().save_to(path)
    some_statistics().save_to(path)  # equal: nothing happens
    other = some_statistics()
    other.save_statistic("constant", "n_samples", 4, overwrite=True)
    with pytest.raises(StatisticsError, match="already holds other statistics"):
        other.save_to(path)
    assert DatasetStatistics(path).load_statistic("constant", "n_samples") == 3
    other.save_to(path, overwrite=True)
    assert DatasetStatistics(path).load_statistic("constant", "n_samples") == 4
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError("disk full")

    existing = DatasetStatistics(tmp_path / "old.zarr")
    existing.save_statistic("constant", "n_samples", 3)
    monkeypatch.setattr(zarr_store, "_write_array", fail)
    with pytest.raises(OSError, match="disk full"):
        some_statistics().save_to(tmp_path / "new.zarr")
    with pytest.raises(OSError, match="disk full"):
        existing.save_statistic("constant", "n_samples", 4, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old.zarr"]
    assert DatasetStatistics(tmp_path / "old.zarr").load_statistic("constant", "n_samples") == 3
    assert existing.load_statistic("constant", "n_samples") == 3


def test_missing_keys_list_what_exists() -> None:
    statistics = some_statistics()
    with pytest.raises(StatisticsError, match=r"no statistics for the weigher 'constnt'; there are \['constant', 'has"):
        statistics.load_statistic("constnt", "coeffs/mean")
    with pytest.raises(StatisticsError, match=r"no statistic 'coeffs/men'; it has .*'coeffs/mean', 'coeffs/std'"):
        statistics.load_statistic("constant", "coeffs/men")


def test_damaged_and_foreign_directories(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    some_statistics().save_to(path)
    without_chunk = Path(shutil.copytree(path, tmp_path / "without_chunk"))
    (without_chunk / "constant/coeffs/std/0").unlink()
    with pytest.raises(StatisticsError, match=r"chunk 0 of array 'constant/coeffs/std' is missing"):
        DatasetStatistics(without_chunk)
    cut = Path(shutil.copytree(path, tmp_path / "cut"))
    (cut / "constant/coeffs/mean/0").write_bytes(b"1234")
    bad_json = Path(shutil.copytree(path, tmp_path / "bad_json"))
    (bad_json / "constant/coeffs/mean/.zarray").write_text("{")
    for damaged in (cut, bad_json):
        with pytest.raises(StatisticsError, match=rf"{damaged}: cannot be read as dataset statistics"):
            DatasetStatistics(damaged)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text(json.dumps({}))
    for foreign in ("empty", "file"):
        with pytest.raises(StatisticsError, match=f"{foreign}.*data.statistics.path"):
            DatasetStatistics(tmp_path / foreign)


def test_repr_is_a_tree() -> None:
    lines = repr(some_statistics()).splitlines()
    assert lines[0] == "DatasetStatistics(in memory)"
    assert "  constant" in lines
    assert "    coeffs" in lines
    assert "      mean (3,)" in lines
