"""The fit: every statistic of every weigher from one streaming pass over the training split."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.of_data import n_molecules
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.arrays import (
    EXTREME_SAMPLES,
    WORST_MOLECULES,
    Arrays,
    check_counts,
    count_arrays,
    energy_arrays,
    largest_gradient_arrays,
    moment_arrays,
    residual_arrays,
)
from ofdft_norm.statistics.counts import SampleCounts
from ofdft_norm.statistics.distributed import Ranks, computed, current_ranks
from ofdft_norm.statistics.energy_fit import EnergyFit
from ofdft_norm.statistics.extremes import extreme_arrays
from ofdft_norm.statistics.moments import FieldMoments
from ofdft_norm.statistics.reading import BatchSource, FitFields, batch_source
from ofdft_norm.statistics.references import LINEAR_REFERENCES, FittedReference, fit_references
from ofdft_norm.statistics.residuals import N_WORST, ResidualColumn, Residuals, WorstMolecule
from ofdft_norm.statistics.row_factor import RowLayout
from ofdft_norm.statistics.sample_weighers import SampleWeigher, has_label, sample_weights
from ofdft_norm.statistics.weighed_batch import WeighedBatch, stored_fields
from ofdft_norm.version import package_version

# Raised whenever a change of code changes what a fit tells: part of the fingerprint of cached statistics.
STATISTICS_VERSION = 5


class StatisticsAccumulator:
    """All accumulators of a fit; a batch is weighed and sorted once for all of them.

    Args:
        basis_info: The basis; None: samples that have energies alone.
        reference_weighers: K weighers for coefficients, gradients and energy references.
        initial_guess_weighers: Weighers for `initial_guess_delta`.
        energy_fields: Names of the energies.
        molecules: How samples of one molecule come, see `EnergyFit`.
        max_atomic_number: Largest atomic number of samples without a basis.
        **metric_kwargs: Passed to every `torchmetrics.Metric` (process group, whether to sync).

    Attributes:
        elements: (n_types,) atomic numbers of the columns of compositions.
        weighers: All weighers.
        labelled: Which rows of a batch's weights are those of the reference weighers, 0 without label.
    """

    def __init__(
        self,
        basis_info: BasisInfo | None,
        reference_weighers: Sequence[SampleWeigher],
        initial_guess_weighers: Sequence[SampleWeigher] = (),
        energy_fields: Sequence[str] = ("energy_label",),
        molecules: Literal["whole", "scattered"] | None = "scattered",
        max_atomic_number: int = MAX_ATOMIC_NUMBER,
        **metric_kwargs: Any,
    ) -> None:
        self.basis_info = basis_info
        self.reference_weighers = list(reference_weighers)
        self.weighers = [*reference_weighers, *initial_guess_weighers]
        self.energy_fields = list(energy_fields)
        self.max_atomic_number = max_atomic_number
        self.labelled = slice(len(self.weighers), len(self.weighers) + len(self.reference_weighers))
        if basis_info is None:
            self.elements = list(range(1, max_atomic_number + 1))
            self.layout = RowLayout(max_atomic_number, len(self.energy_fields))
        else:
            self.elements = basis_info.atomic_numbers.tolist()
            self.layout = RowLayout(basis_info.n_types, len(self.energy_fields), basis_info.n_basis)
        self.counts = SampleCounts(self.labelled.stop, self.layout.n_types, **metric_kwargs)
        self.energy = EnergyFit(self.layout, reference_weighers, molecules, **metric_kwargs)
        self.moments: dict[str, FieldMoments] = {}
        if basis_info is not None:
            fields = {"coeffs": self.reference_weighers, "gradient_label": self.reference_weighers}
            fields |= {"initial_guess_delta": list(initial_guess_weighers)} if initial_guess_weighers else {}
            self.moments = {
                f: FieldMoments(basis_info, f, w, remember_samples=f == "gradient_label", **metric_kwargs)
                for f, w in fields.items()
            }

    @property
    def metrics(self) -> list[Any]:
        """All accumulators."""
        return [self.counts, self.energy, *self.moments.values()]

    def weighed(self, batch: Data) -> WeighedBatch:
        """Weighs samples: by all weighers, and once more by the reference weighers, 0 without label.

        Args:
            batch: Raw samples.
        """
        weights = sample_weights(self.weighers, batch)
        labelled = weights[: len(self.reference_weighers)] * has_label(batch, required=self.basis_info is not None)
        weights = torch.cat([weights, labelled])
        return WeighedBatch(batch, weights, self.basis_info, self.energy_fields, self.max_atomic_number)

    def update(self, batch: Data) -> None:
        """Takes in a batch.

        Args:
            batch: Raw samples.
        """
        weighed = self.weighed(batch)
        n = len(self.reference_weighers)
        rows = {
            "coeffs": slice(n),
            "gradient_label": self.labelled,
            "initial_guess_delta": slice(n, len(self.weighers)),
        }
        self.counts.update(weighed.weights, weighed.composition)
        self.energy.update(weighed, self.labelled)
        for field, moments in self.moments.items():
            moments.update(weighed, rows[field])

    def count_results(self) -> dict[str, Tensor]:
        """Returns the results of `counts`: rows of all weighers, then of the reference weighers, 0 without label."""
        n, results = len(self.counts.counts), computed(self.counts)
        # torchmetrics squeezes what has a single entry
        return {name: x.reshape(n) if name == "n_samples" else x.reshape(n, -1) for name, x in results.items()}


@contextmanager
def single_threaded() -> Iterator[None]:
    """Makes torch use one thread.

    Batches are small: threads that meet in every operation gain little, and lose tenfold where other work keeps the
    cores busy. And sums come out the same whatever the number of threads.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@single_threaded()
def fit_statistics(
    dataset: Any,
    basis_info: BasisInfo | None,
    reference_weighers: list[SampleWeigher],
    initial_guess_weighers: list[SampleWeigher],
    *,
    with_bias: bool,
    min_atoms_per_type: int,
    n_batches: int | None,
    residuals: bool,
    progress: bool,
    energy_field: str = "energy_label",
    atomic_numbers_field: str = "atomic_numbers",
) -> tuple[Arrays, dict[str, Any]]:
    """Fits all statistics; see `DatasetStatistics.from_dataset`.

    Args:
        dataset: Data set or loader of raw samples.
        basis_info: The density basis; None: energies alone are fitted.
        reference_weighers: What each sample counts.
        initial_guess_weighers: What each sample counts in statistics of the initial guess's deviation.
        with_bias: Whether the atomic reference has a constant.
        min_atoms_per_type: An element that is seen, but on fewer atoms than this, is an error.
        n_batches: Batches that are read; None: all.
        residuals: Whether a second pass tells what references leave of the energies.
        progress: Whether a bar shows how far the passes are.
        energy_field: Field of the energies.
        atomic_numbers_field: Field of the atomic numbers.

    Returns:
        Arrays by key, the same bits on every rank, and attributes that say what was fitted, when, and with which
        version.
    """
    ranks = current_ranks()
    fields = fit_fields(
        basis_info,
        [*reference_weighers, *initial_guess_weighers],
        energy_field,
        atomic_numbers_field,
        bool(initial_guess_weighers),
    )
    source = batch_source(dataset, ranks, fields, n_batches)
    metric_kwargs = {"process_group": ranks.group, "sync_on_compute": source.sharded}
    accumulator = StatisticsAccumulator(
        basis_info,
        reference_weighers,
        initial_guess_weighers,
        [energy_field],
        "whole" if source.whole_molecules else "scattered",
        **metric_kwargs,
    )
    for_each_batch(source, ranks, accumulator.update, "statistics: fitting", progress)
    arrays, references, elements = _first_results(accumulator, with_bias, min_atoms_per_type)
    samples = _extreme_samples(accumulator, arrays, ranks if source.sharded else Ranks())
    worst: dict[str, dict[str, Any]] = {name: {} for name in WORST_MOLECULES}
    if residuals:
        measured, worst = _second_results(accumulator, references, source, ranks, progress, metric_kwargs)
        arrays.update(measured)
    if source.sharded:
        ranks.take_from_first(arrays)
    attributes = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "created_by": f"ofdft_norm {package_version()}",
        "statistics_version": STATISTICS_VERSION,
        "fitted_on": _description(dataset),
        "basis_info": None if basis_info is None else basis_info.to_dict(),
        "atomic_numbers": elements,
        "weighers": [w.summary_string() for w in reference_weighers],
        "initial_guess_weighers": [w.summary_string() for w in initial_guess_weighers],
        "with_bias": with_bias,
        "n_batches": n_batches,
        "residuals": residuals,
        EXTREME_SAMPLES: samples,
        **{attribute: worst[name] for name, attribute in WORST_MOLECULES.items()},
    }
    return arrays, attributes


def fit_fields(
    basis_info: BasisInfo | None,
    weighers: Sequence[SampleWeigher],
    energy_field: str,
    atomic_numbers_field: str,
    initial_guess: bool = True,
) -> FitFields:
    """Returns which fields of samples the fit of statistics reads.

    Args:
        basis_info: The density basis, if there is one.
        weighers: What each sample counts.
        energy_field: Field of the energies.
        atomic_numbers_field: Field of the atomic numbers.
        initial_guess: Whether the initial guess's deviation is measured.
    """
    keys = {
        energy_field: "config: data.source.energy_field",
        atomic_numbers_field: "config: data.source.atomic_numbers_field",
    }
    if any(weigher.fields is None for weigher in weighers):
        return FitFields(None, (), atomic_numbers_field, keys)
    names = ["mol_id", "scf_iteration", "has_energy_label", "pos"]
    names += [name for weigher in weighers for name in weigher.fields or ()]
    if basis_info is not None:
        names += ["atom_ind", *stored_fields("initial_guess_delta" if initial_guess else "coeffs")]
        names += ["gradient_label", energy_field]
        return FitFields(tuple(dict.fromkeys(names)), (), atomic_numbers_field, keys)
    return FitFields(tuple(dict.fromkeys(names)), (energy_field,), atomic_numbers_field, keys)


def _first_results(
    accumulator: StatisticsAccumulator, with_bias: bool, min_atoms: int
) -> tuple[Arrays, list[dict[str, FittedReference]], list[int]]:
    """Merges over ranks, checks what was seen, and returns statistics, references by weigher, and the elements."""
    basis_info = accumulator.basis_info
    counts, energies = accumulator.count_results(), computed(accumulator.energy)
    moments = {field: computed(metric) for field, metric in accumulator.moments.items()}
    seen = torch.ones(accumulator.layout.n_types, dtype=torch.bool)
    seen = counts["n_atoms"].any(0) if basis_info is None else seen
    arrays: Arrays = {}
    references = []
    for k, weigher in enumerate(accumulator.weighers):
        key, labelled = weigher.summary_string(), accumulator.labelled.start + k
        if k >= len(accumulator.reference_weighers):
            check_counts(key, accumulator.elements, counts, k)
            arrays.update(count_arrays(key, counts, seen, k))
            arrays.update(moment_arrays(key, "initial_guess_delta", moments["initial_guess_delta"][key]))
            continue
        check_counts(key, accumulator.elements, counts, k, labelled, min_atoms, basis_info is not None)
        arrays.update(count_arrays(key, counts, seen, k, labelled))
        gbar = None
        if basis_info is not None:
            for field in ("coeffs", "gradient_label"):
                arrays.update(moment_arrays(key, field, moments[field][key], extrema=True))
            arrays.update(largest_gradient_arrays(key, moments["gradient_label"][key], basis_info))
            gbar = moments["gradient_label"][key]["mean"].reshape(-1)
        fitted = fit_references(energies[key], gbar, basis_info, with_bias)
        arrays.update(energy_arrays(key, energies[key], fitted, seen))
        references.append(fitted)
    return arrays, references, [z for z, s in zip(accumulator.elements, seen.tolist(), strict=True) if s]


def _extreme_samples(accumulator: StatisticsAccumulator, arrays: Arrays, ranks: Ranks) -> dict[str, Any]:
    """Adds which samples hold the gradients' extremes to `arrays`; returns each weigher's table of samples."""
    field, tables = "gradient_label", {}
    if field in accumulator.moments:
        metric = accumulator.moments[field]
        names = {key: name for of_rank in ranks.gathered(metric.names) for key, name in of_rank.items()}
        for key, found in computed(metric).items():
            added, tables[key] = extreme_arrays(key, field, found["extremes"], names, found["mean"].reshape(-1))
            arrays.update(added)
    return tables


def _second_results(
    accumulator: StatisticsAccumulator,
    references: Sequence[dict[str, FittedReference]],
    source: BatchSource,
    ranks: Ranks,
    progress: bool,
    metric_kwargs: dict[str, Any],
) -> tuple[Arrays, dict[str, dict[str, Any]]]:
    """Makes the second pass; returns largest and mean residuals, and each linear reference's worst molecules."""
    names, columns = [], []
    for k, (weigher, fitted) in enumerate(zip(accumulator.reference_weighers, references, strict=True)):
        for name, reference in fitted.items():
            names.append((weigher.summary_string(), name))
            n_worst = N_WORST if name in LINEAR_REFERENCES else 0
            direction = reference.direction(accumulator.layout)
            columns.append(ResidualColumn(direction, accumulator.labelled.start + k, n_worst=n_worst))
    measured, molecules = measure_residuals(
        accumulator, columns, source, ranks, "statistics: residuals", progress, metric_kwargs
    )
    worst: dict[str, dict[str, Any]] = {name: {} for name in WORST_MOLECULES}
    for (key, name), found in zip(names, molecules, strict=True):
        if name in worst:
            worst[name][key] = [molecule.to_plain() for molecule in found]
    return residual_arrays(names, measured), worst


def measure_residuals(
    accumulator: StatisticsAccumulator,
    columns: Sequence[ResidualColumn],
    source: BatchSource,
    ranks: Ranks,
    what: str,
    progress: bool,
    metric_kwargs: dict[str, Any],
) -> tuple[dict[str, Tensor], list[list[WorstMolecule]]]:
    """Makes the second pass; returns `abs_max` and `mae` of each column, and its worst molecules.

    Args:
        accumulator: What the first pass has measured.
        columns: Which energies, weights and references.
        source: Batches of this rank's share.
        ranks: The ranks that fit together.
        what: What the bar shows.
        progress: Whether there is a bar.
        metric_kwargs: Arguments of torchmetrics' `Metric`.
    """
    metric = Residuals(columns, accumulator.elements, **metric_kwargs)
    for_each_batch(source, ranks, lambda batch: metric.update(accumulator.weighed(batch)), what, progress)
    # torchmetrics squeezes what has a single entry
    measured = {name: values.reshape(len(columns)) for name, values in computed(metric).items()}
    return measured, metric.worst(ranks if source.sharded else Ranks())


def _description(dataset: Any) -> dict[str, Any]:
    """Says in plain types what was fitted."""
    described: dict[str, Any] = {"type": type(dataset).__name__}
    for name in ("energy_key", "gradient_key", "n_molecules"):
        value = getattr(dataset, name, None)
        if isinstance(value, str | int):
            described[name] = value
    paths = getattr(dataset, "paths", None)
    if paths:
        described["folders"] = sorted(str(folder.absolute()) for folder in {path.parent for path in paths})
        described["transform"] = repr(getattr(dataset, "transform", None))
    return described


def for_each_batch(
    source: BatchSource, ranks: Ranks, action: Callable[[Data], None], what: str, progress: bool
) -> None:
    """Makes one pass; if it fails on one rank, it fails on all, when their passes have ended.

    Rank 0 shows samples and molecules per second and the time left.

    Args:
        source: Batches of this rank's share.
        ranks: The ranks that fit together.
        action: Called with each batch.
        what: What the bar shows.
        progress: Whether there is a bar.

    Raises:
        StatisticsError: If no rank has seen a sample.
    """
    error: Exception | None = None
    n_seen = 0
    try:
        with torch.no_grad(), single_threaded():
            n_seen = _pass(source, action, what, progress and ranks.rank == 0)
    except Exception as caught:
        error = caught
    if source.sharded:
        ranks.raise_together(error)
    elif error is not None:
        raise error
    if n_seen == 0 and not source.sharded:
        raise StatisticsError(
            "the training split gave no sample: it is empty, or its loader was used up by an earlier pass "
            "(config: data.split)"
        )


def _pass(source: BatchSource, action: Callable[[Data], None], what: str, shown: bool) -> int:
    begin, n_samples, n_read = time.perf_counter(), 0, 0
    with tqdm(total=source.n_samples, desc=what, unit=" samples", disable=not shown) as bar:
        for batch in source.batches():
            action(batch)
            n_samples += n_molecules(batch)
            if shown:
                if source.whole_molecules:
                    n_read += len(torch.unique_consecutive(batch.molecule_index))
                    rate = n_read / (time.perf_counter() - begin)
                    bar.set_postfix_str(f"{rate:.0f} molecules/s", refresh=False)
                bar.update(n_molecules(batch))
    return n_samples
