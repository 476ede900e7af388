"""The fit: every statistic of every weigher from one streaming pass over the training split."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric
from tqdm import tqdm

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import n_molecules
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.batches import BatchSource, batch_source, for_each_batch
from ofdft_norm.statistics.counts import SampleCounts
from ofdft_norm.statistics.distributed import Ranks, current_ranks
from ofdft_norm.statistics.element_blocks import sample_kinds
from ofdft_norm.statistics.energy_fit import EnergyFit
from ofdft_norm.statistics.moments import FieldMoments, has_label
from ofdft_norm.statistics.residual_errors import ResidualErrors
from ofdft_norm.statistics.sample_weighers import SampleWeigher, sample_weights

# Raised whenever a change of code changes fitted numbers: part of the fingerprint of cached statistics.
STATISTICS_VERSION = 1

Arrays = dict[str, npt.NDArray[Any]]


class StatisticsAccumulator:
    """All accumulators of a fit; each batch is cut into element blocks once for all of them.

    Args:
        basis_info: The basis.
        reference_weighers: Weighers for coefficients, gradients and atomic references.
        initial_guess_weighers: Weighers for `initial_guess_delta`.
        metric_kwargs: Passed to every `torchmetrics.Metric` (process group, whether to sync).
    """

    def __init__(
        self,
        basis_info: BasisInfo,
        reference_weighers: Sequence[SampleWeigher],
        initial_guess_weighers: Sequence[SampleWeigher],
        **metric_kwargs: Any,
    ) -> None:
        self.basis_info = basis_info
        self.reference_weighers = list(reference_weighers)
        self.initial_guess_weighers = list(initial_guess_weighers)
        self.coeffs = FieldMoments(basis_info, "coeffs", reference_weighers, **metric_kwargs)
        self.gradient = FieldMoments(basis_info, "gradient_label", reference_weighers, **metric_kwargs)
        self.delta = FieldMoments(basis_info, "initial_guess_delta", initial_guess_weighers, **metric_kwargs)
        self.energy = EnergyFit(basis_info, reference_weighers, **metric_kwargs)
        self.counts = SampleCounts(basis_info, reference_weighers, **metric_kwargs)

    def update(self, batch: Data, whole_molecules: bool) -> None:
        """Takes in a batch; see `EnergyFit.update` for `whole_molecules`."""
        n_reference = len(self.reference_weighers)
        weights = sample_weights([*self.reference_weighers, *self.initial_guess_weighers], batch)
        reference, initial_guess = weights[:n_reference], weights[n_reference:]
        labelled = reference * has_label(batch)
        kinds = sample_kinds(batch, self.basis_info, torch.cat([reference, labelled, initial_guess]))
        rows = [slice(0, n_reference), slice(n_reference, 2 * n_reference), slice(2 * n_reference, None)]
        self.coeffs.update(batch, kinds=kinds, rows=rows[0])
        self.gradient.update(batch, kinds=kinds, rows=rows[1])
        if self.initial_guess_weighers:
            self.delta.update(batch, kinds=kinds, rows=rows[2])
        self.counts.update(batch, weights=reference)
        self.energy.update(batch, whole_molecules=whole_molecules, kinds=kinds, weights=labelled)


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
        Arrays by key, and attributes that say what was fitted, when, and with which version.
    """
    ranks = current_ranks()
    source = batch_source(dataset, ranks, n_batches)
    metric_kwargs = {"process_group": ranks.group, "sync_on_compute": source.sharded}
    accumulator = StatisticsAccumulator(basis_info, reference_weighers, initial_guess_weighers, **metric_kwargs)
    _pass(source, ranks, lambda batch: accumulator.update(batch, source.whole_molecules), "fitting", progress)
    arrays = _finish(accumulator, with_bias, min_atoms_per_type)
    if residuals:
        errors = ResidualErrors(basis_info, reference_weighers, arrays, **metric_kwargs)
        _pass(source, ranks, errors.update, "residuals", progress)
        arrays.update(errors.arrays())
    attributes = {
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "created_by": f"ofdft_norm {_version()}",
        "statistics_version": STATISTICS_VERSION,
        "basis_info": basis_info.to_dict(),
        "weighers": [w.summary_string() for w in reference_weighers],
        "initial_guess_weighers": [w.summary_string() for w in initial_guess_weighers],
        "with_bias": with_bias,
        "residuals": residuals,
    }
    return arrays, attributes


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ofdft-norm")
    except PackageNotFoundError:
        return "(not installed)"


def _pass(source: BatchSource, ranks: Ranks, action: Callable[[Data], None], what: str, progress: bool) -> None:
    """Makes one pass over the data; rank 0 shows samples per second, molecules and time left."""
    shown = progress and ranks.rank == 0
    with tqdm(total=source.n_samples, desc=f"statistics: {what}", unit=" samples", disable=not shown) as bar:

        def step(batch: Data) -> None:
            action(batch)
            bar.update(n_molecules(batch))

        if for_each_batch(source, ranks, step) == 0 and ranks.world_size == 1:
            raise StatisticsError(
                "the training split gave no sample: it is empty, or its loader was used up by an earlier pass "
                "(config: data.split)"
            )


def _finish(accumulator: StatisticsAccumulator, with_bias: bool, min_atoms_per_type: int) -> Arrays:
    """Turns the merged accumulators into named arrays."""
    basis_info = accumulator.basis_info
    coeffs, gradients = accumulator.coeffs.compute(), accumulator.gradient.compute()
    energies, counts = accumulator.energy.compute(), accumulator.counts.compute()
    arrays: Arrays = {}
    for weigher in accumulator.reference_weighers:
        key = weigher.summary_string()
        _check_counts(key, basis_info, counts[key], gradients[key]["weight"], min_atoms_per_type)
        for field, moments in (("coeffs", coeffs[key]), ("gradient_label", gradients[key])):
            for name in ("mean", "std", "abs_max", "minimum", "maximum"):
                arrays[f"{key}/{field}/{name}"] = moments[name].reshape(-1).numpy()
        gradient = {name: value.reshape(-1) for name, value in gradients[key].items()}
        gbar = gradient["mean"]
        scalar = torch.as_tensor(basis_info.l_per_basis_func == 0)
        largest = torch.maximum(gradient["maximum"] - gbar, gbar - gradient["minimum"])
        arrays[f"{key}/gradient_max_after_atom_ref"] = largest.numpy()
        arrays[f"{key}/gradient_max_after_scalar_atom_ref"] = torch.where(scalar, largest, gradient["abs_max"]).numpy()
        for name, slope in (("atom_ref", gbar), ("scalar_atom_ref", torch.where(scalar, gbar, 0.0))):
            arrays.update(_reference_arrays(f"{key}/", name, energies[key].reference(slope, with_bias)))
        before = energies[key].variance.residual(
            energies[key].residuals, torch.zeros_like(gbar), torch.zeros(basis_info.n_types + 1, dtype=torch.float64)
        )
        arrays[f"{key}/energy/mean"], arrays[f"{key}/energy/std"] = np.array(before[0]), np.array(before[1])
        for name, value in (("n_samples", counts[key]["n_samples"]), ("n_atoms", counts[key]["n_atoms"].reshape(-1))):
            arrays[f"{key}/{name}"] = value.numpy()
        arrays[f"{key}/n_molecules"] = np.array(energies[key].n_molecules)
    deltas = accumulator.delta.compute() if accumulator.initial_guess_weighers else {}
    for key, moments in deltas.items():
        if not (moments["weight"] > 0).any():
            raise StatisticsError(_no_weight_message(key, "sample"))
        for name in ("mean", "std", "abs_max"):
            arrays[f"{key}/initial_guess_delta/{name}"] = moments[name].reshape(-1).numpy()
    return arrays


def _reference_arrays(prefix: str, name: str, reference: Any) -> Arrays:
    return {
        f"{prefix}{name}_atom_type_bias": reference.t_z.numpy(),
        f"{prefix}{name}_global_bias": np.array(reference.t_global),
        f"{prefix}{name}_rank": np.array(reference.solution.rank),
        f"{prefix}{name}_condition_number": np.array(reference.solution.condition_number),
        f"{prefix}energy_minus_{name}/mean": np.array(reference.mean),
        f"{prefix}energy_minus_{name}/std": np.array(reference.std),
        f"{prefix}energy_minus_{name}/rms": np.array(np.hypot(reference.mean, reference.std)),
    }


def _no_weight_message(key: str, what: str) -> str:
    return (
        f"the weigher {key!r} gives no {what} of the training split a positive weight: choose another weigher "
        "(config: data.statistics.weighers, data.statistics.initial_guess_weighers) or check the split"
    )


def _check_counts(
    key: str, basis_info: BasisInfo, counts: dict[str, Tensor], gradient_weight: Tensor, min_atoms_per_type: int
) -> None:
    if int(counts["n_samples"]) == 0:
        raise StatisticsError(_no_weight_message(key, "sample"))
    if not (gradient_weight > 0).any():
        raise StatisticsError(_no_weight_message(key, "sample with energy and gradient labels"))
    n_atoms = counts["n_atoms"].reshape(-1).tolist()
    few = {
        int(z): int(n) for z, n in zip(basis_info.atomic_numbers, n_atoms, strict=True) if 0 < n < min_atoms_per_type
    }
    if few:
        raise StatisticsError(
            f"the weigher {key!r} saw too few atoms of some elements (atomic number: atoms): {few}; expected at least "
            f"{min_atoms_per_type} of each: add such molecules to the training split or lower "
            "data.statistics.min_atoms_per_type"
        )
    absent = [int(z) for z, n in zip(basis_info.atomic_numbers, n_atoms, strict=True) if n == 0]
    if absent:
        warnings.warn(
            f"the basis has the elements {absent}, of which the weigher {key!r} saw no atom: their entries are neutral "
            "(mean 0, lambda 1), and normalising such an atom is an error unless unseen_elements='identity'",
            stacklevel=2,
        )
