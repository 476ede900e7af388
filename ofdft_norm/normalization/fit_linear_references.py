"""Fits linear element references to a data set ([OC22]), in one streaming pass, on any number of processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.composition_fit import (
    CompositionFit,
    check_driver,
    solve_composition,
)
from ofdft_norm.normalization.composition_rows import CompositionItems, RowCache, checked_rows, no_rows, row_loader
from ofdft_norm.normalization.element_references import LinearReferences, UnseenPolicy
from ofdft_norm.normalization.fit_reports import fit_reports, log_reports
from ofdft_norm.normalization.residual_survey import ResidualSurvey
from ofdft_norm.statistics.batches import BatchSource, for_each_batch
from ofdft_norm.statistics.distributed import Ranks, current_ranks
from ofdft_norm.statistics.sample_weighers import SampleWeigher

# One factorisation of 4096 rows costs far less than 128 of 32.
ROWS_PER_REDUCTION = 4096

RowAction = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def fit_linear_references(
    targets: list[str],
    dataset: Any,
    batch_size: int,
    num_batches: int | None = None,
    num_workers: int = 0,
    max_num_elements: int = 118,
    log_metrics: bool = True,
    use_numpy: bool = True,
    driver: str | None = None,
    shuffle: bool = True,
    seed: int = 0,
    *,
    ridge: float = 0.0,
    weights: str | SampleWeigher | None = None,
    atomic_numbers_field: str = "atomic_numbers",
    unseen_elements: UnseenPolicy = "error",
    n_worst: int = 10,
) -> dict[str, LinearReferences]:
    """Fits target = sum over atoms of ref_Z for several targets in one pass; where undetermined, of minimum norm.

    Samples whose `has_energy_label` is false are left out. Under torch.distributed every process must call this; each
    reads its share, and all get the same references.

    Args:
        targets: Names of the targets: one number for each sample, of shape (), (1,) or (1, 1).
        dataset: Samples with the targets and `atomic_numbers` (or `z`); a PyG data set, a list of `Data`, ....
        batch_size: Samples in a batch.
        num_batches: How many batches to use, over all processes; None: all samples.
        num_workers: Worker processes of the loader.
        max_num_elements: Largest atomic number; the references have shape (max_num_elements + 1,).
        log_metrics: Log MAE, RMSE and R2 over the samples used, and find the samples that are fitted worst. Data sets
            whose rows exceed 64 MiB (about 1e6 samples) are read a second time for it.
        use_numpy: Solve with `numpy.linalg.lstsq`, else with `torch.linalg.lstsq`.
        driver: LAPACK driver of `torch.linalg.lstsq`; ignored if `use_numpy`.
        shuffle: Take the samples in a random order, so that `num_batches` of them are a random choice.
        seed: Seed of that order: the same seed gives the same references.
        ridge: Relative ridge, for example 1e-6; adds (ridge s_max)^2 |ref|^2, s_max the largest singular value of the
            compositions.
        weights: Field with each sample's weight, or a sample weigher; None: 1 each.
        atomic_numbers_field: Field of the atomic numbers; samples that lack it are asked for ``z``.
        unseen_elements: What the references do with other elements than those seen: ``"error"`` or ``"zero"``.
        n_worst: How many of the worst fitted samples the report names.

    Returns:
        The references of each target, with a `fit_report`; see `LinearReferences.summary`.

    Raises:
        ConfigError: If an argument is out of range.
        BatchError: If a sample lacks a field, or a target is not one number.
        StatisticsError: If there is no sample, a target is not finite, or an atomic number is beyond
            `max_num_elements`.

    Example:
        >>> data = [Data(z=torch.tensor(z), energy=e) for z, e in (([8, 1, 1], -76.0), ([1, 1], -1.0))]
        >>> references = fit_linear_references(["energy"], data, batch_size=2)["energy"]
        >>> [round(float(references.element_references[z]), 6) for z in (1, 8)]
        [-0.5, -75.0]
    """
    _check_arguments(targets, batch_size, num_batches, max_num_elements, ridge, n_worst)
    if not use_numpy:
        check_driver(driver)
    ranks = current_ranks()
    indices = _indices(_length(dataset), batch_size, num_batches, shuffle, seed)
    items = CompositionItems(dataset, targets, atomic_numbers_field, weights)
    source = _source(items, indices, batch_size, num_workers, seed, ranks)
    metric_kwargs = {"process_group": ranks.group, "sync_on_compute": source.sharded}

    accumulator = CompositionFit(len(targets), max_num_elements, **metric_kwargs)
    # a process without samples takes part in the merge like all others
    accumulator.update(*no_rows(len(targets))[:3])
    cache = RowCache() if log_metrics else RowCache(limit=0)

    def take_in(*rows: Tensor) -> None:
        accumulator.update(*rows[:3])
        cache.add(*rows)

    _for_each_row(source, ranks, items, max_num_elements, take_in)
    factor = accumulator.compute()
    if factor.n_samples == 0:
        raise StatisticsError(
            "no sample has a positive weight (samples with has_energy_label=False have none): there is nothing to fit "
            "(config: data.reference.fit.weights, data.split)"
        )
    solution = solve_composition(factor, use_numpy, driver, ridge)
    references = torch.zeros(max_num_elements + 1, len(targets), dtype=torch.float64)
    references[factor.numbers] = solution.x
    survey = ResidualSurvey(references, n_worst, **metric_kwargs) if log_metrics else None
    if survey is not None:
        _survey(survey, cache, source, ranks, items, max_num_elements)
    reports = fit_reports(items, factor, solution, ridge, survey)
    log_reports(reports, log_metrics)
    seen = torch.zeros(max_num_elements + 1, dtype=torch.bool)
    seen[factor.numbers] = True
    return {
        target: LinearReferences(
            references[:, t], max_num_elements, seen, unseen_elements, atomic_numbers_field, fit_report=report
        )
        for t, (target, report) in enumerate(zip(targets, reports, strict=True))
    }


def _check_arguments(
    targets: Any, batch_size: int, num_batches: int | None, max_num_elements: int, ridge: float, n_worst: int
) -> None:
    if isinstance(targets, str) or not targets or len(set(targets)) != len(targets):
        raise ConfigError(
            f"targets = {targets!r}: expected a list of different names, such as ['energy'] "
            "(config: data.reference.fit.targets)"
        )
    bounds = (
        ("batch_size", batch_size, 1),
        ("num_batches", 1 if num_batches is None else num_batches, 1),
        ("max_num_elements", max_num_elements, 1),
        ("ridge", ridge, 0),
        ("n_worst", n_worst, 0),
    )
    for name, value, smallest in bounds:
        if not smallest <= value < math.inf:
            raise ConfigError(f"{name} = {value}: expected at least {smallest} (config: data.reference.fit.{name})")


def _length(dataset: Any) -> int:
    try:
        n = len(dataset)
    except TypeError as error:
        raise ConfigError(
            f"fitting references needs a data set with a length and an index, not a {type(dataset).__name__}"
        ) from error
    if n == 0:
        raise StatisticsError("the data set is empty: there is nothing to fit references to (config: data.split)")
    return n


def _indices(n: int, batch_size: int, num_batches: int | None, shuffle: bool, seed: int) -> Tensor:
    available = -(-n // batch_size)
    if num_batches is not None and num_batches > available:
        warnings.warn(
            f"num_batches = {num_batches}, but {n} samples make {available} batches of {batch_size}: all are used "
            "(config: data.reference.fit.num_batches)",
            stacklevel=3,
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(n)
    return order if num_batches is None else order[: num_batches * batch_size]


def _source(
    items: CompositionItems, indices: Tensor, batch_size: int, num_workers: int, seed: int, ranks: Ranks
) -> BatchSource:
    share = indices[ranks.rank :: ranks.world_size]

    def batches() -> Iterator[Data]:
        return iter(row_loader(items, share, batch_size, num_workers, seed))

    n_rounds = -(-ranks.longest_shard(len(indices)) // batch_size)
    return BatchSource(batches, n_rounds, len(share), False, ranks.world_size > 1)


def _for_each_row(
    source: BatchSource, ranks: Ranks, items: CompositionItems, max_num_elements: int, action: RowAction
) -> None:
    waiting: list[Data] = []

    def reduce() -> None:
        if waiting:
            rows = checked_rows(waiting, items.targets, max_num_elements)
            waiting.clear()
            action(*rows)

    def step(batch: Data) -> None:
        waiting.append(batch)
        if len(waiting) * len(waiting[0].index) >= ROWS_PER_REDUCTION:
            reduce()

    for_each_batch(source, ranks, step)
    error: Exception | None = None
    try:
        reduce()
    except Exception as caught:
        error = caught
    ranks.raise_together(error)


def _survey(
    survey: ResidualSurvey,
    cache: RowCache,
    source: BatchSource,
    ranks: Ranks,
    items: CompositionItems,
    max_num_elements: int,
) -> None:
    """Measures residuals, from memory where every process has its rows there, else in a second pass."""
    survey.update(*no_rows(len(items.targets)))
    if _anywhere(cache.overflown, ranks):
        _for_each_row(source, ranks, items, max_num_elements, survey.update)
    else:
        for rows in cache:
            survey.update(*rows)


def _anywhere(flag: bool, ranks: Ranks) -> bool:
    """Tells whether a flag is set on any process: all must take the same road."""
    if ranks.group is None:
        return flag
    flags = torch.tensor([float(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=ranks.group)
    return bool(flags.item())
