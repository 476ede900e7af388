"""Fits linear element references to any data set of samples ([OC22]), on any number of processes."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.linear_references import DatasetReferences, LinearReferences, UnseenPolicy
from ofdft_norm.normalization.reference_report import FitReport, load_linear_problem, name_element
from ofdft_norm.settings import NonNegative, NonNegativeInt, PositiveInt, Settings
from ofdft_norm.statistics.distributed import Ranks, find_ranks
from ofdft_norm.statistics.energy_table import N_WORST, EnergyTable, fit_table, read_energy_table
from ofdft_norm.statistics.reading import SAMPLES_PER_BATCH, make_sample_reader
from ofdft_norm.statistics.references import CountBy, name_linear_reference, solve_least_squares
from ofdft_norm.statistics.store import DatasetStatistics
from ofdft_norm.statistics.weighers import ConstantSampleWeigher, FieldSampleWeigher, SampleWeigher

logger = logging.getLogger(__name__)


class ReferenceFitOptions(Settings):
    """Arguments of `fit_linear_references`, which documents them, in one validated object."""

    batch_size: PositiveInt = SAMPLES_PER_BATCH
    num_batches: PositiveInt | None = None
    num_workers: NonNegativeInt = 0
    max_num_elements: PositiveInt = MAX_ATOMIC_NUMBER
    log_metrics: bool = True
    driver: Literal["gels", "gelsy", "gelsd", "gelss"] | None = None
    shuffle: bool = False
    seed: int = 0
    ridge: NonNegative = 0.0
    weights: str | SampleWeigher | None = None
    atomic_numbers_field: str = "atomic_numbers"
    unseen_elements: UnseenPolicy = "error"
    count_by: CountBy = "sample"
    distributed: bool = False
    config_key = ""

    @property
    def weigher(self) -> SampleWeigher:
        """The weigher of the argument `weights`."""
        if isinstance(self.weights, str):
            return FieldSampleWeigher(self.weights)
        return self.weights or ConstantSampleWeigher()

    def select_samples(self, n: int) -> Sequence[int]:
        """Returns the samples of the fit among n, in the order of reading."""
        available = -(-n // self.batch_size)
        if (self.num_batches or 0) > available:
            message = f"num_batches = {self.num_batches}, but {n} samples make {available} batches of {self.batch_size}"
            warnings.warn(f"{message}: all are used", stacklevel=4)
        order: Sequence[int] = range(n)
        if self.shuffle:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return order[: (self.num_batches or available) * self.batch_size]


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
    count_by: CountBy = "sample",
    distributed: bool = False,
) -> dict[str, LinearReferences]:
    """Fits target = sum over atoms of ref_Z for several targets in one pass; undetermined parts have minimum norm.

    Samples with `has_energy_label` false are left out.

    Args:
        targets: Names of the targets: one number for each sample, of shape (), (1,) or (1, 1).
        dataset: Samples with the targets and `atomic_numbers` (or `z`): a PyG data set, a list of `Data`, ....
        batch_size: Samples in a batch, the unit of `num_batches`.
        num_batches: Number of batches to use, over all processes; None: all samples.
        num_workers: Worker processes of the loader.
        max_num_elements: Largest atomic number; the references have shape (max_num_elements + 1,).
        log_metrics: Measure MAE and the samples with the largest residuals, and log MAE, RMSE and R2.
        use_numpy: Kept for fairchem's callers; all solvers give the solution of minimum norm.
        driver: Kept for fairchem's callers: gels, gelsy, gelsd or gelss.
        shuffle: Take the samples in random order, so that `num_batches` selects a random part.
        seed: Seed of that order: the same seed gives the same references.
        ridge: Relative ridge, for example 1e-6; adds (ridge s_max)^2 |ref|^2, s_max the largest singular value of the
            compositions.
        weights: Field with the weight of each sample, or a sample weigher; None: 1 each.
        atomic_numbers_field: Field of the atomic numbers; if a sample lacks it, ``z`` is used.
        unseen_elements: Policy for elements that the fit lacks: ``"error"`` or ``"zero"``.
        count_by: ``"sample"``: every sample counts once, as in fairchem; ``"molecule"``: every molecule (`mol_id`)
            counts once, with the weighted mean of its samples, as in the data module. They differ if molecules have
            several samples: on the embedded labels carbon has 37.7675 and 37.7722 hartree.
        distributed: Under torch.distributed: every process calls this, reads its share, and gets the same references.
            By default each process fits by itself.

    Returns:
        The references of each target, with a `fit_report`; see `LinearReferences.summary`.

    Raises:
        ConfigError: If an argument is out of range.
        BatchError: If a sample lacks a field, or a target is not one number.
        StatisticsError: If there is no sample, a target is not finite, or an atomic number is beyond
            `max_num_elements`.

    Examples:
        >>> from torch_geometric.data import Data
        >>> data = [Data(z=torch.tensor(z), energy=e) for z, e in (([8, 1, 1], -76.0), ([1, 1], -1.0))]
        >>> references = fit_linear_references(["energy"], data, batch_size=2)["energy"]
        >>> [round(float(references.element_references[z]), 6) for z in (1, 8)]
        [-0.5, -75.0]
    """
    arguments = {name: value for name, value in locals().items() if name in ReferenceFitOptions.__annotations__}
    options = ReferenceFitOptions(**arguments)
    table = _read_table(targets, dataset, options)
    keys = [options.weigher.summary_string()]
    return {target: _fit_target(table, keys, t, target, options)[1][0] for t, target in enumerate(targets)}


def fit_references_by_dataset(
    targets: list[str], dataset: Any, by: str = "dataset", **options: Any
) -> dict[str, DatasetReferences]:
    """Fits separate references for each data set that a field of the samples names, see `DatasetReferences`.

    Args:
        targets: Names of the targets, see `fit_linear_references`.
        dataset: Samples that also have the field `by`.
        by: Field with the name of a sample's data set: a text or an integer.
        **options: `num_workers`, `max_num_elements`, `ridge`, `weights`, `atomic_numbers_field`, `unseen_elements`,
            `count_by` and `distributed`, see `fit_linear_references`.

    Returns:
        The references of each target.

    Raises:
        ConfigError: If an option is unknown or out of range.
        BatchError: If a sample lacks a field.
        StatisticsError: If a data set has no labelled sample, and see `fit_linear_references`.
    """
    settings = ReferenceFitOptions(**options)
    names, table = _read_table(targets, dataset, settings, by).split_by_group()
    empty = np.array(names)[table.count_samples()["n_labelled_samples"] == 0].tolist()
    if empty:
        raise StatisticsError(f"the data sets {empty} (field {by!r}) have no sample with a label and a positive weight")
    keys = [f"{by}_is_{name}".replace("/", "_") for name in names]
    references = {}
    for t, target in enumerate(targets):
        statistics, parts = _fit_target(table, keys, t, target, settings)
        common = _choose_smallest_shifts(parts, statistics, keys, settings.count_by)
        values, seen = torch.stack([p.element_references for p in parts]), torch.stack([p.seen_elements for p in parts])
        fields = (settings.unseen_elements, settings.atomic_numbers_field)
        references[target] = found = DatasetReferences(values, names, common, by, seen, *fields)
        found.fit_reports = [part.fit_report for part in parts]
        found.residuals = _combine_residuals(statistics, keys, settings.count_by)
    return references


def _read_table(targets: Any, dataset: Any, options: ReferenceFitOptions, by: str | None = None) -> EnergyTable:
    if isinstance(targets, str) or not targets or len(set(targets)) != len(targets):
        raise ConfigError(f"targets = {targets!r}: expected a list of different names, such as ['energy']")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ConfigError(f"dataset is a {type(dataset).__name__}: expected a data set with a length and an index")
    ranks = find_ranks() if options.distributed else Ranks()
    # a few large batches are faster than many small ones, with equal results
    size = max(options.batch_size, SAMPLES_PER_BATCH)
    chosen = options.select_samples(len(dataset))
    workers, numbers = options.num_workers, options.atomic_numbers_field
    reader = make_sample_reader(dataset, ranks, chosen, size, workers, atomic_numbers=numbers)
    table = read_energy_table(reader, [options.weigher], targets, max_atomic_number=options.max_num_elements, by=by)
    return replace(table, weights=table.weights * table.labelled)  # unlabelled samples do not count


def _fit_target(
    table: EnergyTable, keys: Sequence[str], t: int, target: str, options: ReferenceFitOptions
) -> tuple[DatasetStatistics, list[LinearReferences]]:
    """Fits the references of one target for each weigher of a table, and logs their fits."""
    names = [name_linear_reference(options.count_by)]
    n_worst = N_WORST if options.log_metrics else None
    arrays, attributes = fit_table(table, keys, names, t, ridge=options.ridge, n_worst=n_worst)
    statistics = DatasetStatistics.from_arrays(arrays, {**attributes, "atomic_numbers": table.elements.tolist()})
    arguments = ("count_by", "ridge", "max_num_elements", "unseen_elements", "atomic_numbers_field")
    chosen = {name: getattr(options, name) for name in arguments}
    references = [LinearReferences.from_dataset_statistics(statistics, None, key, **chosen) for key in keys]
    for found in references:
        report = cast(FitReport, found.fit_report)
        if cast(int, report.rank) < len(report.atomic_numbers):
            elements = [name_element(z) for z in report.atomic_numbers]
            message = "references of %r: the compositions have rank %d for the %d elements %s: minimum norm is chosen"
            logger.warning(message, target, report.rank, len(elements), elements)
        if options.log_metrics:
            logger.info("references of %r: %s", target, report.format_line())
    return statistics, references


def _choose_smallest_shifts(
    parts: Sequence[LinearReferences], statistics: DatasetStatistics, keys: Sequence[str], count_by: CountBy
) -> torch.Tensor:
    """Changes the references of each data set to those with the smallest shifts; returns the common references.

    With r_d the solution of minimum norm for data set d and P_d the projector on the row space of its compositions,
    every r_d + (1 - P_d) c fits equally well, with the shift P_d (r_d - c). The sum of squared shifts is smallest for
    (sum P_d) c = sum r_d.
    """
    elements = torch.tensor(statistics.elements())
    solutions = np.array([part.element_references[elements].numpy() for part in parts])
    projectors = np.empty((len(parts), len(elements), len(elements)))
    for projector, key in zip(projectors, keys, strict=True):
        problem = load_linear_problem(statistics, key, count_by)
        null_space = solve_least_squares(problem[:-1, :-1], problem[:-1, -1]).null_space
        projector[:] = np.eye(len(elements)) - null_space.T @ null_space
    chosen = solve_least_squares(projectors.sum(0), solutions.sum(0)).x
    for part, values in zip(parts, torch.as_tensor(solutions + chosen - projectors @ chosen), strict=True):
        part.element_references[elements] = torch.where(part.seen_elements[elements], values, 0.0)
    common = torch.zeros_like(parts[0].element_references)
    common[elements] = torch.as_tensor(chosen)
    return common


def _combine_residuals(statistics: DatasetStatistics, keys: Sequence[str], count_by: CountBy) -> dict[str, float]:
    """Returns mean, std, rms and mae of the residual energies of all data sets together."""
    folder = f"energy_minus_{name_linear_reference(count_by)}"
    weights = [float(statistics.load_statistic(key, "energy_factor")[0, 0]) ** 2 for key in keys]
    names = [f"{folder}/{name}" for name in ("mean", "rms", "mae")]
    rows = np.array([[statistics.load_statistic(key, name) for name in names] for key in keys])
    mean, mean_square, mae = np.average(rows ** [1, 2, 1], axis=0, weights=weights).tolist()
    return {"mean": mean, "rms": math.sqrt(mean_square), "std": math.sqrt(max(mean_square - mean**2, 0)), "mae": mae}
