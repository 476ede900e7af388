from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ofdft_norm.data.file_states import file_states


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
