from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ofdft_norm.data.file_states import file_states, scf_iteration_counts
from ofdft_norm.errors import StatisticsError


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    """Two zip files and a directory, in two folders."""
    (labels.folder / "set" / "more").mkdir(parents=True)
    found = [labels.folder / "set" / "water.zarr.zip", labels.folder / "set" / "methane.zarr"]
    found.append(labels.folder / "set" / "more" / "formaldehyde.zarr.zip")
    for source, target in zip(labels.write_several(), found, strict=True):
        shutil.move(source, target)
    return found


def moved(paths: list[Path], root: Path) -> list[Path]:
    return [root / path.relative_to(paths[0].parent) for path in paths]


def linked_root(source: Path, target: Path) -> None:
    target.symlink_to(source)


def copied_with_times(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=shutil.copy2)


@pytest.mark.parametrize("put", [linked_root, copied_with_times, os.rename])
@pytest.mark.parametrize("contents", [False, True])
def test_a_label_set_is_the_same_in_another_place(
    put: Callable[[Path, Path], None], contents: bool, paths: list[Path], tmp_path: Path
) -> None:
    before = file_states(paths, contents)
    put(paths[0].parent, tmp_path / "scratch")
    assert file_states(moved(paths, tmp_path / "scratch"), contents) == before


def test_a_copy_without_times_is_told_by_its_contents(paths: list[Path], tmp_path: Path) -> None:
    shutil.copytree(paths[0].parent, tmp_path / "scratch", copy_function=shutil.copyfile)
    for path in (tmp_path / "scratch").rglob("*"):
        os.utime(path, (1, 1))
    copies = moved(paths, tmp_path / "scratch")
    assert file_states(copies) != file_states(paths)
    assert file_states(copies, contents=True) == file_states(paths, contents=True)


def test_names_order_and_folders_count(paths: list[Path], tmp_path: Path) -> None:
    before = file_states(paths)
    assert file_states(paths[::-1]) != before
    paths[2].rename(paths[0].parent / paths[2].name)
    assert file_states([*paths[:2], paths[0].parent / paths[2].name]) != before
    assert file_states([]) == []


@pytest.mark.parametrize("folder", [True, False])
def test_linked_chunks_are_followed(folder: bool, paths: list[Path], tmp_path: Path) -> None:
    inside = paths[1] / "of_labels" / "spatial" / "coeffs"
    chunk = inside if folder else inside / "0.0"
    before = file_states(paths)
    shutil.move(chunk, tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    assert file_states(paths) == before
    os.utime(tmp_path / "elsewhere" / "0.0" if folder else tmp_path / "elsewhere", (1, 1))
    assert file_states(paths) != before


# --- digests of contents ----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two label files and a label folder with three files; what is in them does not matter."""
    folder = tmp_path / "labels"
    (folder / "c.zarr/inner").mkdir(parents=True)
    for name in ("a.zarr.zip", "b.zarr.zip", "c.zarr/.zgroup", "c.zarr/inner/0.0", "c.zarr/inner/.zarray"):
        (folder / name).write_text(f"content of {name}")
    return [folder / "a.zarr.zip", folder / "b.zarr.zip", folder / "c.zarr"]


def changed_in_place(path: Path) -> None:
    """Changes one byte; size and modification time stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content was read."""
    names: list[str] = []
    read = Path.read_bytes

    def reading(self: Path) -> bytes:
        names.append(self.name)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", reading)
    return names


def test_states_are_sizes_and_times_or_digests(files: list[Path]) -> None:
    every = [files[0], files[1], *sorted(file for file in files[2].rglob("*") if file.is_file())]
    names = [str(file.relative_to(files[0].parent)) for file in every]
    stats = [file.stat() for file in every]
    assert file_states(files) == [(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats, strict=True)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in every]
    assert file_states(files, contents=True) == [(n, d, None) for n, d in zip(names, digests, strict=True)]


@pytest.mark.parametrize("changed", ["a.zarr.zip", "c.zarr/inner/0.0"])
def test_a_value_changed_with_size_and_time_kept_is_seen_by_contents(
    changed: str, files: list[Path], tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    times = file_states(files)
    contents = [file_states(files, True, folder) for folder in (None, memory)]
    changed_in_place(files[0].parent / changed)
    assert file_states(files) == times
    for before, folder in zip(contents, (None, memory), strict=True):
        after = file_states(files, True, folder)
        assert [a[0] for a, b in zip(after, before, strict=True) if a != b] == [changed]


def test_digests_are_remembered_for_each_file(files: list[Path], tmp_path: Path, files_read: list[str]) -> None:
    memory = tmp_path / "memory"
    first = file_states(files, True, memory)
    assert len(files_read) == 5
    assert file_states(files, True, memory) == first
    assert len(files_read) == 5
    changed_in_place(files[1])
    files_read.clear()
    assert file_states(files, True, memory)[1] != first[1]
    assert files_read == ["b.zarr.zip"]
    for text in ("", "{", "[]", '{"a": 1}', '{"a": [1]}', "[" * 100_000):  # a damaged memory is made anew
        next(memory.iterdir()).write_text(text)
        files_read.clear()
        file_states(files, True, memory)
        assert len(files_read) == 5


def test_a_memory_that_others_may_write_is_not_used(files: list[Path], tmp_path: Path, files_read: list[str]) -> None:
    memory = tmp_path / "memory"
    first = file_states(files, True, memory)
    file = next(memory.iterdir())
    file.write_text(json.dumps({name: [*entry[:-1], "0" * 64] for name, entry in json.loads(file.read_text()).items()}))
    assert file_states(files, True, memory) != first  # believed, as it is this user's own
    file.chmod(0o666)
    assert file_states(files, True, memory) == first


def test_where_digests_cannot_be_remembered_they_are_computed(files: list[Path]) -> None:
    assert file_states(files, True, Path("/dev/null/folder")) == file_states(files, True)


@pytest.mark.parametrize("contents", [False, True])
def test_links_inside_a_label_folder_are_followed(contents: bool, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "far/chunks").mkdir(parents=True)
    (tmp_path / "far/chunks/1.0").write_text("far chunk")
    (tmp_path / "far/chunk").write_text("another")
    (files[2] / "folder").symlink_to(tmp_path / "far/chunks")
    (files[2] / "file").symlink_to(tmp_path / "far/chunk")
    before = file_states(files, contents)
    assert {os.path.basename(state[0]) for state in before} >= {"1.0", "file"}
    for target in ("chunks/1.0", "chunk"):
        (tmp_path / "far" / target).write_text("a longer text than before")
        after = file_states(files, contents)
        assert after != before
        before = after


@pytest.mark.parametrize("contents", [False, True])
def test_links_in_a_ring_and_links_to_nowhere_end(contents: bool, files: list[Path]) -> None:
    (files[2] / "inner/ring").symlink_to(files[2])
    (files[2] / "nowhere").symlink_to(files[2] / "absent")
    os.mkfifo(files[2] / "pipe")
    states = file_states(files, contents)
    assert states == file_states(files, contents)
    assert ("c.zarr/nowhere", None, None) in states
    assert len(states) < 20


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.symlink_to("absent"), os.mkfifo])
def test_a_label_file_that_is_none(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "absent.zarr.zip"
    make(path)
    with pytest.raises(StatisticsError, match=r"absent\.zarr\.zip: no such label file \(config: data\.source\)"):
        file_states([path])


def test_few_label_files_are_opened_every_time(tmp_path: Path, labels: Any) -> None:
    path = labels.write()
    assert scf_iteration_counts([path], tmp_path / "memory") == [4]
    assert not (tmp_path / "memory").exists()
