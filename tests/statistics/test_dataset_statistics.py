"""The store of statistics."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ofdft_norm import DatasetStatistics
from ofdft_norm.data import files
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics import zarr_store
from tests.processes import Killed, in_new_process

BASIS = {"atomic_numbers": [1], "irreps_per_atom": ["3x0e"]}


def some_statistics() -> DatasetStatistics:
    arrays = {
        "constant/coeffs/mean": np.array([1.0, -2.5e-300, 0.0]),
        "constant/coeffs/std": np.zeros(3),
        "constant/atom_ref_global_bias": np.array(-75.0),
        "constant/n_samples": np.array(3),
        "has_energy_label/n_atoms": np.array([2, 1]),
    }
    return DatasetStatistics.from_arrays(arrays, {"created_by": "test", "basis_info": BASIS})


@pytest.mark.parametrize("name", ["s.zarr", "s.zarr.zip"])
def test_written_and_read_by_plain_zarr(name: str, tmp_path: Path) -> None:
    statistics = some_statistics()
    statistics.save_to(tmp_path / name)
    store = zarr.storage.ZipStore(tmp_path / name, mode="r") if name.endswith(".zip") else str(tmp_path / name)
    root = zarr.open_group(store, mode="r", zarr_format=2)
    again = DatasetStatistics(tmp_path / name)
    for key in statistics.keys_recursive():
        expected = statistics.load_statistic(*key.split("/", 1))
        np.testing.assert_array_equal(np.asarray(root[key][...]), expected)
        assert again.load_statistic(*key.split("/", 1)).dtype == expected.dtype
    assert dict(root.attrs) == again.attributes == statistics.attributes
    assert again.keys_recursive() == statistics.keys_recursive()
    assert again.weigher_keys() == ["constant", "has_energy_label"]
    assert "constant/coeffs/mean" in again


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    left, backup = tmp_path / ".s.zarr.0123abcd.part", tmp_path / ".s.zarr.backup"
    for folder in (left, backup):
        (folder / "constant").mkdir(parents=True)
        os.utime(folder, (time.time() - 2 * 24 * 3600,) * 2)
    some_statistics().save_to(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [backup.name, path.name]


def kill_overwriting(folder: Path, how: str, at_once: bool) -> tuple[list[int], list[str]]:
    """Kills processes in the middle and before each of the last operations of replacing 3 by [4, 5].

    Returns:
        Their exit status, and what a reader finds afterwards.
    """
    if not at_once:  # as on file systems that cannot exchange two names
        files._exchanged = lambda first, second: False
    path = folder / "s.zarr"
    new = DatasetStatistics.from_arrays({**some_statistics().to_arrays(), "constant/n_samples": np.array([4, 5])})

    def write(statistics: DatasetStatistics) -> None:
        if how == "save_statistic":
            statistics.save_statistic("constant", "n_samples", [4, 5], overwrite=True)
        else:
            new.save_to(path, overwrite=True)

    def read() -> str:
        try:
            return str(DatasetStatistics(path).load_statistic("constant", "n_samples").tolist())
        except StatisticsError as error:
            return str(error)

    some_statistics().save_to(path)
    statistics, killed = DatasetStatistics(path), Killed(folder)
    write(statistics)
    n = killed.n_operations
    statuses, found = [], []
    for operation in (n // 2, *range(n - 6, n)):
        shutil.rmtree(folder)
        some_statistics().save_to(path)
        statistics = DatasetStatistics(path)
        statuses.append(killed.run(lambda s=statistics: write(s), operation))
        found.append(read())
    return statuses, found


@pytest.mark.parametrize(("how", "at_once"), [("save_statistic", True), ("save_to", True), ("save_to", False)])
def test_a_writer_that_is_killed_loses_nothing(tmp_path: Path, how: str, at_once: bool) -> None:
    folder = tmp_path / "statistics"
    statuses, found = in_new_process(kill_overwriting, folder, how, at_once)
    assert statuses.count(-signal.SIGKILL) >= 4
    assert {"3", "[4, 5]"} <= set(found)
    for text in set(found) - {"3", "[4, 5]"}:  # between two renames: where the old ones are is told
        assert not at_once
        assert re.search(
            r"s\.zarr is missing: .* stopped; its former content is .*/\.s\.zarr\.[0-9a-f]{8}\.old: ", text
        )


def test_written_elsewhere_it_stays_where_it_was(tmp_path: Path) -> None:
    statistics = DatasetStatistics(tmp_path / "mine.zarr")
    statistics.save_statistic("constant", "n_samples", 3)
    statistics.save_to(tmp_path / "copy.zarr")
    statistics.save_statistic("constant", "n_samples", 4, overwrite=True)
    assert statistics.path == tmp_path / "mine.zarr"
    assert DatasetStatistics(tmp_path / "mine.zarr").load_statistic("constant", "n_samples") == 4
    assert DatasetStatistics(tmp_path / "copy.zarr").load_statistic("constant", "n_samples") == 3


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


def test_what_is_no_number_is_not_stored(tmp_path: Path) -> None:
    statistics = DatasetStatistics(tmp_path / "s.zarr")
    for value in ("text", [None], True, 1j):
        with pytest.raises(StatisticsError, match=r"'constant/coeffs/mean' is given as .*, expected real numbers"):
            statistics.save_statistic("constant", "coeffs/mean", value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        statistics.keys_recursive()


@pytest.mark.parametrize("name", ["s.zarr", "s.zarr.zip"])
def test_nothing_stored_changes_silently(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    statistics = DatasetStatistics(path)
    statistics.save_statistic("constant", "coeffs/mean", np.array([1e-9]))
    statistics.save_statistic("constant", "coeffs/mean", np.array([1e-9]))
    for other in (np.array([5e-9]), np.array([1e-9, 1e-9]), np.array([1e-9], dtype=np.float32)):
        with pytest.raises(StatisticsError, match=r"'constant/coeffs/mean' is already stored.*overwrite=True"):
            statistics.save_statistic("constant", "coeffs/mean", other)
    assert DatasetStatistics(path).load_statistic("constant", "coeffs/mean") == 1e-9
    statistics.save_statistic("constant", "coeffs/mean", np.array([5e-9, 1.0]), overwrite=True)
    np.testing.assert_array_equal(DatasetStatistics(path).load_statistic("constant", "coeffs/mean"), [5e-9, 1.0])
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_loaded_arrays_are_copies() -> None:
    statistics = some_statistics()
    statistics.load_statistic("constant", "coeffs/mean")[:] = 7
    assert statistics.load_statistic("constant", "coeffs/mean")[0] == 1


@pytest.mark.parametrize("name", ["s.zarr", "s.zarr.zip"])
def test_files_are_replaced_on_request_only(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    some_statistics().save_to(path)
    some_statistics().save_to(path)  # equal: nothing happens
    other = some_statistics()
    other.save_statistic("constant", "n_samples", 4, overwrite=True)
    with pytest.raises(StatisticsError, match="already holds other statistics"):
        other.save_to(path)
    assert DatasetStatistics(path).load_statistic("constant", "n_samples") == 3
    other.save_to(path, overwrite=True)
    assert DatasetStatistics(path).load_statistic("constant", "n_samples") == 4
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError("disk full")

    existing = DatasetStatistics(tmp_path / "old.zarr")
    existing.save_statistic("constant", "n_samples", 3)
    monkeypatch.setattr(zarr_store, "_write_files", fail)
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("basis_info", 3),
        ("basis_info", {}),
        ("basis_info", {**BASIS, "irreps_per_atom": [5]}),
        ("basis_info", {**BASIS, "other": 1}),
        ("atomic_numbers", {"1": 1}),
        ("atomic_numbers", ["H"]),
        ("atomic_numbers", [500]),
        ("extreme_samples", None),
        ("worst_molecules", [1]),
        ("worst_molecules_by_sample", "abc"),
    ],
)
def test_attributes_that_no_fit_writes_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "s.zarr"
    DatasetStatistics.from_arrays(some_statistics().to_arrays(), {name: value}).save_to(path)
    with pytest.raises(StatisticsError, match=rf"{path}: attribute '{name}'.*\(config: data\.statistics\.path\)"):
        DatasetStatistics(path)


def test_repr_is_a_tree() -> None:
    lines = repr(some_statistics()).splitlines()
    assert lines[0] == "DatasetStatistics(in memory)"
    assert "  constant" in lines
    assert "    coeffs" in lines
    assert "      mean (3,)" in lines


def test_a_missing_statistic_is_a_key_error_and_missing_statistics_a_missing_file(tmp_path: Path) -> None:
    statistics = DatasetStatistics.from_arrays({"constant/n_samples": np.array(1)})
    with pytest.raises(KeyError, match="no statistic 'coeffs/mean'; it has") as error:
        statistics.load_statistic("constant", "coeffs/mean")
    assert isinstance(error.value, StatisticsError)
    assert str(error.value).startswith("these statistics: ")  # not a repr, as of other KeyErrors
    path = tmp_path / "none.zarr"
    with pytest.raises(FileNotFoundError, match="there are no statistics"):
        DatasetStatistics(path, create_store=False)
    new = DatasetStatistics(path)
    for read in (new.keys_recursive, lambda: new.load_statistic("constant", "n_samples")):
        with pytest.raises(FileNotFoundError, match="there are no statistics") as missing:
            read()
        assert isinstance(missing.value, StatisticsError)
    assert "none.zarr" in repr(new)
    new.save_statistic("constant", "n_samples", np.array(2))
    assert new.keys_recursive() == DatasetStatistics(path, create_store=True).keys_recursive() == ["constant/n_samples"]
