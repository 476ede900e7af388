"""Splits of a data set: which molecules train, validate and test. A molecule is never divided between parts."""

from __future__ import annotations

import os
import re
import zipfile
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
    shares = {"train": split.train, "val": split.val, "test": split.test}
    if sum(shares.values()) > 1 + 1e-9:
        raise SplitError(f"the shares {shares} add up to more than 1 (config: data.split)")
    if not members:
        raise SplitError(f"{where} has no molecule to split (config: data.source)")
    ordered = sorted(members, key=_path_parts)
    order = np.random.default_rng(split.seed).permutation(len(ordered))
    # val and test are rounded; training takes the rest where the shares add up to 1
    sizes = {name: round(shares[name] * len(ordered)) for name in ("val", "test")}
    rest = len(ordered) - sum(sizes.values())
    sizes["train"] = rest if abs(sum(shares.values()) - 1) < 1e-9 else min(rest, round(shares["train"] * len(ordered)))
    empty = [name for name in PARTS if shares[name] > 0 and sizes[name] <= 0]
    if empty:
        raise SplitError(
            f"{where}: the shares {shares} of {counted(len(ordered), 'molecule')} leave {empty} without a molecule "
            "(config: data.split)"
        )
    parts, start = {}, 0
    for name in PARTS:
        parts[name] = sorted((ordered[i] for i in order[start : start + sizes[name]]), key=_path_parts)
        start += sizes[name]
    return parts


def _path_parts(member: str) -> tuple[str, ...]:
    return Path(member).parts


# --- split files ------------------------------------------------------------------------------------------------------


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
    for part, entries in content.items():
        if not isinstance(entries, list):
            raise SplitError(f"{path}: {part} is a {type(entries).__name__}, expected a list (config: data.split.file)")
    return {part: [_parse_entry(path, part, entry) for entry in entries] for part, entries in content.items()}


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
        if path.suffix in (".yaml", ".yml"):
            return read_yaml(path)
        if path.suffix == ".json":
            return read_json(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SplitError(f"{path}: cannot be read as a split: {error} (config: data.split.file)") from error
    raise SplitError(f"{path}: expected a .yaml, .json or .npz file, not {path.suffix!r} (config: data.split.file)")


def _parse_entry(path: Path, part: str, entry: Any) -> SplitEntry:
    if isinstance(entry, str) and entry.endswith(SUFFIXES):
        return SplitEntry(entry)
    if isinstance(entry, list | tuple) and len(entry) == 3 and all(isinstance(e, str | int) for e in entry):
        dataset, name, n_iterations = map(str, entry)
        if name.endswith(SUFFIXES) and re.fullmatch("0*[1-9][0-9]{0,8}", n_iterations):
            return SplitEntry(name, dataset, int(n_iterations))
    raise SplitError(
        f"{path}: {part} has the entry {entry!r}; expected the name of a label file ({SUFFIXES}), or (data set, "
        "label file, number of SCF iterations) (config: data.split.file)"
    )


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
                f"{[str(path) for path in found[:5]]}, expected one: write more of its path (config: data.split.file, "
                "data.source.paths)"
            )
        located[part].append(str(found[0] if found else name))
        if entry.n_scf_iterations is not None:
            iterations[located[part][-1]] = entry.n_scf_iterations
    if not located["train"]:
        raise SplitError(f"{where}: the training split has no molecule (config: data.split)")
    return located, iterations


# --- checks of members ------------------------------------------------------------------------------------------------

_SHOWN = 20


def refuse_members(where: str, what: str, found: Sequence[str]) -> None:
    """Raises a SplitError that lists the members `found`, if there are any."""
    if found:
        shown = [*found[:_SHOWN], *([f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])]
        raise SplitError(
            f"{where}: {what}: {len(found)} (config: data.split.file, data.source.paths)\n  " + "\n  ".join(shown)
        )


def refuse_missing(part: str, paths: Sequence[str], where: str) -> None:
    """Refuses a part with label files that do not exist, or are pipes: a reader would wait for a writer."""
    missing = [path for path in paths if not (os.path.isfile(path) or os.path.isdir(path))]
    refuse_members(where, f"label files of the {part} split that do not exist, or are no regular files", missing)


def refuse_repeated(parts: Mapping[str, Sequence[str]], where: str) -> None:
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


def refuse_copies(
    parts: Mapping[str, Sequence[str]], geometry_of: Callable[[str], Hashable | None], where: str
) -> None:
    """Refuses label files of one name in several folders or packed sets that hold the same geometry.

    `geometry_of` is called for label files that share their name; None: unknown.
    """
    by_name: dict[str, list[str]] = {}
    for path in (path for paths in parts.values() for path in paths):
        by_name.setdefault(os.path.basename(path).removesuffix(".zip").removesuffix(".zarr"), []).append(path)
    copies = []
    for same_name in (paths for paths in by_name.values() if len(paths) > 1):
        known: dict[Hashable, str] = {}
        for path in same_name:
            geometry = geometry_of(path)
            if geometry is not None and known.setdefault(geometry, path) != path:
                copies.append(f"{path}: a copy of {known[geometry]}")
    refuse_members(where, "label files with the name and geometry of another one: give one of them", copies)
