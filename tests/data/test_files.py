"""Files and folders that appear whole or not at all, and what killed writers leave."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from ofdft_norm.data.files import write_text, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels.txt"
    with written_whole(path) as unfinished:
        unfinished.write_text("half")
        assert unfinished.parent == path.parent
        assert not path.exists()
        unfinished.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == [path.name]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("old")

    def write_and_stop() -> None:
        with written_whole(path) as unfinished:
            unfinished.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    with pytest.raises(ValueError, match="before anything"), written_whole(path):
        raise ValueError("before anything was written")
    assert path.read_text() == "old"
    assert names(tmp_path) == [path.name]
    write_text(path, "neu: é")
    assert path.read_bytes() == "neu: é".encode()


def test_a_folder_appears_whole_too(tmp_path: Path) -> None:
    path = tmp_path / "statistics.zarr"
    with written_whole(path) as unfinished:
        unfinished.mkdir()
        (unfinished / "mean").write_text("1")
        assert not path.exists()
    assert names(path) == ["mean"]

    def write_another() -> None:
        with written_whole(path) as unfinished:
            unfinished.mkdir()
            (unfinished / "other").write_text("2")

    with pytest.raises(OSError, match=re.escape(str(path))):
        write_another()
    assert names(path) == ["mean"]
    assert names(tmp_path) == [path.name]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_a_killed_writer_leaves_is_recognised_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "water.zarr.zip"
    killed = written_whole(path)  # entered and never left, as by a process that is killed
    killed.__enter__().write_text("half")
    (left,) = names(tmp_path)
    assert re.fullmatch(r"\.water\.zarr\.zip\.[0-9a-f]{8}\.part", left)
    write_text(path, "whole")
    assert names(tmp_path) == [left, path.name]
