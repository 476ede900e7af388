"""Fitted statistics are remembered, in a folder named by a fingerprint of all they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from platformdirs import user_cache_path

from ofdft_norm.data.ase_files import ASEDataset
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.files import writable_by_others
from ofdft_norm.data.identity import NoIdentityError, identity
from ofdft_norm.data.of_dataset import OFDataset
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.distributed import Ranks, current_ranks

Looked = TypeVar("Looked")

_CHECKSUM = "checksum"


def default_cache_dir() -> Path:
    """Returns ``$OFDFT_NORM_CACHE``, else ``ofdft_norm/statistics`` in the user's cache folder."""
    given = os.environ.get("OFDFT_NORM_CACHE")
    if given:
        return Path(given)
    return user_cache_path("ofdft_norm", appauthor=False) / "statistics"


def dataset_fingerprint(
    dataset: Any,
    basis_info: BasisInfo | None,
    settings: dict[str, Any],
    contents: bool = False,
    folder: Path | None = None,
) -> str | None:
    """Returns a hex digest of everything that a fit over a label data set depends on, the same on all ranks.

    Pre-transforms and weighers count by the rule of `ofdft_norm.data.identity`. Under torch.distributed all ranks must
    call this; they compare what they see before anything is fitted.

    Args:
        dataset: The training split, with its pre-transforms.
        basis_info: The basis.
        settings: The fit's settings (weighers, bias, ...) and the statistics' version.
        contents: Hash the files' contents instead of sizes and modification times.
        folder: Where digests of contents are remembered; by default `default_cache_dir()`.

    Returns:
        The digest; None for data sets that are not label files or files of ASE, or where a pre-transform or weigher
        cannot be identified: there is then no way to tell whether they changed, and their statistics are never reused.

    Raises:
        StatisticsError: If the ranks see different label files, or have other settings; on every rank.
    """
    ranks = current_ranks()
    described: dict[str, Any] = {}
    error: Exception | None = None
    try:
        described = _described(
            dataset, basis_info, settings, contents, default_cache_dir() if folder is None else folder
        )
    except Exception as caught:
        error = caught
    ranks.raise_together(error)
    _compare(described, ranks)
    if "length" in described or described["settings"] is None:  # a data set that can say no more of itself
        return None
    return _digest(described)


def _described(
    dataset: Any, basis_info: BasisInfo | None, settings: dict[str, Any], contents: bool, folder: Path
) -> dict[str, Any]:
    """Describes a fit in plain data; `settings` are None where they have no identity."""
    of_files = isinstance(dataset, OFDataset | ASEDataset)
    state = dataset.state(contents, folder) if of_files else None
    try:
        known = identity({"transform": getattr(dataset, "transform", None), **settings})
    except NoIdentityError as error:
        known = None
        if of_files:
            _say_once(f"statistics are fitted in every run, as they depend on what cannot be recognised: {error}")
    return {
        **({"length": _length(dataset)} if state is None else state),
        "basis": None if basis_info is None else basis_info.to_dict(),
        "settings": known,
    }


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


@cache
def _say_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _compare(described: dict[str, Any], ranks: Ranks) -> None:
    """Refuses ranks that are about to fit different things."""
    if ranks.group is None:
        return
    digests = ranks.gathered(_digest(described))
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    everything = ranks.gathered(described)
    mine, theirs = ({name: state for name, *state in everything[rank].get("files", [])} for rank in (0, other))
    differences = [
        f"{name}: rank 0 has {mine.get(name, 'no such file')}, rank {other} has {theirs.get(name, 'no such file')}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    if not differences:
        keys = [key for key in described if everything[0][key] != everything[other][key]]
        raise StatisticsError(f"ranks 0 and {other} were given different data or settings: {keys} (config: data)")
    shown = "\n  ".join([*differences[:20], *(["..."] if len(differences) > 20 else [])])
    raise StatisticsError(
        f"ranks 0 and {other} see {len(differences)} label files of the training split differently [size, modification "
        "time; or digest]: give every node the same files; where copies differ in time alone, compare contents "
        f"(config: data.source.paths, data.statistics.fingerprint):\n  {shown}"
    )


def load_or_fit(
    fingerprint: str | None, folder: Path | None, fit: Callable[[], DatasetStatistics], trust_shared: bool = False
) -> tuple[DatasetStatistics, bool]:
    """Returns the statistics of a fingerprint, from the cache where they are in it.

    Under torch.distributed rank 0 looks, and hands what it found to the other ranks, which need no access to the
    folder; if it found nothing, all ranks fit together and rank 0 writes.

    An entry carries a checksum of all it holds. One that does not match, or that another user may have written, is not
    used: a warning says so, and the statistics are fitted again.

    Args:
        fingerprint: Of the data set, the same on all ranks; None: fit, and write nothing.
        folder: The cache; by default `default_cache_dir()`.
        fit: Makes the statistics, in memory.
        trust_shared: Whether entries are used that other users may have written.

    Returns:
        The statistics, and whether they were reused.
    """
    if fingerprint is None:
        return fit(), False
    path = (default_cache_dir() if folder is None else folder) / f"{fingerprint[:32]}.zarr.zip"
    found = from_first_rank(lambda: _cached(path, fingerprint, trust_shared))
    if found is not None:
        return found, True
    statistics = fit()
    statistics.attributes["fingerprint"] = fingerprint
    statistics.attributes[_CHECKSUM] = _checksum(statistics)
    if current_ranks().rank == 0:
        _remember(statistics, path)
    return statistics, False


def _checksum(statistics: DatasetStatistics) -> str:
    """Returns a digest of all arrays and attributes."""
    attributes = {key: value for key, value in statistics.attributes.items() if key != _CHECKSUM}
    # numbers as keys come back from JSON as text
    digest = hashlib.sha256(json.dumps(json.loads(json.dumps(attributes)), sort_keys=True).encode())
    for key, array in sorted(statistics.to_arrays().items()):
        digest.update(json.dumps([key, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    """Returns whether an entry is what a fit has written."""
    try:
        statistics = DatasetStatistics(path)
    except StatisticsError:
        return False
    return statistics.attributes.get(_CHECKSUM) == _checksum(statistics)


def _remember(statistics: DatasetStatistics, path: Path) -> None:
    try:
        if not _is_whole(path):  # another process may have been first
            statistics.save_to(path, overwrite=True)
        statistics.path = path
    except OSError as error:
        warnings.warn(
            f"{path}: the fitted statistics could not be written ({error}): the next run will fit again "
            "(config: data.statistics.dir)",
            stacklevel=2,
        )


def _cached(path: Path, fingerprint: str, trust_shared: bool) -> DatasetStatistics | None:
    if not os.path.exists(path):  # pathlib's raises where the folder may not be read
        return None
    if not trust_shared and writable_by_others(path):
        warnings.warn(
            f"{path}: belongs to another user, or others may write it: it is not used, and the statistics are "
            "fitted again; choose a folder of your own, or allow it (config: data.statistics.dir, "
            "data.statistics.trust_shared)",
            stacklevel=2,
        )
        return None
    try:
        statistics = DatasetStatistics(path)
    except StatisticsError as error:
        # only foreign hands can leave a damaged file here: ours appear whole, by a rename
        warnings.warn(f"{error}; fitting again", stacklevel=2)
        return None
    if statistics.attributes.get(_CHECKSUM) != _checksum(statistics):
        warnings.warn(
            f"{path}: its content does not match its checksum, it is damaged or was edited; fitting again (config: "
            "data.statistics.dir)",
            stacklevel=2,
        )
        return None
    return statistics if statistics.attributes.get("fingerprint") == fingerprint else None


def from_first_rank(look: Callable[[], Looked]) -> Looked:
    """Returns what rank 0 finds, on every rank; its error is everybody's.

    Args:
        look: Called on rank 0 alone.
    """
    ranks = current_ranks()
    if ranks.group is None:
        return look()
    found: list[Any] = [None]
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            found = [look()]
        except Exception as caught:
            error = caught
    ranks.raise_together(error)
    dist.broadcast_object_list(found, src=0, group=ranks.group)
    return found[0]
