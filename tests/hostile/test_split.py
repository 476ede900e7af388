"""Splits that would train on what they test, or take another file than the one that is meant."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ofdft_norm import OFDataset
from ofdft_norm.config import LabelFiles, SplitConfig, Structures25Labels
from ofdft_norm.data.split import check_label_files, resolved_files
from ofdft_norm.data.split_files import SplitEntry, locate_entries
from ofdft_norm.errors import LabelFileError, SplitError

NAMES = [f"molecule_{i}.zarr.zip" for i in range(6)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two data sets with label files of the same names; only the names matter here."""
    for dataset in ("QM9", "QMUGS"):
        folder = tmp_path / dataset / "labels"
        folder.mkdir(parents=True)
        for name in NAMES:
            (folder / name).touch()
    (tmp_path / "QM9/labels/only_qm9.zarr.zip").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- one label file, reached on two paths -----------------------------------------------------------------------------

Change = Callable[[Path], Any]


def linked_folder(root: Path) -> None:
    (root / "link").symlink_to(root / "QM9")


def linked_file(root: Path) -> None:
    (root / "QM9/labels/other_name.zarr.zip").symlink_to(root / "QM9/labels" / NAMES[0])


def linked_chain(root: Path) -> None:
    (root / "far").mkdir()
    (root / "far/first.zarr.zip").symlink_to(root / "QM9/labels" / NAMES[0])
    (root / "QM9/labels/second.zarr.zip").symlink_to("../../far/first.zarr.zip")


def nothing(root: Path) -> None:
    pass


TWICE: list[tuple[str, Change, list[str]]] = [
    ("relative and absolute", nothing, ["QM9/labels", "{root}/QM9/labels"]),
    ("through the folder above", nothing, ["QM9/labels", "QM9/labels/../labels"]),
    ("trailing folder above", nothing, ["QM9/labels", "QMUGS/../QM9/labels"]),
    ("a file of the folder", nothing, ["{root}/QM9/labels", f"QM9/labels/{NAMES[2]}"]),
    ("a folder by a link", linked_folder, ["QM9/labels", "link/labels"]),
    ("a file by a link", linked_file, ["QM9/labels"]),
    ("a file by a chain of links", linked_chain, ["QM9/labels"]),
    ("a link and its target", linked_chain, ["far", f"QM9/labels/{NAMES[0]}"]),
    ("patterns", nothing, ["QM9/labels/*.zarr.zip", "./QM9/../QM9/l*/*_2.zarr.zip"]),
]


@pytest.mark.parametrize(("change", "paths"), [case[1:] for case in TWICE], ids=[case[0] for case in TWICE])
@pytest.mark.parametrize("whole", [False, True])
def test_one_label_file_on_two_paths(change: Change, paths: list[str], whole: bool, root: Path) -> None:
    change(root)
    source = LabelFiles(paths=[path.format(root=root) for path in paths], basis_info="basis.json")
    with pytest.raises(
        SplitError, match=r"label files that are listed twice: \d+ \(config: data\.split\.file"
    ) as error:
        source.everything(None) if whole else source.split_files(SplitConfig(train=0.5, val=0.5, test=0.0))
    assert "the same file as" in str(error.value)
    assert "molecule_" in str(error.value)


def test_the_same_pattern_twice_is_harmless(root: Path) -> None:
    source = LabelFiles(paths=["QM9/labels", "QM9/labels/molecule_*.zarr.zip"], basis_info="basis.json")
    parts, _ = source.split_files(SplitConfig(train=0.5, val=0.25, test=0.25))
    assert sum(map(len, parts.values())) == 7


def test_resolved_files_are_those_of_the_operating_system(root: Path) -> None:
    for change in (linked_folder, linked_file, linked_chain):
        change(root)
    paths = [
        p for folder in ("QM9/labels", "link/labels", "far", "QM9/../QMUGS/labels") for p in Path(folder).iterdir()
    ]
    paths += [path.absolute() for path in paths] + [Path("QM9/labels/.."), Path("absent/file.zarr")]
    assert resolved_files(paths) == [os.path.realpath(path) for path in paths]


@pytest.mark.parametrize(
    "name", ["two\nlines.zarr.zip", "tab\t.zarr.zip", "bell\x07.zarr", os.fsdecode(b"not\xffutf8.zarr")]
)
def test_names_that_cannot_be_printed(name: str, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"characters that cannot be printed: rename them: 1 \(config: data") as error:
        check_label_files({"train": [tmp_path / name]}, "split")
    assert str(error.value).isprintable() or str(error.value).count("\n") == 1


# --- entries of split files -------------------------------------------------------------------------------------------

Q0, U0 = f"QM9/labels/{NAMES[0]}", f"QMUGS/labels/{NAMES[0]}"
FOUND: list[tuple[Any, str]] = [
    (("QM9", NAMES[0], 4), Q0),
    (("QMUGS", NAMES[0], 4), U0),
    (Q0, Q0),
    (f"labels/{NAMES[0]}", ""),
    (f"QMUGS/labels/{NAMES[0]}", U0),
    (NAMES[0], ""),
    (("elsewhere", NAMES[0], 4), ""),
    (("QMUGS", "only_qm9.zarr.zip", 4), ""),
    (("QM9", "only_qm9.zarr.zip", 4), "QM9/labels/only_qm9.zarr.zip"),
    (("elsewhere", "only_qm9.zarr.zip", 4), "QM9/labels/only_qm9.zarr.zip"),
    ("only_qm9.zarr.zip", "QM9/labels/only_qm9.zarr.zip"),
    ("QMUGS/labels/only_qm9.zarr.zip", "QMUGS/labels/only_qm9.zarr.zip"),  # taken as a path, and missing later
]


@pytest.mark.parametrize(("entry", "expected"), FOUND)
def test_an_entry_finds_the_file_of_its_data_set_or_is_ambiguous(entry: Any, expected: str, root: Path) -> None:
    (root / "split.json").write_text(json.dumps({"train": [entry]}))
    source = LabelFiles(paths=["QM9/labels", "QMUGS/labels"], basis_info="basis.json")
    if expected:
        parts, iterations = source.split_files(SplitConfig(file="split.json"))
        assert parts["train"] == [Path(expected)]
        assert iterations == ({} if isinstance(entry, str) else {Path(expected): 4})
        return
    with pytest.raises(SplitError, match=r"split\.json: the entry .* fits [02] label files.*data\.split\.file"):
        source.split_files(SplitConfig(file="split.json"))


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"train": [NAMES[1], NAMES[1]]}, "(in train and train)"),
        ({"train": [NAMES[1]], "val": [NAMES[1]]}, "(in train and val)"),
        ({"train": [NAMES[1]], "test": [f"./QM9/labels/{NAMES[1]}"]}, "(in train and test)"),
        ({"train": [NAMES[1]], "val": [f"{{root}}/QM9/labels/{NAMES[1]}"]}, "(in train and val; the same file as"),
        ({"train": [("QM9", NAMES[1], 4)], "val": [("other", NAMES[1], 3)]}, "(in train and val)"),
        ({"val": [NAMES[1]], "train": []}, "the training split has no molecule"),
    ],
)
def test_a_split_file_that_lists_a_label_file_twice(split: Any, words: str, root: Path) -> None:
    (root / "split.json").write_text(json.dumps(split).replace("{root}", str(root)))
    with pytest.raises(SplitError) as error:
        LabelFiles(paths="QM9/labels", basis_info="basis.json").split_files(SplitConfig(file="split.json"))
    assert words in str(error.value)
    assert "split.json" in str(error.value)
    assert "(config: data.split" in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ".",
        "..",
        "molecule_1",
        3,
        None,
        True,
        ["QM9", NAMES[1]],
        ["QM9", NAMES[1], 0],
        ["QM9", NAMES[1], -3],
        ["QM9", NAMES[1], 2.5],
        ["QM9", NAMES[1], "many"],
        ["QM9", NAMES[1], True],
        ["QM9", "molecule_1", 4],
        {"name": NAMES[1]},
    ],
)
def test_an_entry_that_is_none(entry: Any, root: Path) -> None:
    (root / "split.json").write_text(json.dumps({"train": [entry]}))
    for source in (
        LabelFiles(paths="QM9/labels", basis_info="basis.json"),
        Structures25Labels(root=str(root), dataset="QM9"),
    ):
        with pytest.raises(SplitError, match=r"split\.json: train has the entry .*\(config: data\.split\.file\)"):
            source.split_files(SplitConfig(file="split.json"))


def test_data_sets_that_share_a_folder(root: Path) -> None:
    linked_folder(root)
    (root / "split.json").write_text(json.dumps({"train": [("QM9", NAMES[0], 4)], "test": [("link", NAMES[0], 4)]}))
    source = Structures25Labels(root=str(root), dataset=["QM9", "link"])
    with pytest.raises(SplitError, match=r"(?s)listed twice: 1 .*\(in train and test; the same file as "):
        source.split_files(SplitConfig(file="split.json"))


def test_a_path_out_of_the_data_set(root: Path) -> None:
    parts = {"train": [["QM9", f"../../QMUGS/labels/{NAMES[0]}", 4]]}
    (root / "split.json").write_text(json.dumps(parts))
    with pytest.raises(SplitError, match="missing label files: 1"):
        Structures25Labels(root=str(root), dataset="QM9").split_files(SplitConfig(file="split.json"))


def test_excluded_entries_are_left_out() -> None:
    parts = {"train": [SplitEntry("a.zarr"), SplitEntry("b.zarr")]}
    located, _ = locate_entries(parts, [Path("folder/a.zarr")], ["b.zarr"], "split.json")
    assert located == {"train": [Path("folder/a.zarr")]}


# --- one name for two molecules ---------------------------------------------------------------------------------------


def test_two_geometries_of_one_name(labels: Any, basis_info: Any) -> None:
    first = labels.write("water.zarr.zip")
    other = labels.write("water.zarr")
    dataset = OFDataset([first, other], basis_info)
    dataset.molecule_batch(0)
    dataset.molecule_batch(0)
    for read in (lambda: dataset.molecule_batch(1), lambda: dataset[5]):
        with pytest.raises(LabelFileError, match="molecule 'water' has another geometry than the molecule of") as error:
            read()
        assert str(first) in str(error.value)
        assert str(other) in str(error.value)
        assert "data.source.exclude" in str(error.value)


def test_two_files_of_one_molecule(labels: Any, basis_info: Any) -> None:
    first = labels.write("water.zarr.zip")
    copy = Path(shutil.copy(first, first.with_name("copy.zarr.zip")))
    dataset = OFDataset([first, copy], basis_info)
    assert [dataset.molecule_batch(i).mol_id[0] for i in (0, 1)] == ["water", "water"]
