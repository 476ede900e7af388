"""Fits linear element references to a data set ([OC22]), in one streaming pass, on any number of processes."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER
from ofdft_norm.data.elements import symbol
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.element_references import LinearReferences, UnseenPolicy
from ofdft_norm.normalization.reference_summary import FitReport
from ofdft_norm.statistics.arrays import WORST_MOLECULES, count_arrays, energy_arrays, residual_arrays
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.distributed import Ranks, computed, current_ranks
from ofdft_norm.statistics.fit import StatisticsAccumulator, for_each_batch, measure_residuals
from ofdft_norm.statistics.least_squares import check_driver
from ofdft_norm.statistics.reading import SAMPLES_PER_BATCH, BatchSource, FitFields, sample_source
from ofdft_norm.statistics.references import CountBy, FittedReference, linear_reference_name
from ofdft_norm.statistics.residuals import ResidualColumn
from ofdft_norm.statistics.sample_weighers import (
    ConstantSampleWeigher,
    FieldSampleWeigher,
    SampleWeigher,
)

logger = logging.getLogger(__name__)


def fit_linear_references(
    targets: list[str],
    dataset: Any,
    batch_size: int,
    num_batches: int | None = None,
    num_workers: int = 0,
    max_num_elements: int = MAX_ATOMIC_NUMBER,
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
    count_by: CountBy = "sample",
    distributed: bool = False,
) -> dict[str, LinearReferences]:
    """Fits target = sum over atoms of ref_Z for several targets in one pass; where undetermined, of minimum norm.

    Samples whose `has_energy_label` is false are left out.

    Args:
        targets: Names of the targets: one number for each sample, of shape (), (1,) or (1, 1).
        dataset: Samples with the targets and `atomic_numbers` (or `z`); a PyG data set, a list of `Data`, ....
        batch_size: Samples in a batch, as `num_batches` counts them.
        num_batches: How many batches to use, over all processes; None: all samples.
        num_workers: Worker processes of the loader.
        max_num_elements: Largest atomic number; the references have shape (max_num_elements + 1,).
        log_metrics: Log MAE, RMSE and R2 over the samples used, and find the samples that are fitted worst, in a second
            pass.
        use_numpy: Solve with `numpy.linalg.lstsq`, else with `torch.linalg.lstsq`.
        driver: LAPACK driver of `torch.linalg.lstsq`: gels, gelsy (default), gelsd or gelss; ignored if `use_numpy`.
        shuffle: Take the samples in a random order, so that `num_batches` of them are a random choice.
        seed: Seed of that order: the same seed gives the same references.
        ridge: Relative ridge, for example 1e-6; adds (ridge s_max)^2 |ref|^2, s_max the largest singular value of the
            compositions.
        weights: Field with each sample's weight, or a sample weigher; None: 1 each.
        atomic_numbers_field: Field of the atomic numbers; samples that lack it are asked for ``z``.
        unseen_elements: What the references do with other elements than those seen: ``"error"`` or ``"zero"``.
        n_worst: How many of the worst fitted molecules the report names.
        count_by: ``"sample"``: every sample counts once, as in fairchem; ``"molecule"``: every molecule (`mol_id`)
            counts once, with the weighted mean of its samples, as the data module does by default. Where molecules have
            several samples, both differ: on the embedded labels carbon has 37.7675 and 37.7722 hartree.
        distributed: Under torch.distributed: every process calls this, reads its share, and gets the same references.
            By default each fits by itself.

    Returns:
        The references of each target, with a `fit_report`; see `LinearReferences.summary`.

    Raises:
        ConfigError: If an argument is out of range.
        BatchError: If a sample lacks a field, or a target is not one number.
        StatisticsError: If there is no sample, a target is not finite, or an atomic number is beyond
            `max_num_elements`.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = [Data(z=torch.tensor(z), energy=e) for z, e in (([8, 1, 1], -76.0), ([1, 1], -1.0))]
        >>> references = fit_linear_references(["energy"], data, batch_size=2)["energy"]
        >>> [round(float(references.element_references[z]), 6) for z in (1, 8)]
        [-0.5, -75.0]
    """
    check_fit_arguments(targets, batch_size, num_batches, max_num_elements, ridge, n_worst, count_by)
    solver = "numpy" if use_numpy else driver or "gelsy"
    if not use_numpy:
        check_driver(solver)
    weigher = weigher_of(weights)
    fields = fields_of_fit(targets, weigher, atomic_numbers_field, count_by)
    ranks = current_ranks() if distributed else Ranks()
    indices = _indices(length_of(dataset), batch_size, num_batches, shuffle, seed)
    # a few large batches cost far less than many small ones, and give the same
    source = sample_source(dataset, ranks, fields, indices, max(batch_size, SAMPLES_PER_BATCH), num_workers)
    metric_kwargs = {"process_group": ranks.group, "sync_on_compute": source.sharded}
    weighers = [weigher]
    accumulator = target_accumulator(weighers, targets, max_num_elements, count_by, metric_kwargs)
    for_each_batch(source, ranks, accumulator.update, "references: fitting", False)
    (fitted,) = solve_targets(accumulator, count_by, ridge, solver)
    (statistics,) = target_statistics(accumulator, [fitted], count_by)
    if log_metrics:
        measure_targets([statistics], accumulator, [fitted], count_by, n_worst, source, ranks, metric_kwargs)
    references = {}
    for target, of_target in zip(targets, statistics, strict=True):
        references[target] = LinearReferences.from_dataset_statistics(
            of_target,
            None,
            weigher.summary_string(),
            max_num_elements=max_num_elements,
            unseen_elements=unseen_elements,
            atomic_numbers_field=atomic_numbers_field,
            ridge=ridge,
            count_by=count_by,
            target=target,
        )
        log_fit(references[target].fit_report, log_metrics)
    return references


# --- arguments --------------------------------------------------------------------------------------------------------


def check_fit_arguments(
    targets: Any,
    batch_size: int,
    num_batches: int | None,
    max_num_elements: int,
    ridge: float,
    n_worst: int,
    count_by: str,
) -> None:
    """Refuses arguments of `fit_linear_references` that are out of range.

    Args:
        targets: Names of the energies.
        batch_size: Samples that are read together.
        num_batches: Batches that are read; None: all.
        max_num_elements: Largest atomic number.
        ridge: Strength of the ridge.
        n_worst: Number of worst molecules that are kept.
        count_by: ``molecule`` or ``sample``.

    Raises:
        ConfigError: With the first that is.
    """
    if isinstance(targets, str) or not targets or len(set(targets)) != len(targets):
        raise ConfigError(
            f"targets = {targets!r}: expected a list of different names, such as ['energy'] (argument targets)"
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
            raise ConfigError(f"{name} = {value}: expected at least {smallest} (argument {name})")
    if count_by not in ("molecule", "sample"):
        raise ConfigError(f"count_by = {count_by!r}: expected 'molecule' or 'sample' (argument count_by)")


def weigher_of(weights: str | SampleWeigher | None) -> SampleWeigher:
    """Returns the weigher of an argument `weights`.

    Args:
        weights: Name of a field, a weigher, or None: every labelled sample counts once.
    """
    if weights is None:
        return ConstantSampleWeigher()
    return FieldSampleWeigher(weights) if isinstance(weights, str) else weights


def fields_of_fit(
    targets: Sequence[str], weigher: SampleWeigher, atomic_numbers_field: str, count_by: CountBy
) -> FitFields:
    """Returns which fields of samples a fit of references reads.

    Args:
        targets: Names of the energies.
        weigher: What each sample counts.
        atomic_numbers_field: Field of the atomic numbers.
        count_by: ``molecule`` or ``sample``.
    """
    where = dict.fromkeys(targets, "argument targets")
    where |= dict.fromkeys(weigher.fields or (), "argument weights")
    where[atomic_numbers_field] = "argument atomic_numbers_field"
    names = ["mol_id", "scf_iteration", "has_energy_label", *(["pos"] if count_by == "molecule" else [])]
    all_names = None if weigher.fields is None else (*names, *weigher.fields)
    return FitFields(all_names, tuple(targets), atomic_numbers_field, where)


def length_of(dataset: Any) -> int:
    """Returns the length of a data set, which is not 0.

    Args:
        dataset: A data set.

    Raises:
        ConfigError: If it has no length.
        StatisticsError: If it is empty.
    """
    try:
        n = len(dataset)
    except TypeError as error:
        raise ConfigError(
            f"fitting references needs a data set with a length and an index, not a {type(dataset).__name__} "
            "(argument dataset)"
        ) from error
    if n == 0:
        raise StatisticsError("the data set is empty: there is nothing to fit references to (argument dataset)")
    return n


def _indices(n: int, batch_size: int, num_batches: int | None, shuffle: bool, seed: int) -> Sequence[int]:
    available = -(-n // batch_size)
    if num_batches is not None and num_batches > available:
        warnings.warn(
            f"num_batches = {num_batches}, but {n} samples make {available} batches of {batch_size}: all are used "
            "(argument num_batches)",
            stacklevel=3,
        )
    n_used = n if num_batches is None else min(n, num_batches * batch_size)
    if not shuffle:
        return range(n_used)
    order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:n_used].tolist()
    return order


# --- results ----------------------------------------------------------------------------------------------------------


def target_accumulator(
    weighers: Sequence[SampleWeigher],
    targets: Sequence[str],
    max_num_elements: int,
    count_by: CountBy,
    metric_kwargs: dict[str, Any],
) -> StatisticsAccumulator:
    """Returns the accumulators of a fit to the energies of several targets, for several weighers.

    Args:
        weighers: What each sample counts.
        targets: Names of the energies.
        max_num_elements: Largest atomic number.
        count_by: ``molecule`` or ``sample``.
        metric_kwargs: Arguments of torchmetrics' `Metric`.
    """
    return StatisticsAccumulator(
        None,
        weighers,
        energy_fields=targets,
        molecules="scattered" if count_by == "molecule" else None,
        max_atomic_number=max_num_elements,
        **metric_kwargs,
    )


def solve_targets(
    accumulator: StatisticsAccumulator, count_by: CountBy, ridge: float, solver: str | None
) -> list[list[FittedReference]]:
    """Returns, for each weigher, the references of each target.

    Args:
        accumulator: What the pass has measured.
        count_by: ``molecule`` or ``sample``.
        ridge: Strength of the ridge.
        solver: LAPACK driver; None: PyTorch's choice.

    Raises:
        StatisticsError: If no sample has a positive weight.
    """
    if int(accumulator.count_results()["n_samples"][accumulator.labelled.start :].sum()) == 0:
        raise StatisticsError(
            "no sample has a positive weight (samples with has_energy_label=False have none): there is nothing to fit "
            "(argument weights)"
        )
    targets = range(len(accumulator.energy_fields))
    return [
        [energies.linear_reference(count_by, target, ridge, solver) for target in targets]
        for energies in computed(accumulator.energy).values()
    ]


def target_statistics(
    accumulator: StatisticsAccumulator, fitted: Sequence[Sequence[FittedReference]], count_by: CountBy
) -> list[list[DatasetStatistics]]:
    """Returns, for each weigher and target, what the pass has measured, as the statistics of a data set have it.

    Args:
        accumulator: What the pass has measured.
        fitted: References of each weigher and target.
        count_by: ``molecule`` or ``sample``.
    """
    counts, name = accumulator.count_results(), linear_reference_name(count_by)
    statistics = []
    for k, ((key, energies), of_targets) in enumerate(zip(computed(accumulator.energy).items(), fitted, strict=True)):
        labelled = accumulator.labelled.start + k  # samples without label have no part in anything here
        seen = counts["n_atoms"][labelled] > 0
        elements = [z for z, occurs in zip(accumulator.elements, seen.tolist(), strict=True) if occurs]
        counted = count_arrays(key, counts, seen, labelled, labelled)
        statistics.append(
            [
                DatasetStatistics.from_arrays(
                    counted | energy_arrays(key, energies, {name: f}, seen, target), {"atomic_numbers": elements}
                )
                for target, f in enumerate(of_targets)
            ]
        )
    return statistics


def measure_targets(
    statistics: Sequence[Sequence[DatasetStatistics]],
    accumulator: StatisticsAccumulator,
    fitted: Sequence[Sequence[FittedReference]],
    count_by: CountBy,
    n_worst: int,
    source: BatchSource,
    ranks: Ranks,
    metric_kwargs: dict[str, Any],
) -> None:
    """Makes the second pass, and adds what it finds to the statistics of each weigher and target.

    Args:
        statistics: Of each weigher and target; they are added to.
        accumulator: What the first pass has measured.
        fitted: References of each weigher and target.
        count_by: ``molecule`` or ``sample``.
        n_worst: Number of worst molecules that are kept.
        source: Batches of this rank's share.
        ranks: The ranks that fit together.
        metric_kwargs: Arguments of torchmetrics' `Metric`.
    """
    name = linear_reference_name(count_by)
    keys = [w.summary_string() for w, targets in zip(accumulator.weighers, fitted, strict=True) for _ in targets]
    columns = [
        ResidualColumn(reference.direction(accumulator.layout, target), accumulator.labelled.start + k, target, n_worst)
        for k, of_targets in enumerate(fitted)
        for target, reference in enumerate(of_targets)
    ]
    measured, worst = measure_residuals(
        accumulator, columns, source, ranks, "references: residuals", False, metric_kwargs
    )
    all_statistics = [of_target for of_targets in statistics for of_target in of_targets]
    for c, (key, of_target, molecules) in enumerate(zip(keys, all_statistics, worst, strict=True)):
        column = {statistic: values[c : c + 1] for statistic, values in measured.items()}
        for full_key, value in residual_arrays([(key, name)], column).items():
            weigher_key, _, statistic = full_key.partition("/")
            of_target.save_statistic(weigher_key, statistic, value)
        of_target.attributes[WORST_MOLECULES[name]] = {key: [molecule.to_plain() for molecule in molecules]}


def log_fit(report: FitReport | None, log_metrics: bool) -> None:
    """Logs rank deficient fits, and MAE, RMSE and R2 if `log_metrics`.

    Args:
        report: What the fit found; None: nothing is logged.
        log_metrics: Whether the errors of the fit are logged, too.
    """
    if report is None:
        return
    if report.rank is not None and report.rank < len(report.atomic_numbers):
        logger.warning(
            "references of %r: the compositions of %s have rank %d for the %d elements %s; the references of "
            "minimum norm are used (see LinearReferences.summary())",
            report.target,
            report.size,
            report.rank,
            len(report.atomic_numbers),
            [symbol(z) if z <= MAX_ATOMIC_NUMBER else z for z in report.atomic_numbers],
        )
    if log_metrics:
        logger.info(
            "references of %r fitted on %s: MAE %.6g, RMSE %.6g, R2 %.6g",
            report.target,
            report.size,
            report.mae,
            report.rmse,
            report.r2,
        )
