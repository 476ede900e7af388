"""Splits of a data set's molecules; a molecule is never divided between splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ofdft_norm.errors import SplitError

SPLITS = ("train", "val", "test")


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
            f"{where}: the fractions {shares} of {len(ordered)} molecules leave {empty} without a molecule "
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


def check_split(split: dict[str, list[Path]], where: str) -> None:
    """Refuses a split with an empty training part, or a file in two parts.

    Whether files exist is checked where a part is used (`check_files_exist`): a test needs no training files.

    Raises:
        SplitError: With the list of what is wrong.
    """
    if not split.get("train"):
        raise SplitError(f"{where}: the training split has no molecule (config: data.split)")
    seen: dict[str, str] = {}
    twice = []
    for name, paths in split.items():
        for path in paths:
            key = os.path.abspath(path)
            if seen.setdefault(key, name) != name:
                twice.append(f"{path} (in {seen[key]} and {name})")
    if twice:
        shown = "\n  ".join(twice[:20])
        raise SplitError(f"{where}: {len(twice)} molecules are in two splits (config: data.split.file):\n  {shown}")


def check_files_exist(part: str, paths: Sequence[Path], where: str) -> None:
    """Refuses a part of a split that names missing label files; each folder is listed once.

    Raises:
        SplitError: With the list of what is missing.
    """
    names: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) or "." for path in paths}:
        names[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    missing = [str(path) for path in paths if path.name not in names[os.path.dirname(path) or "."]]
    if missing:
        shown = "\n  ".join([*missing[:20], *([f"... and {len(missing) - 20} more"] if len(missing) > 20 else [])])
        raise SplitError(
            f"{where}: {len(missing)} label files of the {part} split do not exist (config: data.source, "
            f"data.split):\n  {shown}"
        )
