"""Splits of a data set: which molecules train, validate and test. A molecule is never divided between parts."""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ofdft_norm.data.files import read_json, read_yaml
from ofdft_norm.errors import SplitError, counted
from ofdft_norm.settings import NonNegativeInt, Settings, Share

PARTS = ("train", "val", "test")
SUFFIXES = (".zarr", ".zarr.zip")

Parts = dict[str, list[str]]


class SplitConfig(Settings):
    """Which molecules train, validate and test. Molecules are never divided: their SCF iterations stay together.

    Attributes:
        train: Share of the molecules to train on, 0 ... 1.
        val: Share to validate on.
        test: Share to test on.
        seed: Seed of the random split.
        file: A YAML, JSON or npz file with lists of label files for `train`, `val`, `test`; shares and seed are then
            not used.
    """

    train: Share = 0.8
    val: Share = 0.1
    test: Share = 0.1
    seed: NonNegativeInt = 1
    file: str | None = None
    config_key = "data.split"


def random_split(members: Sequence[str], split: SplitConfig, where: str) -> Parts:
    """Divides members (label files, frames, molecules) at random; their order does not matter.

    Returns the members of each part, in sorted order. Raises SplitError if a part with a positive share gets none.
    """
    shares = {name: getattr(split, name) for name in PARTS}
    total = sum(shares.values())
    if total > 1 + 1e-9:
        raise SplitError(f"the shares {shares} add up to more than 1 (config: data.split)")
    if not members:
        raise SplitError(f"{where} has no molecule to split (config: data.source)")
    n, ordered = len(members), sorted(members, key=_path_parts)
    order = np.random.default_rng(split.seed).permutation(n)
    # val and test are rounded; training takes the rest where the shares add up to 1
    n_val, n_test = round(split.val * n), round(split.test * n)
    rest = n - n_val - n_test
    n_train = max(0, rest if abs(total - 1) < 1e-9 else min(rest, round(split.train * n)))
    parts = dict(zip(PARTS, np.split(order, np.cumsum([n_train, n_val, n_test]))[:3], strict=True))
    empty = [name for name, drawn in parts.items() if shares[name] > 0 and not len(drawn)]
    if empty:
        what = f"the shares {shares} of {counted(n, 'molecule')} leave {empty} without a molecule"
        raise SplitError(f"{where}: {what} (config: data.split)")
    return {name: sorted((ordered[i] for i in drawn), key=_path_parts) for name, drawn in parts.items()}


def _path_parts(member: str) -> tuple[str, ...]:
    return Path(member).parts


class SplitEntry(NamedTuple):
    """A molecule in a split file: its label file and, where given, its data set and number of SCF iterations."""

    name: str
    dataset: str | None = None
    n_scf_iterations: int | None = None


def read_split(path: str | Path) -> dict[str, list[SplitEntry]]:
    """Reads the entries of each part from a ``.yaml``, ``.json`` or ``.npz`` file with keys `train`, `val`, `test`.

    Entries are names of label files, or (data set, label file, number of SCF iterations), as STRUCTURES25 writes them.
    """
    path = Path(path)
    if not path.is_file():
        raise SplitError(f"{path}: no such split file (config: data.split.file)")
    content = _read_content(path)
    if not isinstance(content, dict) or "train" not in content or not set(content) <= set(PARTS):
        found = sorted(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise SplitError(f"{path}: expected a mapping with the keys {list(PARTS)}, found {found} (config: data.split)")
    parts = {}
    for part, entries in content.items():
        if not isinstance(entries, list):
            raise SplitError(f"{path}: {part} is a {type(entries).__name__}, expected a list (config: data.split.file)")
        parts[part] = [_parse_entry(path, part, entry) for entry in entries]
    return parts


_READERS = {".yaml": read_yaml, ".yml": read_yaml, ".json": read_json}


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
        return _READERS[path.suffix](path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SplitError(f"{path}: cannot be read as a split: {error} (config: data.split.file)") from error
    except KeyError:
        raise SplitError(f"{path}: expected a .yaml, .json or .npz file (config: data.split.file)") from None


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
    """Finds the label files of a split; also returns their numbers of SCF iterations where the split has them.

    An entry of a data set that is the name of a folder above some files is one of these. A name with folders must be
    the end of a path. A name that is not found is a path of its own.
    """
    by_name: dict[str, list[Path]] = {}
    for path in map(Path, files):
        by_name.setdefault(path.name, []).append(path)
    datasets = {name for paths in by_name.values() for path in paths for name in path.parts[:-1]}
    located: Parts = {part: [] for part in entries}
    iterations: dict[str, int] = {}
    for part, entry in ((part, entry) for part, of_part in entries.items() for entry in of_part):
        name, known = Path(entry.name), entry.dataset in datasets
        if name.name in exclude:
            continue
        found = [path for path in by_name.get(name.name, []) if path.parts[-len(name.parts) :] == name.parts]
        if known:
            found = [path for path in found if entry.dataset in path.parts[:-1]]
        if len(found) > 1 or (known and not found):
            raise SplitError(
                f"{where}: the entry {entry.name!r} of the data set {entry.dataset!r} fits {len(found)} label files, "
                f"{list(map(str, found[:5]))}, expected one: write more of its path (config: data.split.file)"
            )
        located[part].append(str(found[0] if found else name))
        if entry.n_scf_iterations is not None:
            iterations[located[part][-1]] = entry.n_scf_iterations
    if not located["train"]:
        raise SplitError(f"{where}: the training split has no molecule (config: data.split)")
    return located, iterations


def refuse_members(where: str, what: str, found: Sequence[str]) -> None:
    """Raises a SplitError that lists the first members of `found`, if there are any."""
    if found:
        shown = "\n  ".join([*found[:20], *(["..."] if len(found) > 20 else [])])
        raise SplitError(f"{where}: {what}: {len(found)} (config: data.split.file, data.source.paths)\n  {shown}")


def refuse_repeated(parts: Parts, where: str) -> None:
    """Refuses files that are reached twice, on any paths and over links."""
    folders = {folder: os.path.realpath(folder) for of in parts.values() for folder in set(map(os.path.dirname, of))}
    seen: dict[str, tuple[str, str]] = {}
    twice = []
    for part, path in ((part, path) for part, paths in parts.items() for path in paths):
        folder, name = os.path.split(path)
        file = os.path.realpath(path) if os.path.islink(path) else os.path.join(folders[folder], name)
        if file in seen:
            other_part, other = seen[file]
            same = "" if other == path else f"; the same file as {other}"
            twice.append(f"{path} (in {other_part} and {part}{same})")
        seen[file] = part, path
    refuse_members(where, "files that are listed twice", twice)


def refuse_copies(parts: Parts, geometry_of: Callable[[str], Hashable | None], where: str) -> None:
    """Refuses label files of one name in several folders or packed sets that hold the same geometry (None: unknown)."""
    members = [path for paths in parts.values() for path in paths]
    names = [os.path.basename(path).removesuffix(".zip").removesuffix(".zarr") for path in members]
    several = {name for name, n in Counter(names).items() if n > 1}
    known: dict[Hashable, str] = {}
    copies = []
    for path, name in zip(members, names, strict=True):
        geometry = geometry_of(path) if name in several else None
        if geometry is not None and (first := known.setdefault((name, geometry), path)) != path:
            copies.append(f"{path}: a copy of {first}")
    refuse_members(where, "label files with the name and geometry of another one: give one of them", copies)
