"""The fit: every statistic of every weigher from one streaming pass over the training split."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch_geometric.data import Data
from tqdm import tqdm

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import n_molecules
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.batches import (
    BatchSource,
    batch_source,
    for_each_batch,
    for_each_bundle,
    single_threaded,
)
from ofdft_norm.statistics.counts import SampleCounts
from ofdft_norm.statistics.distributed import Ranks, current_ranks
from ofdft_norm.statistics.element_blocks import BatchBlocks, batch_blocks
from ofdft_norm.statistics.energy_fit import EnergyFit
from ofdft_norm.statistics.molecule_keys import MOLECULE_KEY, ConsecutiveMolecules, MoleculesScattered
from ofdft_norm.statistics.moments import FieldMoments
from ofdft_norm.statistics.named_arrays import Arrays, check_counts, energy_arrays, largest_gradients, moment_arrays
from ofdft_norm.statistics.residual_errors import ResidualErrors
from ofdft_norm.statistics.sample_weighers import SampleWeigher, has_label, sample_weights
from ofdft_norm.statistics.workspace import Workspace
from ofdft_norm.statistics.worst_molecules import described
from ofdft_norm.version import package_version

# Raised whenever a change of code changes what a fit tells: part of the fingerprint of cached statistics.
STATISTICS_VERSION = 3


class StatisticsAccumulator:
    """All accumulators of a fit; batches are cut into element blocks once for all of them.

    Args:
        basis_info: The basis.
        reference_weighers: Weighers for coefficients, gradients and energy references.
        initial_guess_weighers: Weighers for `initial_guess_delta`.
        consecutive: Whether the samples of each molecule follow one another, see `EnergyFit`.
        **metric_kwargs: Passed to every `torchmetrics.Metric` (process group, whether to sync).
    """

    def __init__(
        self,
        basis_info: BasisInfo,
        reference_weighers: Sequence[SampleWeigher],
        initial_guess_weighers: Sequence[SampleWeigher],
        consecutive: bool = False,
        **metric_kwargs: Any,
    ) -> None:
        self.basis_info = basis_info
        self.reference_weighers = list(reference_weighers)
        self.initial_guess_weighers = list(initial_guess_weighers)
        self.consecutive = consecutive
        self.coeffs = FieldMoments(basis_info, "coeffs", reference_weighers, **metric_kwargs)
        self.gradient = FieldMoments(basis_info, "gradient_label", reference_weighers, **metric_kwargs)
        self.delta = FieldMoments(basis_info, "initial_guess_delta", initial_guess_weighers, **metric_kwargs)
        self.energy = EnergyFit(basis_info, reference_weighers, consecutive, **metric_kwargs)
        self.counts = SampleCounts(basis_info, [*reference_weighers, *initial_guess_weighers], **metric_kwargs)
        self._consecutive_molecules = ConsecutiveMolecules()
        self._workspace = Workspace()

    def cut(self, *batches: Data) -> BatchBlocks:
        """Weighs samples and cuts them into blocks, for `take`; several may be cut before the first are taken.

        Raises:
            MoleculesScattered: If samples of a molecule were expected to follow one another and do not.
        """
        n, all_weighers = len(self.reference_weighers), [*self.reference_weighers, *self.initial_guess_weighers]
        weights = torch.cat([sample_weights(all_weighers, batch) for batch in batches], dim=1)
        labelled = weights[:n] * torch.cat([has_label(batch) for batch in batches])
        blocks = batch_blocks(batches, self.basis_info, torch.cat([weights, labelled]), self._workspace)
        if self.consecutive:
            self._consecutive_molecules.check(blocks.molecule_keys)
        return blocks

    def take(self, blocks: BatchBlocks) -> None:
        """Takes in what `cut` returned, in the same order."""
        n = len(self.reference_weighers)
        given, labelled = slice(len(blocks.weights) - n), slice(len(blocks.weights) - n, None)
        self.counts.update(blocks, given)
        self.energy.update(blocks, labelled)
        # moments overwrite the rows they take, so they come last
        if self.initial_guess_weighers:
            self.delta.update(blocks, slice(n, given.stop))
        self.coeffs.update(blocks, slice(n))
        self.gradient.update(blocks, labelled)

    def arrays(self, with_bias: bool, min_atoms_per_type: int) -> Arrays:
        """Merges over ranks, checks what was seen, and returns the statistics by key.

        Raises:
            StatisticsError: If a weigher gave no sample weight, or an element has too few atoms.
        """
        coeffs, gradients = self.coeffs.compute(), self.gradient.compute()
        energies, counts = self.energy.compute(), self.counts.compute()
        arrays: Arrays = {}
        for weigher in self.reference_weighers:
            key = weigher.summary_string()
            check_counts(key, self.basis_info, **counts[key], gradient=gradients[key], min_atoms=min_atoms_per_type)
            for field, moments in (("coeffs", coeffs[key]), ("gradient_label", gradients[key])):
                names = ("mean", "std", "abs_max", "minimum", "maximum")
                arrays.update(moment_arrays(f"{key}/{field}", moments, names))
            arrays.update(largest_gradients(key, gradients[key], self.basis_info))
            gbar = gradients[key]["mean"].reshape(-1)
            arrays.update(energy_arrays(key, energies[key], gbar, self.basis_info, with_bias))
        if self.initial_guess_weighers:
            for key, moments in self.delta.compute().items():
                check_counts(key, self.basis_info, **counts[key], gradient=None, min_atoms=0)
                arrays.update(moment_arrays(f"{key}/initial_guess_delta", moments, ("mean", "std", "abs_max")))
        for key, count in counts.items():
            arrays[f"{key}/n_samples"] = count["n_samples"].numpy()
            arrays[f"{key}/n_atoms"] = count["n_atoms"].reshape(-1).numpy()
        return arrays


@single_threaded()
def fit_statistics(
    dataset: Any,
    basis_info: BasisInfo,
    reference_weighers: list[SampleWeigher],
    initial_guess_weighers: list[SampleWeigher],
    *,
    with_bias: bool,
    min_atoms_per_type: int,
    n_batches: int | None,
    residuals: bool,
    progress: bool,
) -> tuple[Arrays, dict[str, Any]]:
    """Fits all statistics; see `DatasetStatistics.from_dataset`.

    Returns:
        Arrays by key, the same bits on every rank, and attributes that say what was fitted, when, and with which
        version.
    """
    ranks = current_ranks()
    source = batch_source(dataset, ranks, n_batches)
    metric_kwargs = {"process_group": ranks.group, "sync_on_compute": source.sharded}

    def first_pass(consecutive: bool) -> StatisticsAccumulator:
        accumulator = StatisticsAccumulator(
            basis_info, reference_weighers, initial_guess_weighers, consecutive, **metric_kwargs
        )
        _pass(source, ranks, accumulator.cut, accumulator.take, "fitting", progress)
        return accumulator

    try:
        # whoever reads in order needs no sums per molecule; a shuffling loader shows within its first batches
        accumulator = first_pass(source.whole_molecules or (source.repeatable and not source.sharded))
    except MoleculesScattered:
        accumulator = first_pass(False)
    arrays = accumulator.arrays(with_bias, min_atoms_per_type)
    worst: Arrays = {}
    if residuals:
        errors = ResidualErrors(basis_info, reference_weighers, arrays, **metric_kwargs)
        _pass(source, ranks, errors.cut, errors.update, "residuals", progress)
        arrays.update(errors.arrays())
        worst = errors.worst_rows()
    if source.sharded:
        ranks.take_from_first({**arrays, **worst})
    attributes = {
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "created_by": f"ofdft_norm {package_version()}",
        "statistics_version": STATISTICS_VERSION,
        "fitted_on": _description(dataset),
        "basis_info": basis_info.to_dict(),
        "weighers": [w.summary_string() for w in reference_weighers],
        "initial_guess_weighers": [w.summary_string() for w in initial_guess_weighers],
        "with_bias": with_bias,
        "n_batches": n_batches,
        "residuals": residuals,
        "worst_molecules": {key: described(rows, basis_info) for key, rows in worst.items()},
    }
    return arrays, attributes


def _description(dataset: Any) -> dict[str, Any]:
    """Says in plain types what was fitted."""
    described: dict[str, Any] = {"type": type(dataset).__name__}
    for name in ("energy_key", "gradient_key", "n_molecules"):
        value = getattr(dataset, name, None)
        if isinstance(value, str | int):
            described[name] = value
    paths = getattr(dataset, "paths", None)
    if paths:
        described["folders"] = sorted({str(path.absolute().parent) for path in paths})
        described["transform"] = repr(getattr(dataset, "transform", None))
    return described


def _pass(
    source: BatchSource,
    ranks: Ranks,
    cut: Callable[..., BatchBlocks],
    take: Callable[[BatchBlocks], None],
    what: str,
    progress: bool,
) -> None:
    """Makes one pass over the data; rank 0 shows samples and molecules per second and the time left."""
    shown = progress and ranks.rank == 0
    begin, n_seen = time.perf_counter(), 0
    with tqdm(total=source.n_samples, desc=f"statistics: {what}", unit=" samples", disable=not shown) as bar:

        def show(batch: Data) -> None:
            nonlocal n_seen
            if not shown:
                return
            if source.whole_molecules:
                n_seen += len(torch.unique_consecutive(batch[MOLECULE_KEY]))
                rate = n_seen / (time.perf_counter() - begin)
                bar.set_postfix_str(f"{rate:.0f} molecules/s", refresh=False)
            bar.update(n_molecules(batch))

        def step(batch: Data) -> None:
            take(cut(batch))
            show(batch)

        # label files are read by whole molecules, by as many ranks as there are cores; a loader gives small batches,
        # and has a core of its own
        ordered = source.whole_molecules or source.sharded
        n_batches = for_each_batch(source, ranks, step) if ordered else for_each_bundle(source, cut, take, show)
        if n_batches == 0 and ranks.world_size == 1:
            raise StatisticsError(
                "the training split gave no sample: it is empty, or its loader was used up by an earlier pass "
                "(config: data.split)"
            )
