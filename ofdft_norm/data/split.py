"""Splits of a data set: which molecules train, validate and test. A molecule is never divided between parts."""

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cache
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ofdft_norm.data.files import read_plain
from ofdft_norm.errors import ConfigError, SplitError, format_count
from ofdft_norm.settings import NonNegativeInt, Settings, Share

PARTS = ("train", "val", "test")
SUFFIXES = (".zarr", ".zarr.zip")

Parts = dict[str, list[str]]

# order of paths: files of one folder stand together
BY_FOLDERS = methodcaller("split", os.sep)


class SplitConfig(Settings):
    """Which molecules train, validate and test. Molecules are never divided: their SCF iterations stay together.

    Attributes:
        train: Share of the molecules to train on, 0 ... 1.
        val: Share to validate on.
        test: Share to test on.
        seed: Seed of the random split.
        file: A YAML, JSON or npz file with lists of label files for `train`, `val`, `test` and any ``test_<name>``;
            shares and seed are then not used.
    """

    train: Share = 0.8
    val: Share = 0.1
    test: Share = 0.1
    seed: NonNegativeInt = 1
    file: str | None = None
    config_key = "data.split"


def split_randomly(members: Sequence[str], split: SplitConfig, where: str) -> Parts:
    """Divides members (label files, frames, molecules) at random; their order does not matter."""
    shares = {"train": split.train, "val": split.val, "test": split.test}
    total = sum(shares.values())
    if total > 1 + 1e-9:
        raise SplitError(f"the shares {shares} add up to more than 1 (config: data.split)")
    if not members:
        raise SplitError(f"{where} has no molecule to split (config: data.source)")
    n, ordered = len(members), sorted(members, key=BY_FOLDERS)
    order = np.random.default_rng(split.seed).permutation(n)
    # val and test are rounded; training takes the rest if the shares add up to 1
    n_val, n_test = round(split.val * n), round(split.test * n)
    rest = n - n_val - n_test
    n_train = max(0, rest if abs(total - 1) < 1e-9 else min(rest, round(split.train * n)))
    parts: Parts = {}
    for name, drawn in zip(PARTS, np.split(order, np.cumsum([n_train, n_val, n_test])), strict=False):
        if len(drawn):
            parts[name] = list(map(ordered.__getitem__, sorted(drawn)))
        elif shares[name] > 0:
            what = f"the shares {shares} of {format_count(n, 'molecule')} leave {name!r} without a molecule"
            raise SplitError(f"{where}: {what} (config: data.split)")
    return parts


class SplitEntry(NamedTuple):
    """A molecule in a split file: its label file and, if given, its data set and number of SCF iterations."""

    name: str
    dataset: str | None = None
    n_scf_iterations: int | None = None


def read_split(path: str | Path) -> dict[str, list[SplitEntry]]:
    """Reads the entries of each part from a file: names of label files, or triples as STRUCTURES25 writes them."""
    path = Path(path)
    if not path.is_file():
        raise SplitError(f"{path}: no such split file (config: data.split.file)")
    content = _read_content(path)
    known = isinstance(content, dict) and all(re.fullmatch(r"train|val|test(_\w+)?", str(part)) for part in content)
    if not known or "train" not in content:
        found = sorted(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        what = f"expected a mapping with the keys {list(PARTS)} and test_..., found {found}"
        raise SplitError(f"{path}: {what} (config: data.split)")
    parts = {}
    for part, entries in content.items():
        if not isinstance(entries, list):
            raise SplitError(f"{path}: {part} is a {type(entries).__name__}, expected a list (config: data.split.file)")
        parts[part] = [_parse_entry(path, part, entry) for entry in entries]
    return parts


def _read_content(path: Path) -> Any:
    if path.suffix in (".pkl", ".pickle"):
        raise SplitError(
            f"{path}: a pickle can run code and is never opened; if you trust the file, convert it once with "
            f"`python -c \"import json, pickle; json.dump(pickle.load(open({str(path)!r}, 'rb')), "
            f"open('split.json', 'w'))\"` and use split.json (config: data.split.file)"
        )
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key].tolist() for key in file.files}
        return read_plain(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SplitError(f"{path}: cannot be read as a split: {error} (config: data.split.file)") from error


def _parse_entry(path: Path, part: str, entry: Any) -> SplitEntry:
    if isinstance(entry, str) and entry.endswith(SUFFIXES):
        return SplitEntry(entry)
    if isinstance(entry, list | tuple) and len(entry) == 3 and all(isinstance(e, str | int) for e in entry):
        dataset, name, n_iterations = map(str, entry)
        if name.endswith(SUFFIXES) and re.fullmatch("0*[1-9][0-9]{0,8}", n_iterations):
            return SplitEntry(name, dataset, int(n_iterations))
    expected = f"the name of a label file ({SUFFIXES}), or (data set, label file, number of SCF iterations)"
    raise SplitError(f"{path}: {part} has the entry {entry!r}; expected {expected} (config: data.split.file)")


def locate_entries(
    entries: Mapping[str, Sequence[SplitEntry]], files: Sequence[str], exclude: Collection[str], where: str
) -> tuple[Parts, dict[str, int]]:
    """Finds the label files of a split, or else uses names as paths; also returns known numbers of SCF iterations.

    If a folder above some of the files has the name of an entry's data set, the entry is one of these files.
    """
    by_name: dict[str, list[Path]] = {}
    for path in map(Path, files):
        by_name.setdefault(path.name, []).append(path)
    datasets = {name for paths in by_name.values() for path in paths for name in path.parts[:-1]}
    located: Parts = {}
    iterations: dict[str, int] = {}
    for part, entry in ((part, entry) for part, of_part in entries.items() for entry in of_part):
        name, known = Path(entry.name), entry.dataset in datasets
        if name.name in exclude:
            continue
        found = [path for path in by_name.get(name.name, []) if path.parts[-len(name.parts) :] == name.parts]
        if known:
            found = [path for path in found if entry.dataset in path.parts[:-1]]
        if len(found) > 1 or (known and not found):
            what = f"the entry {entry.name!r} of the data set {entry.dataset!r} fits {len(found)} label files"
            raise SplitError(f"{where}: {what}, {list(map(str, found[:5]))}, expected one (config: data.split.file)")
        file = str(found[0] if found else name)
        located.setdefault(part, []).append(file)
        if entry.n_scf_iterations is not None:
            iterations[file] = entry.n_scf_iterations
    if "train" not in located:
        raise SplitError(f"{where}: the training split has no molecule (config: data.split)")
    return located, iterations


def make_list_error(where: str, what: str, found: Sequence[str]) -> SplitError:
    """Returns an error that lists the first members of `found`."""
    shown = "\n  ".join([*found[:20], *(["..."] if len(found) > 20 else [])])
    return SplitError(f"{where}: {what}: {len(found)} (config: data.split.file, data.source.paths)\n  {shown}")


def parse_shard(shard: str) -> tuple[int, int]:
    """Returns K and N of ``"K/N"``, the K-th of N jobs."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"shard: got {shard!r}, expected K/N with K in 1 ... N, such as 3/16 (option shard)")
    return int(found[1]), int(found[2])


def select_shard(members: Sequence[str], shard: str) -> list[str]:
    """Returns the members of one of N shards; the shard of a label file depends on its name alone."""
    k, n = parse_shard(shard)
    return [member for member in members if zlib.crc32(os.path.basename(member).encode()) % n == k - 1]


def refuse_doubles(parts: Parts, where: str, geometry_of: Callable[[str], Hashable | None] | None = None) -> None:
    """Refuses files that are reached twice, on any path or link; with `geometry_of` also copies under the same name."""
    real_folder = cache(os.path.realpath)
    seen: dict[Hashable, tuple[str, str]] = {}
    by_name: dict[str, list[str]] = {}
    twice, copies = [], []
    for part, paths in parts.items():
        for path in paths:
            folder, name = os.path.split(path)
            try:
                status = os.stat(path)
                file: Hashable = status.st_dev, status.st_ino
            except OSError:  # a molecule of a packed set, or a missing file
                file = os.path.join(real_folder(folder), name)
            if file in seen:
                other_part, other = seen[file]
                same = "" if other == path else f"; the same file as {other}"
                twice.append(f"{path} (in {other_part} and {part}{same})")
            seen[file] = part, path
            by_name.setdefault(name.removesuffix(".zip").removesuffix(".zarr"), []).append(path)
    if twice:
        raise make_list_error(where, "files that are listed twice", twice)
    for paths in by_name.values():
        if geometry_of is not None and len(paths) > 1:
            known: dict[Hashable, str] = {}
            for path in paths:
                first = path if (geometry := geometry_of(path)) is None else known.setdefault(geometry, path)
                if first != path:
                    copies.append(f"{path}: a copy of {first}")
    if copies:
        raise make_list_error(where, "label files with the name and geometry of another one: give one of them", copies)
