"""Statistics of a training split: given by path, fitted before, or fitted now."""

import functools
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from ofdft_norm.data.ase import ASEDataset
from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import MoleculeDataset
from ofdft_norm.data.identity import identify
from ofdft_norm.errors import MissingStatisticsFileError, StatisticsError
from ofdft_norm.statistics import fit_statistics as fit
from ofdft_norm.statistics.distributed import find_ranks
from ofdft_norm.statistics.fit_statistics import STATISTICS_VERSION, StatisticsConfig
from ofdft_norm.statistics.store import DatasetStatistics
from ofdft_norm.statistics.weighers import ConstantSampleWeigher

logger = logging.getLogger(__name__)


class FittedStatistics(NamedTuple):
    """Statistics of a training split."""

    statistics: DatasetStatistics
    fingerprint: str | None  # None: given by path, or the data cannot be recognised
    reused: bool  # not fitted now


def load_or_fit(
    open_dataset: Callable[[], Any],
    basis_info: BasisInfo | None,
    config: StatisticsConfig,
    origin: Mapping[str, Any],
    fields: tuple[str, str] = fit.FIELDS,
) -> FittedStatistics:
    """Returns the statistics of a training split; under torch.distributed all ranks must call this.

    The data set is opened only if no statistics are given by path. Without a basis every sample counts. `origin` has
    attributes of fitted statistics, such as the unit; given statistics with other values of these are refused.
    """
    if config.path is not None:
        given = DatasetStatistics(Path(config.path).expanduser())
        for name, expected in origin.items():
            # energies without a unit are in hartree, as in STRUCTURES25
            found = given.attributes.get(name, "hartree" if name == "unit" else None)
            if found is not None and found != expected:
                key = f"data.source.{name}" if name.endswith("_key") else f"data.{name}"
                what = f"{config.path}: taken with {name} = {found}, but the configuration has {expected}"
                raise StatisticsError(f"{what}: give other statistics, or change the configuration (config: {key})")
        return FittedStatistics(given, None, True)
    if basis_info is None:
        config = replace(config, weigher_key="constant", weighers=(ConstantSampleWeigher(),), initial_guess_weighers=())
    ranks, path, found = find_ranks(config.rank_timeout), None, None
    with ranks.exchange() as of_ranks:
        dataset = open_dataset()
        described, fingerprint = describe_fit(dataset, basis_info, config, fields)
        of_ranks.append(described)
    _refuse_different_ranks(of_ranks)
    if fingerprint is not None:
        default = platformdirs.user_cache_path("ofdft_norm", appauthor=False) / "statistics"
        folder = Path(config.dir or os.environ.get("OFDFT_NORM_CACHE") or default).expanduser()
        path = folder / f"{fingerprint[:32]}.npz"
        if ranks.rank == 0:
            try:
                found = DatasetStatistics(path)
            except MissingStatisticsFileError:
                pass
            except StatisticsError as error:
                warnings.warn(f"{error}; fitting again", stacklevel=2)
    found = ranks.gather(found)[0]
    if found is not None and found.attributes.get("fingerprint") == fingerprint:
        return FittedStatistics(found, fingerprint, True)
    arrays, attributes = fit.fit_statistics(dataset, basis_info, config, fields)
    statistics = DatasetStatistics.from_arrays(arrays, {**attributes, **origin, "fingerprint": fingerprint})
    statistics.path = path
    if path is not None and ranks.rank == 0:
        try:
            statistics.save_to(path, overwrite=True)
        except OSError as error:
            what = f"{path}: the fitted statistics could not be written ({error}): the next run will fit again"
            warnings.warn(f"{what} (config: data.statistics.dir)", stacklevel=2)
    return FittedStatistics(statistics, fingerprint, False)


def describe_fit(
    dataset: Any, basis_info: BasisInfo | None, config: StatisticsConfig, fields: tuple[str, str]
) -> tuple[dict[str, Any], str | None]:
    """Returns all inputs of a fit as plain data, and their fingerprint: None if an input cannot be recognised later."""
    described = {
        "version": STATISTICS_VERSION,
        "settings": [config.with_bias, config.min_atoms_per_type, config.n_batches, config.residuals, *fields],
        "weighers": "" if basis_info is None else identify([[*config.weighers], [*config.initial_guess_weighers]]),
        "basis": "" if basis_info is None else basis_info.fingerprint(),
    }
    if not isinstance(dataset, MoleculeDataset | ASEDataset):
        return {**described, "samples": None, "length": len(dataset) if hasattr(dataset, "__len__") else -1}, None
    described["transform"] = identify(dataset.transform)
    for name in ("transform", "weighers"):
        if described[name] is None:
            _log_once(f"statistics are fitted in every run: the {name} cannot be recognised in another process")
    described["samples"] = dataset.state(config.fingerprint == "contents")
    if None in described.values():
        return described, None
    return described, hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


@functools.cache
def _log_once(message: str) -> None:
    logger.warning(message)


def _refuse_different_ranks(of_ranks: Sequence[dict[str, Any]]) -> None:
    """Refuses ranks with different data."""
    first, *others = of_ranks
    for rank, other in enumerate(others, 1):
        different = [key for key in first if first[key] != other.get(key)]
        if different:
            files = [set(map(json.dumps, (d["samples"] or {}).get("files", []))) for d in (first, other)]
            what = f"ranks 0 and {rank} have different {different}, such as {sorted(files[0] ^ files[1])[:5]}"
            expected = "expected the same files; if only times differ, compare contents"
            raise StatisticsError(f"{what}: {expected} (config: data.source.paths, data.statistics.fingerprint)")
