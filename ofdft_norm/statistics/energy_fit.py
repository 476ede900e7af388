"""Streaming fit of energies to the composition, with every possible gradient of the reference carried along.

The atomic reference subtracts gbar.p from the energy, and gbar is known only when all gradients have been seen. Least
squares is linear in its right-hand side, so the energy and the n_basis sums of coefficients are carried as separate
right-hand sides and combined at the end: y = E - gbar.P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.element_blocks import (
    SampleKind,
    composition,
    distinct_columns,
    sample_kinds,
    sums_per_sample,
)
from ofdft_norm.statistics.least_squares import LeastSquaresSolution, merge_r_factors, solve_r_factor
from ofdft_norm.statistics.molecule_keys import molecule_keys
from ofdft_norm.statistics.moments import has_label
from ofdft_norm.statistics.residual_variance import ResidualVariance
from ofdft_norm.statistics.sample_weighers import SampleWeigher, sample_weights

# Rows are gathered before they are reduced: one factorisation of 4096 rows costs far less than 32 of 128.
SAMPLES_PER_REDUCTION = 4096
MOLECULES_PER_REDUCTION = 1024


@dataclass(frozen=True)
class EnergyReferenceSolution:
    """Composition part of an atomic reference, and what it leaves of the energies [hartree]."""

    t_z: Tensor
    t_global: float
    mean: float
    std: float
    solution: LeastSquaresSolution


class EnergyFitResult:
    """What one weigher's energies left behind; solves for any gradient gbar of the reference.

    Attributes:
        factor: (n_types + 1, n_types + 1 + 1 + n_basis) [R | Q^T Y] over molecules.
        residuals: State of `ResidualVariance` over samples.
        variance: The functions that read `residuals`.
        n_types: Number of elements.
        n_molecules: Number of molecules with at least one labelled sample of positive weight.
    """

    def __init__(
        self, factor: Tensor, residuals: Tensor, variance: ResidualVariance, n_types: int, n_molecules: int
    ) -> None:
        # a plain class: torchmetrics rewrites the fields of dataclasses that a metric returns
        self.factor = factor
        self.residuals = residuals
        self.variance = variance
        self.n_types = n_types
        self.n_molecules = n_molecules

    def reference(self, gbar: Tensor, with_bias: bool = True, ridge: float = 0.0) -> EnergyReferenceSolution:
        """Fits mean energies of molecules, less gbar.p, to their composition.

        Args:
            gbar: (n_basis,) gradient of the reference [hartree].
            with_bias: Whether a constant t_0 is fitted beside the elements' energies.
            ridge: Relative ridge, see `solve_r_factor`.

        Returns:
            (n_types,) energies of the elements, the constant, and the residual's mean and std over samples.
        """
        n = self.n_types + 1 if with_bias else self.n_types
        right = self.factor[:n, self.n_types + 1 :]
        solution = solve_r_factor(self.factor[:n, :n], right[:, :1] - right[:, 1:] @ gbar[:, None], ridge)
        t = torch.zeros(self.n_types + 1, dtype=torch.float64)
        t[:n] = solution.x[:, 0]
        mean, std = self.variance.residual(self.residuals, gbar, t)
        return EnergyReferenceSolution(t[:-1], float(t[-1]), mean, std, solution)


class EnergyFit(Metric):
    """Accumulates energies, compositions and coefficient sums for `EnergyFitResult`, for several weighers.

    Args:
        basis_info: The basis.
        weighers: K sample weighers; samples without energy label are left out.
        **kwargs: Passed to `torchmetrics.Metric`.

    Note:
        A molecule counts once, with the weighted mean over its samples. Where a batch holds whole molecules
        (`whole_molecules=True`) their rows are reduced at once. Otherwise sums are kept for every molecule,
        (n_basis + n_types + 2) K float64 numbers each, until the fit is computed.
    """

    full_state_update = False
    factors: Tensor
    residuals: Tensor
    n_molecules: Tensor
    scattered_keys: list[Tensor]
    scattered_sums: list[Tensor]

    def __init__(self, basis_info: BasisInfo, weighers: Sequence[SampleWeigher], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.basis_info = basis_info
        self.weighers = list(weighers)
        n_weighers, n_types, n_basis = len(self.weighers), basis_info.n_types, basis_info.n_basis
        self.variance = ResidualVariance(n_types, n_basis)
        factors = torch.zeros(n_weighers, n_types + 1, n_types + 2 + n_basis, dtype=torch.float64)
        self.add_state("factors", factors, dist_reduce_fx=partial(_merge_factors, n_regressors=n_types + 1))
        self.add_state("n_molecules", torch.zeros(n_weighers, dtype=torch.int64), dist_reduce_fx="sum")
        residuals = torch.zeros(n_weighers, self.variance.size, dtype=torch.float64)
        self.add_state("residuals", residuals, dist_reduce_fx=self._merge_residuals)
        self.add_state("scattered_keys", [], dist_reduce_fx="cat")
        self.add_state("scattered_sums", [], dist_reduce_fx="cat")
        self._samples: list[Tensor] = []
        self._molecules: list[Tensor] = []

    def _merge_residuals(self, states: Tensor) -> Tensor:
        return torch.stack([self.variance.merge(states[:, k]) for k in range(len(self.weighers))])

    def update(
        self,
        batch: Data,
        whole_molecules: bool = False,
        kinds: Sequence[SampleKind] | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Takes in a batch of samples.

        Args:
            batch: Samples with `energy_label`, `has_energy_label`, `coeffs`.
            whole_molecules: Whether every molecule of the batch is in it with all its samples, one after the other,
                and will not come again.
            kinds: The samples' element blocks, where they are already known.
            weights: (K, S) weights, zero without label, where they are already known.
        """
        if batch.get("energy_label") is None:
            raise BatchError("fitting reference energies needs the field 'energy_label', which the samples lack")
        batch = batch.cpu() if batch.coeffs.device.type != "cpu" else batch
        if weights is None:
            weights = sample_weights(self.weighers, batch) * has_label(batch)
        if kinds is None:
            kinds = sample_kinds(batch, self.basis_info, weights)
        used = weights.any(0)
        if not used.any():
            return
        n_samples, n_basis = weights.shape[1], self.basis_info.n_basis
        coeffs = batch.coeffs.to(torch.float64)
        sums = torch.zeros(n_samples, n_basis, dtype=torch.float64)
        for kind in kinds:
            if used[kind.samples].any():
                sums += sums_per_sample(kind, coeffs, n_samples, n_basis)
        counts = composition(batch, self.basis_info)
        energy = batch.energy_label.to(torch.float64).reshape(-1, 1)
        rows = torch.cat([weights.T, counts, energy, sums], dim=1)[used]
        self._samples.append(rows)
        keys = molecule_keys(batch)[used]
        if whole_molecules:
            self._molecules.append(self._sums_of_runs(rows, keys))
        else:
            self.scattered_keys.append(keys)
            self.scattered_sums.append(self._sums_of(rows, torch.arange(len(rows)), len(rows)))
            self._compact()
        if sum(map(len, self._samples)) >= SAMPLES_PER_REDUCTION:
            self._reduce_samples()
        if sum(map(len, self._molecules)) >= MOLECULES_PER_REDUCTION:
            self._reduce_molecules()

    def _sums_of_runs(self, rows: Tensor, keys: Tensor) -> Tensor:
        _, molecule = torch.unique_consecutive(keys, return_inverse=True)
        return self._sums_of(rows, molecule, int(molecule[-1]) + 1)

    def _sums_of(self, rows: Tensor, molecule: Tensor, n_molecules: int) -> Tensor:
        """Returns, per molecule and weigher, [sum of weights, counts, weighted sums of energy and coefficients]."""
        n_weighers, n_types = len(self.weighers), self.basis_info.n_types
        weights, counts, values = rows.split([n_weighers, n_types, rows.shape[1] - n_weighers - n_types], dim=1)
        table = rows.new_zeros(n_molecules, n_weighers, 1 + n_types + values.shape[1])
        for k in range(n_weighers):
            weight = weights[:, k : k + 1]
            weighted = torch.cat([weight, torch.zeros_like(counts), values * weight], dim=1)
            table[:, k].index_add_(0, molecule, weighted)
        table[molecule, :, 1 : 1 + n_types] = counts[:, None]
        return table

    def _compact(self) -> None:
        """Joins the sums of molecules that came in several batches, whenever the list has doubled."""
        n_rows = sum(map(len, self.scattered_keys))
        if len(self.scattered_keys) > 1 and n_rows > 2 * max(len(self.scattered_keys[0]), SAMPLES_PER_REDUCTION):
            keys, sums = self._joined(torch.cat(self.scattered_keys), torch.cat(self.scattered_sums))
            self.scattered_keys, self.scattered_sums = [keys], [sums]

    def _joined(self, keys: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        unique, molecule = torch.unique(keys, return_inverse=True)
        joined = sums.new_zeros(len(unique), *sums.shape[1:]).index_add_(0, molecule, sums)
        n_types = self.basis_info.n_types
        joined[molecule, :, 1 : 1 + n_types] = sums[:, :, 1 : 1 + n_types]
        return unique, joined

    def _reduce_samples(self) -> None:
        if not self._samples:
            return
        rows = torch.cat(self._samples)
        self._samples = []
        n_weighers, n_types = len(self.weighers), self.basis_info.n_types
        weights, counts, energy, sums = rows.split([n_weighers, n_types, 1, self.basis_info.n_basis], dim=1)
        filled = self.residuals[self.residuals[:, 0] > 0]
        offset = self.variance.offset(filled[0]) if len(filled) else self.variance.offset_of(counts, energy[:, 0])
        kinds, _ = distinct_columns(weights.T)
        for kind in kinds:
            i = kind.samples
            state = self.variance.of_rows(energy[i, 0], counts[i], sums[i], offset)
            for k, weight in enumerate(kind.weights.tolist()):
                if weight > 0:
                    self.variance.add(self.residuals[k], state, weight)

    def _reduce_molecules(self) -> None:
        if self._molecules:
            table = torch.cat(self._molecules)
            self._molecules = []
            self.factors = self._with_molecules(self.factors, table)
            self.n_molecules = self.n_molecules + _count(table)

    def _with_molecules(self, factors: Tensor, table: Tensor) -> Tensor:
        """Adds molecules, each with the mean over its samples, to every weigher's factor."""
        n_types = self.basis_info.n_types
        out = []
        for k, factor in enumerate(factors):
            sums = table[table[:, k, 0] > 0, k]
            means = sums[:, 1 + n_types :] / sums[:, :1]
            rows = torch.cat([sums[:, 1 : 1 + n_types], torch.ones_like(sums[:, :1]), means], dim=1)
            out.append(merge_r_factors(torch.cat([factor, rows]), n_types + 1))
        return torch.stack(out)

    def _flush(self) -> None:
        self._reduce_samples()
        self._reduce_molecules()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Reduces buffered rows, then lets torchmetrics gather the states of all ranks."""
        self._flush()
        if not self.scattered_keys:  # a rank without rows still has to join the collective
            width = 2 + self.basis_info.n_types + self.basis_info.n_basis
            self.scattered_keys = [torch.zeros(0, dtype=torch.int64)]
            self.scattered_sums = [torch.zeros(0, len(self.weighers), width, dtype=torch.float64)]
        super().sync(*args, **kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Adds another accumulator's samples to this one's."""
        self._flush()
        if isinstance(incoming_state, EnergyFit):
            incoming_state._flush()
        super().merge_state(incoming_state)

    def reset(self) -> None:
        """Forgets all samples."""
        self._samples, self._molecules = [], []
        super().reset()

    def compute(self) -> dict[str, EnergyFitResult]:
        """Returns, per weigher key, what is needed to solve for a reference."""
        self._flush()
        factors, n_molecules = self.factors, self.n_molecules
        keys, sums = _as_tensor(self.scattered_keys), _as_tensor(self.scattered_sums)
        if keys is not None and sums is not None and len(keys):
            table = self._joined(keys, sums)[1]
            factors, n_molecules = self._with_molecules(factors, table), n_molecules + _count(table)
        n_types = self.basis_info.n_types
        return {
            weigher.summary_string(): EnergyFitResult(
                factors[k], self.residuals[k], self.variance, n_types, int(n_molecules[k])
            )
            for k, weigher in enumerate(self.weighers)
        }


def _count(table: Tensor) -> Tensor:
    """Returns the (K,) number of molecules of positive weight."""
    return (table[:, :, 0] > 0).sum(0)


def _merge_factors(states: Tensor, n_regressors: int) -> Tensor:
    return torch.stack([merge_r_factors(states[:, k], n_regressors) for k in range(states.shape[1])])


def _as_tensor(state: list[Tensor] | Tensor) -> Tensor | None:
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else None
