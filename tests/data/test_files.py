import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from ofdft_norm.data.files import import_optional, read_plain, write_text, write_whole, write_zip


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_file_appears_whole_or_not_at_all(error: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels.txt"
    write_text(path, "alt: é")

    def fail() -> None:
        with write_whole(path) as unfinished:
            unfinished.write_text("new")
            assert unfinished.parent == path.parent
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == "alt: é".encode()
    assert os.listdir(path.parent) == [path.name]
    with write_whole(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_equal_contents_make_equal_zip_files(tmp_path: Path) -> None:
    files = {"a/.zarray": b"{}" * 50, "a/0": b"\0" * 50}
    write_zip(tmp_path / "one.zip", files)
    write_zip(tmp_path / "other.zip", dict(reversed(files.items())))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "file.json",
            '{"a": [1, 2.5, "é"]}',
            [b"{", b"", b"\xff", b"[NaN]", b'{"a": Infinity}', b"1e999", b"[" * 100_000 + b"]" * 100_000],
        ),
        (
            "file.yaml",
            "a: [1, 2.5, é]",
            [
                *(b"a: [", b"\xff", b"a: .nan", b"a: \x01", b"? [a]\n: 1"),
                b"!!python/object/apply:os.mkdir [made]",
                b"[" * 1000 + b"]" * 1000,
            ],
        ),
    ],
)
def test_plain_data_are_read(
    name: str, good: str, bad: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(good)
    assert read_plain(name) == {"a": [1, 2.5, "é"]}
    for content in bad:
        Path(name).write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            read_plain(name)
    with pytest.raises(OSError, match="absent"):
        read_plain("absent")
    assert os.listdir() == [name]


def test_an_optional_module_that_is_missing_names_its_extra() -> None:
    assert import_optional("json", "labels").loads("1") == 1
    with pytest.raises(ImportError, match=r"no_such_module.*pip install 'ofdft-norm\[labels\]'"):
        import_optional("no_such_module", "labels")


def test_a_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "statistics.zarr"

    def write(content: str, replace: bool) -> None:
        with write_whole(path, replace) as unfinished:
            unfinished.mkdir()
            (unfinished / content).write_text("")

    write("mean", False)
    with pytest.raises(OSError, match=re.escape(str(path))):
        write("other", False)
    assert os.listdir(path) == ["mean"]
    write("std", True)
    assert (os.listdir(path), os.listdir(tmp_path)) == (["std"], [path.name])
