"""Fitted statistics are remembered, in a folder named by a fingerprint of all they depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from platformdirs import user_cache_path

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_dataset import OFDataset
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.distributed import current_ranks

Looked = TypeVar("Looked")


def default_cache_dir() -> Path:
    """Returns ``$OFDFT_NORM_CACHE``, else ``ofdft_norm/statistics`` in the user's cache folder."""
    given = os.environ.get("OFDFT_NORM_CACHE")
    if given:
        return Path(given)
    return user_cache_path("ofdft_norm", appauthor=False) / "statistics"


def dataset_fingerprint(
    dataset: Any, basis_info: BasisInfo | None, settings: dict[str, Any], contents: bool = False
) -> str | None:
    """Returns a hex digest of everything that a fit over a label data set depends on.

    Args:
        dataset: The training split, with its pre-transforms.
        basis_info: The basis.
        settings: The fit's settings (weighers, bias, ...) and the statistics' version; plain types.
        contents: Hash the files' contents instead of sizes and modification times.

    Returns:
        The digest; None for data sets that are not label files, or whose pre-transform cannot be pickled: there is
        then no way to tell whether they changed, and their statistics are never reused.
    """
    if not isinstance(dataset, OFDataset) or basis_info is None:
        return None
    try:
        transform = hashlib.sha256(pickle.dumps(dataset.transform)).hexdigest()
    except Exception:  # pickling runs the transform's own code
        return None
    described = {
        **dataset.state(contents),
        "transform": [repr(dataset.transform), transform, _source_code(dataset.transform)],
        "basis": basis_info.to_dict(),
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _source_code(transform: Any) -> list[str]:
    """Returns the source of a transform's class, and of those it is composed of, as far as it can be found."""
    found = [text for part in getattr(transform, "transforms", []) for text in _source_code(part)]
    try:
        return [*found, inspect.getsource(transform if inspect.isfunction(transform) else type(transform))]
    except (OSError, TypeError):
        return found


def load_or_fit(
    fingerprint: str | None, folder: Path | None, fit: Callable[[], DatasetStatistics]
) -> tuple[DatasetStatistics, bool]:
    """Returns the statistics of a fingerprint, from the cache where they are in it.

    Under torch.distributed rank 0 looks, and hands what it found to the other ranks, which need no access to the
    folder; if it found nothing, all ranks fit together and rank 0 writes.

    Args:
        fingerprint: Of the data set, the same on all ranks; None: fit, and write nothing.
        folder: The cache; by default `default_cache_dir()`.
        fit: Makes the statistics, in memory.

    Returns:
        The statistics, and whether they were reused.
    """
    if fingerprint is None:
        return fit(), False
    path = (default_cache_dir() if folder is None else folder) / f"{fingerprint[:32]}.zarr"
    found = from_first_rank(lambda: _cached(path, fingerprint))
    if found is not None:
        return found, True
    statistics = fit()
    statistics.attributes["fingerprint"] = fingerprint
    if current_ranks().rank == 0:
        _remember(statistics, path)
    return statistics, False


def _remember(statistics: DatasetStatistics, path: Path) -> None:
    try:
        statistics.save_to(path, overwrite=True)
    except OSError as error:
        warnings.warn(
            f"{path}: the fitted statistics could not be written ({error}): the next run will fit again "
            "(config: data.statistics.dir)",
            stacklevel=2,
        )


def _cached(path: Path, fingerprint: str) -> DatasetStatistics | None:
    if not os.path.exists(path):  # pathlib's raises where the folder may not be read
        return None
    try:
        statistics = DatasetStatistics(path)
    except StatisticsError as error:
        # only foreign hands can leave a damaged directory here: ours appear whole, by a rename
        warnings.warn(f"{error}; fitting again", stacklevel=2)
        return None
    return statistics if statistics.attributes.get("fingerprint") == fingerprint else None


def from_first_rank(look: Callable[[], Looked]) -> Looked:
    """Returns what rank 0 finds, on every rank; its error is everybody's."""
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
