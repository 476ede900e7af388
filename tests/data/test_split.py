"""Splits: the same molecules as ever, none in two parts, and split files that are no code."""

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ofdft_norm.data.dataset import OFDataset
from ofdft_norm.data.pack import pack_labels
from ofdft_norm.data.sources import EmbeddedLabels, LabelFiles, PackedLabels
from ofdft_norm.data.split import SplitConfig, select_shard, split_randomly
from ofdft_norm.errors import ConfigError, SplitError

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


def files(*paths: str) -> LabelFiles:
    return LabelFiles(list(paths), "basis.json")


def write_split(path: Path, split: Any) -> SplitConfig:
    if path.suffix == ".npz":
        np.savez(path, **{part: np.array(entries) for part, entries in split.items()})
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(json.loads(json.dumps(split))))
    elif path.suffix == ".json":
        path.write_text(json.dumps(split))
    else:
        path.write_bytes(pickle.dumps(split))
    return SplitConfig(file=str(path))


# --- random splits ----------------------------------------------------------------------------------------------------

MEMBERS = [f"b/m-{i}.zarr" for i in range(12)] + [f"a/x{i}.zarr.zip" for i in range(11)] + ["/data/z@3.zarr"]


def test_random_splits_are_those_of_earlier_versions() -> None:
    parts = split_randomly(MEMBERS[::-1], SplitConfig(0.5, 0.2, 0.3, seed=7), "here")
    test = "a/x1.zarr.zip a/x3.zarr.zip a/x7.zarr.zip a/x9.zarr.zip b/m-6.zarr b/m-7.zarr b/m-9.zarr"
    assert parts["val"] == ["a/x0.zarr.zip", "a/x4.zarr.zip", "b/m-1.zarr", "b/m-2.zarr", "b/m-8.zarr"]
    assert parts["test"] == test.split()
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == sorted(MEMBERS)


def test_the_embedded_labels_have_their_own_split_by_default() -> None:
    parts = EmbeddedLabels().parts(SplitConfig())
    assert list(parts) == ["train", "val", "test", "test_molecules"]
    assert sorted(path for members in parts.values() for path in members) == sorted(EmbeddedLabels().everything())
    names = {part: [os.path.basename(path).split(".")[0] for path in paths] for part, paths in parts.items()}
    molecules = {part: {re.sub(r"_\d+$", "", name) for name in of} for part, of in names.items()}
    assert molecules["val"] == molecules["test"] < molecules["train"]
    assert not molecules["test_molecules"] & molecules["train"]
    assert list(EmbeddedLabels().parts(SplitConfig(seed=2))) == ["train", "val", "test"]


def test_shards_share_all_files_whatever_others_there_are() -> None:
    shards = [select_shard(MEMBERS, f"{k}/3") for k in (1, 2, 3)]
    assert sorted(member for shard in shards for member in shard) == sorted(MEMBERS)
    assert [set(select_shard(MEMBERS[5:], f"{k}/3")) for k in (1, 2, 3)] == [set(s) & set(MEMBERS[5:]) for s in shards]
    assert select_shard(["/elsewhere/x3.zarr.zip"], "1/1") == ["/elsewhere/x3.zarr.zip"]
    for shard in ("0/4", "5/4", "1", "a/b"):
        with pytest.raises(ConfigError, match=f"shard: got '{shard}'"):
            select_shard(MEMBERS, shard)


def test_shares_that_leave_a_part_empty_are_refused() -> None:
    with pytest.raises(SplitError, match=r"here: the shares .* of 3 molecules leave 'val' without"):
        split_randomly(MEMBERS[:3], SplitConfig(), "here")
    with pytest.raises(SplitError, match="add up to more than 1"):
        split_randomly(MEMBERS, SplitConfig(0.8, 0.2, 0.2), "here")
    parts = split_randomly(MEMBERS, SplitConfig(0.3, 0.3, 0.0), "here")
    assert {part: len(members) for part, members in parts.items()} == {"train": 7, "val": 7}


# --- one label file, reached on two paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "paths",
    [
        ["QM9/labels", "{root}/QM9/labels"],
        ["QM9/labels", "link/labels"],
        ["QM9/labels", "QMUGS/third.zarr.zip"],
        ["QM9/labels/*.zarr.zip", "./QM9/../QM9/l*/*_2.zarr.zip"],
    ],
)
def test_one_label_file_on_two_paths(paths: list[str], whole: bool, root: Path) -> None:
    (root / "link").symlink_to(root / "QM9")
    (root / "QMUGS/third.zarr.zip").hardlink_to(root / "QM9/labels" / NAMES[1])
    source = files(*(path.format(root=root) for path in paths))
    with pytest.raises(SplitError, match=r"listed twice: \d+ \(config: data\.split\.file.*(?s:.*)the same file as"):
        source.everything() if whole else source.parts(SplitConfig(0.5, 0.5, 0.0))


# --- copies of labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_copies_of_labels_in_two_folders_are_refused(
    packed: bool, labels: Any, basis_file: str, tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    names = [f"molecule_{i}.zarr.zip" for i in range(4)]
    for i, name in enumerate(names):
        shutil.move(labels.write(name), folders[i % 2] / name)
    shutil.copy(folders[0] / names[0], folders[1] / names[0])  # a copy
    shutil.move(labels.write(names[1]), folders[0] / names[1])  # another geometry under the same name
    source: Any = LabelFiles(list(map(str, folders)), basis_file)
    if packed:
        sets = [OFDataset(sorted(folder.iterdir()), labels.basis_info) for folder in folders]
        source = PackedLabels([str(pack_labels(s, tmp_path / f"{i}", progress=False)) for i, s in enumerate(sets)])
    for use in (source.everything, lambda: source.parts(SplitConfig(0.5, 0.25, 0.25))):
        with pytest.raises(SplitError, match=r"name and geometry of another one: .*: 1 ") as error:
            use()
        assert str(error.value).count(names[0]) == 2
        assert names[1] not in str(error.value)


# --- split files ------------------------------------------------------------------------------------------------------

ENTRY = "expected the name of a label file"
Q0, U0 = f"QM9/labels/{NAMES[0]}", f"QMUGS/labels/{NAMES[0]}"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (("QM9", NAMES[0], 4), Q0),
        (("QMUGS", NAMES[0], 4), U0),
        (Q0, Q0),
        (("QM9", "only_qm9.zarr.zip", 4), "QM9/labels/only_qm9.zarr.zip"),
        (("elsewhere", "only_qm9.zarr.zip", 4), "QM9/labels/only_qm9.zarr.zip"),
        ("only_qm9.zarr.zip", "QM9/labels/only_qm9.zarr.zip"),
        ("QMUGS/labels/only_qm9.zarr.zip", "QMUGS/labels/only_qm9.zarr.zip"),  # a path of its own, missing when opened
        (f"labels/{NAMES[0]}", None),
        (NAMES[0], None),
        (("elsewhere", NAMES[0], 4), None),
        (("QMUGS", "only_qm9.zarr.zip", 4), None),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".yaml", ".npz"])
def test_an_entry_finds_the_file_of_its_data_set_or_is_ambiguous(
    entry: Any, expected: str | None, suffix: str, root: Path
) -> None:
    split = write_split(root / f"split{suffix}", {"train": [entry]})
    source = files("QM9/labels", "QMUGS/labels")
    if expected is None:
        with pytest.raises(SplitError, match=r"split\..*: the entry .* fits [02] label files.*data\.split\.file"):
            source.parts(split)
    else:
        assert source.parts(split) == {"train": [expected]}


@pytest.mark.parametrize(
    ("split", "words"),
    [
        *(({"train": [["QM9", NAMES[1], n]]}, ENTRY) for n in (1e30, 10**30, 0, 2.5, None, True)),
        *(({"train": [entry]}, ENTRY) for entry in (["QM9", ["a"], 3], ["QM9", "a"], {"a": 1}, None)),
        ({"train": "a"}, "train is a str, expected a list"),
        ({"training": ["a"]}, "with the keys ['train', 'val', 'test'] and test_..., found ['training']"),
        ([["a"]], "expected a mapping"),
        (float("nan"), "cannot be read as a split"),
        ({"train": [NAMES[1], NAMES[1]]}, "(in train and train)"),
        ({"train": [NAMES[1]], "test": [f"./QM9/labels/{NAMES[1]}"]}, "(in train and test)"),
        ({"train": [NAMES[1]], "val": [f"{{root}}/QM9/labels/{NAMES[1]}"]}, "(in train and val; the same file as"),
        ({"val": [NAMES[1]], "train": []}, "the training split has no molecule"),
        ({"train": [NAMES[1]], "test_$x$": [NAMES[2]]}, "expected a mapping with the keys"),
    ],
)
def test_wrong_split_files_are_named(split: Any, words: str, root: Path) -> None:
    (root / "split.json").write_text(json.dumps(split).replace("{root}", str(root)))
    with pytest.raises(SplitError) as error:
        files("QM9/labels").parts(SplitConfig(file="split.json"))
    assert words in str(error.value)
    assert "split.json" in str(error.value)
    assert "(config: data.split" in str(error.value)


def test_excluded_entries_may_be_missing_and_unknown_exclusions_not(root: Path) -> None:
    entries = {"train": [NAMES[1], "gone.zarr.zip"], "test_far": [NAMES[3]], "test": [NAMES[2]]}
    source = LabelFiles("QM9/labels", "basis.json", exclude=["only_qm9.zarr.zip", NAMES[2]])
    parts = source.parts(write_split(root / "split.json", entries))
    assert parts == {"train": [f"QM9/labels/{NAMES[1]}", "gone.zarr.zip"], "test_far": [f"QM9/labels/{NAMES[3]}"]}
    with pytest.raises(ConfigError, match=r"exclude has \['absent.zarr'\].*data\.source\.exclude"):
        LabelFiles("QM9/labels", "basis.json", exclude=["absent.zarr"]).everything()
    with pytest.raises(ConfigError, match=r"nowhere: no label file"):
        files("nowhere").everything()


def test_pickled_splits_are_never_opened_and_the_proposed_conversion_works(root: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (root / "exploded",)

    np.savez(root / "split.npz", train=np.array([Bomb()], dtype=object))
    write_split(root / "bomb.pkl", {"train": [Bomb()]})
    for name, words in (("split.npz", "cannot be read as a split"), ("bomb.pkl", r"pickle\.load")):
        with pytest.raises(SplitError, match=rf"{name}: .*{words}"):
            files("QM9/labels").parts(SplitConfig(file=str(root / name)))
    assert not (root / "exploded").exists()
    good = write_split(root / "good.pkl", {"train": [("QM9", NAMES[0], 4)]})
    with pytest.raises(SplitError) as caught:
        files("QM9/labels").parts(good)
    command = str(caught.value).split("`")[1].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, cwd=root, check=True)
    assert files("QM9/labels").parts(SplitConfig(file="split.json")) == {"train": [Q0]}
