"""Files and folders that appear whole or not at all, and what killed writers leave."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

import pytest

from ofdft_norm.data import files
from ofdft_norm.data.files import writable_by_others, write_text, written_whole


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


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_on_request(tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_once:  # as on file systems that cannot exchange two names
        monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    path, other = tmp_path / "statistics.zarr", tmp_path / "other.zarr"
    for content in ("mean", "std"):
        with written_whole(path, replace=True, beside=other) as unfinished:
            assert unfinished.name.startswith(".other.zarr.")
            unfinished.mkdir()
            (unfinished / content).write_text("")
        assert names(path) == [content]
        assert names(tmp_path) == [path.name]
    rename = os.rename
    monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    monkeypatch.setattr(os, "rename", lambda a, b: rename(a, b if ".old" in f"{a}{b}" else "/dev/null/x"))
    with pytest.raises(OSError, match="/dev/null"), written_whole(path, replace=True) as unfinished:
        unfinished.mkdir()
    assert names(path) == ["std"]
    assert names(tmp_path) == [path.name]


def test_only_unfinished_files_of_that_name_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "s[1].zarr"
    mine = [f".{path.name}.{digits}.part" for digits in ("0123abcd", "ffffffff")]
    others = [f".{path.name}.backup", ".s1.zarr.0123abcd.part", f".{path.name}.0123abcd.old", f".{path.name}.x.part"]
    for name in [*mine, *others]:
        (tmp_path / name / "constant").mkdir(parents=True)
        if name != mine[1]:
            os.utime(tmp_path / name, (time.time() - 2 * 24 * 3600,) * 2)
    files.remove_left_overs(path)
    assert names(tmp_path) == sorted([mine[1], *others])


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


def test_what_others_may_write(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    file = folder / "file"
    file.write_text("mine")
    for mode, expected in ((0o644, False), (0o600, False), (0o646, True), (0o666, True)):
        file.chmod(mode)
        assert writable_by_others(file) is expected
    file.chmod(0o644)
    for mode, expected in ((0o755, False), (0o700, False), (0o757, True), (0o777, True), (0o1777, False)):
        folder.chmod(mode)
        assert writable_by_others(file) is expected
    assert not writable_by_others(folder / "absent")


def test_a_group_that_is_not_the_users_own_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    file.chmod(0o664)
    monkeypatch.setattr(files, "_is_private_group", lambda group: True)
    assert not writable_by_others(file)
    status = files._open_to_others(os.stat_result((0o100664, 0, 0, 1, 0, 4321, 0, 0, 0, 0)))
    assert not status
    monkeypatch.setattr(files, "_is_private_group", lambda group: False)
    assert files._open_to_others(os.stat_result((0o100664, 0, 0, 1, 0, 4321, 0, 0, 0, 0)))


def test_another_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("theirs")
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert writable_by_others(file) == (file.stat().st_uid != 0)
