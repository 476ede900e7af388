"""Splits of a data set's molecules; a molecule is never divided between splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ofdft_norm.errors import SplitError, counted
from ofdft_norm.settings import NonNegativeInt, Settings, Share

SPLITS = ("train", "val", "test")

_SHOWN = 20


class SplitConfig(Settings):
    """Which molecules train, validate and test. Molecules are never divided, and SCF iterations stay together.

    Attributes:
        train: Share of the molecules to train on, 0 ... 1.
        val: Share to validate on.
        test: Share to test on.
        seed: Seed of the random split.
        file: A YAML, JSON or npz file with lists of label files for `train`, `val`, `test`; then the shares and the
            seed are not used.
    """

    train: Share = 0.8
    val: Share = 0.1
    test: Share = 0.1
    seed: NonNegativeInt = 1
    file: str | None = None
    config_key = "data.split"


def random_split(
    paths: Sequence[Path], fractions: dict[str, float], seed: int, where: str = "the data set"
) -> dict[str, list[Path]]:
    """Divides label files, one molecule each, at random.

    Args:
        paths: The label files; their order does not matter.
        fractions: Share of each of `SPLITS`, adding up to at most 1.
        seed: Same seed and files, same split.
        where: Names the data set in messages.

    Returns:
        The files of each split, in sorted order.

    Raises:
        SplitError: If fractions are out of range, there are no files, or a split with a positive share gets none.
    """
    shares = {name: float(fractions.get(name, 0.0)) for name in SPLITS}
    if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise SplitError(
            f"split fractions {shares}: expected numbers in 0 ... 1 that add up to at most 1 (config: data.split)"
        )
    if not paths:
        raise SplitError(f"{where} has no label files to split (config: data.source)")
    ordered = sorted(paths, key=_parts)
    order = np.random.default_rng(seed).permutation(len(ordered))
    # val and test are rounded; training takes what its share leaves room for, up to all the rest
    sizes = {name: round(shares[name] * len(ordered)) for name in ("val", "test")}
    rest = len(ordered) - sum(sizes.values())
    sizes["train"] = rest if abs(sum(shares.values()) - 1) < 1e-9 else min(rest, round(shares["train"] * len(ordered)))
    empty = [name for name in SPLITS if shares[name] > 0 and sizes[name] <= 0]
    if empty:
        raise SplitError(
            f"{where}: the fractions {shares} of {counted(len(ordered), 'molecule')} leave {empty} without a molecule "
            "(config: data.split)"
        )
    out, start = {}, 0
    for name in SPLITS:
        out[name] = sorted((ordered[i] for i in order[start : start + sizes[name]]), key=_parts)
        start += sizes[name]
    return out


def _parts(path: Path) -> tuple[str, ...]:
    """Sorts as paths do, ten times as fast as comparing them."""
    return path.parts


def check_split(split: Mapping[str, Sequence[Path]], where: str) -> None:
    """Refuses a split with an empty training part, or in which a label file stands twice.

    Whether files exist is checked where a part is used (`check_files_exist`): a test needs no training files.

    Args:
        split: Label files of each part.
        where: Where the split comes from, for messages.

    Raises:
        SplitError: With the list of what is wrong.
    """
    if not split.get("train"):
        raise SplitError(f"{where}: the training split has no molecule (config: data.split)")
    check_label_files(split, where)


def check_label_files(split: Mapping[str, Sequence[Path]], where: str) -> None:
    """Refuses label files that are reached twice, on whatever paths, and paths that cannot be shown in one line.

    Args:
        split: Label files of each part.
        where: Where the split comes from, for messages.

    Raises:
        SplitError: With the list of what is wrong.
    """
    seen: dict[str, tuple[str, Path]] = {}
    twice, unprintable = [], []
    for part, paths in split.items():
        for path, file in zip(paths, resolved_files(paths), strict=True):
            if not file.isprintable():  # a line break, or bytes that are no UTF-8
                unprintable.append(repr(str(path)))
            if file in seen:
                other_part, other = seen[file]
                same = "" if other == path else f"; the same file as {other}"
                twice.append(f"{path} (in {other_part} and {part}{same})")
            seen[file] = part, path
    refuse_paths(where, "label files whose path has characters that cannot be printed: rename them", unprintable)
    refuse_paths(where, "label files that are listed twice", twice)


def refuse_paths(where: str, what: str, found: Sequence[str]) -> None:
    """Raises a `SplitError` that lists what was found, if there is any.

    Args:
        where: Where the split comes from, for the message.
        what: What is wrong with them, for the message.
        found: The paths; none: nothing is raised.

    Raises:
        SplitError: If there are any.
    """
    if found:
        shown = [*found[:_SHOWN], *([f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])]
        raise SplitError(
            f"{where}: {what}: {len(found)} (config: data.split.file, data.source.paths)\n  " + "\n  ".join(shown)
        )


def resolved_files(paths: Sequence[Path]) -> list[str]:
    """Returns the file that each path leads to: two paths of one label file give the same.

    Each folder is resolved and listed once, so that 1e5 paths take a fraction of a second.

    Args:
        paths: Paths that may be relative or lead over links.
    """
    folders: dict[str, tuple[str, set[str]]] = {}
    resolved = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            place = os.path.realpath(folder)
            links = {e.name for e in os.scandir(place) if e.is_symlink()} if os.path.isdir(place) else set()
            folders[folder] = place, links
        place, links = folders[folder]
        file = os.path.join(place, name)
        resolved.append(os.path.realpath(file) if name in links or name == ".." else file)
    return resolved


def check_files_exist(part: str, paths: Sequence[Path], where: str) -> None:
    """Refuses a part of a split that names missing label files; each folder is listed once.

    Args:
        part: Name of the part, for the message.
        paths: Its label files.
        where: Where the split comes from, for the message.

    Raises:
        SplitError: With the list of what is missing.
    """
    names: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) or "." for path in paths}:
        names[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    missing = [str(path) for path in paths if path.name not in names[os.path.dirname(path) or "."]]
    refuse_paths(where, f"label files of the {part} split that do not exist", missing)
