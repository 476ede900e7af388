"""Streaming fit of energies to the composition, with every possible gradient of the reference carried along.

The atomic reference subtracts gbar.p from the energy, and gbar is known only when all gradients have been seen. Least
squares is linear in its right-hand side, so the energy and the n_basis sums of coefficients are carried as separate
right-hand sides and combined at the end: y = E - gbar.P.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.element_blocks import (
    BatchBlocks,
    batch_blocks,
    distinct_columns,
    sums_per_sample,
)
from ofdft_norm.statistics.energy_fit_result import EnergyFitResult
from ofdft_norm.statistics.finite import refuse_non_finite
from ofdft_norm.statistics.least_squares import merge_r_factors
from ofdft_norm.statistics.molecule_sums import MoleculeSums
from ofdft_norm.statistics.residual_variance import N_BASES, ResidualVariance
from ofdft_norm.statistics.sample_weighers import SampleWeigher, labelled_weights
from ofdft_norm.statistics.slope_guess import SlopeGuess
from ofdft_norm.statistics.workspace import Workspace

# Rows are gathered before they are reduced: one factorisation of many rows costs far less than many of 128.
SAMPLES_PER_REDUCTION = 512


class EnergyFit(Metric):
    """Accumulates energies, compositions and coefficient sums for `EnergyFitResult`, for several weighers.

    Args:
        basis_info: The basis.
        weighers: K sample weighers; samples without energy label are left out.
        consecutive: Whether the samples of each molecule come one after the other.
        **kwargs: Passed to `torchmetrics.Metric`.

    Note:
        A molecule counts once, with the weighted mean over its samples. Where all samples of a molecule follow one
        another (`consecutive=True`), a molecule is reduced when the next ones have come. Otherwise sums are kept for
        every molecule, K (n_basis + n_types + 2) float64 numbers each, until the fit is computed.

    Example:
        >>> import torch
        >>> from torch_geometric.loader import DataLoader
        >>> from ofdft_norm import BasisInfo, HasEnergyLabelSampleWeigher, OFData
        >>> basis_info = BasisInfo([1], ["1x0e"])
        >>> samples = [
        ...     OFData.construct_new(basis_info, torch.rand(n, 3), [1] * n, torch.zeros(n), energy_label=-0.5 * n)
        ...     for n in (1, 2, 3)
        ... ]
        >>> metric = EnergyFit(basis_info, [HasEnergyLabelSampleWeigher()])
        >>> for batch in DataLoader(samples, batch_size=2, follow_batch=["coeffs"]):
        ...     metric.update(batch)
        >>> reference = metric.compute()["has_energy_label"].reference(gbar=torch.zeros(1, dtype=torch.float64))
        >>> round(float(reference.t_z[0]), 6), reference.std < 1e-12
        (-0.5, True)
    """

    full_state_update = False
    factors: Tensor
    residuals: Tensor
    n_molecules: Tensor
    rows: list[Tensor]
    row_keys: list[Tensor]
    molecules: list[Tensor]
    molecule_sums: list[Tensor]

    def __init__(
        self, basis_info: BasisInfo, weighers: Sequence[SampleWeigher], consecutive: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.basis_info = basis_info
        self.weighers = list(weighers)
        self.consecutive = consecutive
        n_weighers, n_types, n_basis = len(self.weighers), basis_info.n_types, basis_info.n_basis
        self.variance = ResidualVariance(basis_info.offsets.tolist(), torch.as_tensor(basis_info.l_per_basis_func == 0))
        self.sums = MoleculeSums(n_weighers, n_types, n_basis)
        # the energy is the last column of the triangle: its diagonal entry holds what the composition leaves of it
        factors = torch.zeros(n_weighers, n_types + 2, n_types + 2 + n_basis, dtype=torch.float64)
        self.add_state("factors", factors, dist_reduce_fx=partial(_merge_factors, n_regressors=n_types + 2))
        n_molecules = torch.zeros(n_weighers, 1 + n_types, dtype=torch.int64)
        self.add_state("n_molecules", n_molecules, dist_reduce_fx="sum")
        residuals = torch.zeros(n_weighers, *self.variance.shape, dtype=torch.float64)
        self.add_state("residuals", residuals, dist_reduce_fx=self._merge_residuals)
        # rows and molecules that wait for their reduction are states, too: torchmetrics copies, merges and moves them
        for name in ("rows", "row_keys", "molecules", "molecule_sums"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self._slope = SlopeGuess(basis_info.n_basis)
        self._workspace = Workspace()

    def _merge_residuals(self, states: Tensor) -> Tensor:
        return torch.stack([self.variance.merge(states[:, k]) for k in range(len(self.weighers))])

    def update(self, batch: Data | BatchBlocks, rows: slice = slice(None)) -> None:
        """Takes in a batch of samples.

        Args:
            batch: Samples with `energy_label`, `has_energy_label`, `coeffs`, or the blocks they have been cut into.
            rows: Which of the blocks' weights, zero without label, are this accumulator's.

        Raises:
            StatisticsError: If a label of a sample of positive weight is not finite.
            BatchError: If the samples lack a field.
        """
        blocks = batch if isinstance(batch, BatchBlocks) else self._blocks(batch)
        _require_energies(blocks.batches)
        weights = blocks.weights[rows]
        used = weights.any(0)
        if not used.any():
            return
        samples = self._used_rows(blocks, weights, used)
        if not torch.isfinite(samples.sum()):
            refuse_non_finite(blocks.batches, "energy_label", weights)
            refuse_non_finite(blocks.batches, "coeffs", weights)
        self._slope.update(blocks, used)
        self.rows.append(samples.to(self.device))
        self.row_keys.append(blocks.molecule_keys[used].to(self.device))
        if sum(map(len, self.rows)) >= SAMPLES_PER_REDUCTION:
            self._reduce(in_place=len(self.rows) == 1)  # nobody else has seen rows that came just now

    def _blocks(self, batch: Data) -> BatchBlocks:
        _require_energies([batch])
        return batch_blocks([batch], self.basis_info, labelled_weights(self.weighers, batch))

    def _used_rows(self, blocks: BatchBlocks, weights: Tensor, used: Tensor) -> Tensor:
        """Returns rows of used samples: weights, composition, two spare columns, energy, sums of coefficients."""
        parts = [weights.T, blocks.composition, torch.zeros(len(used), N_BASES - 1), blocks.energies()[:, None]]
        n_used, n_before_sums = int(used.sum()), sum(part.shape[1] for part in parts)
        # samples that are not used all go to one row more, which is dropped: they may hold anything
        rows = torch.zeros(n_used + 1, n_before_sums + self.basis_info.n_basis, dtype=torch.float64)
        rows[:-1, :n_before_sums] = torch.cat(parts, dim=1)[used]
        place = torch.where(used, used.cumsum(0) - 1, n_used)
        sums_per_sample(blocks, place, out=rows[:, n_before_sums:])
        return rows[:-1]

    def _reduce(self, in_place: bool = False) -> None:
        """Reduces the rows that wait, and the molecules of which no more samples will come.

        Args:
            in_place: Whether the rows, of one batch, may be overwritten.
        """
        if not isinstance(self.rows, list) or not self.rows:
            return
        keys = torch.cat(self.row_keys).cpu()
        molecules, molecule_of_row = torch.unique(keys, return_inverse=True)
        rows = self.rows[0].cpu() if in_place else self._workspace.cat("rows", self.rows)
        sums = self._add_samples(rows, molecule_of_row)
        self.rows, self.row_keys = [], []
        if self.consecutive:
            molecules, sums = self._joined([*self.molecules, molecules], [*self.molecule_sums, sums])
            still_open = molecules == keys[-1]
            closed = sums[~still_open]
            self.factors = self._with_molecules(self.factors, closed)
            self.n_molecules = self.n_molecules + self.sums.n_used(closed).to(self.device)
            molecules, sums = molecules[still_open], sums[still_open]
            self.molecules, self.molecule_sums = [], []
        self.molecules.append(molecules.to(self.device))
        self.molecule_sums.append(sums.to(self.device))
        n_molecules = sum(map(len, self.molecules))
        if len(self.molecules) > 1 and n_molecules > 2 * max(len(self.molecules[0]), SAMPLES_PER_REDUCTION):
            molecules, sums = self._joined(self.molecules, self.molecule_sums)
            self.molecules, self.molecule_sums = [molecules.to(self.device)], [sums.to(self.device)]

    def _joined(self, molecules: list[Tensor] | Tensor, sums: list[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Adds up the sums of molecules that came several times."""
        keys, table = (x if isinstance(x, Tensor) else torch.cat([t.cpu() for t in x]) for x in (molecules, sums))
        unique, index = torch.unique(keys.cpu(), return_inverse=True)
        return unique, self.sums.joined(table.cpu(), index, len(unique))

    def _add_samples(self, rows: Tensor, molecule_of_row: Tensor) -> Tensor:
        """Adds rows, which it overwrites, to the residuals, and returns their `MoleculeSums`."""
        weights, counts, y = rows.split([len(self.weighers), self.basis_info.n_types, self.variance.d], dim=1)
        columns, kind_of_row = distinct_columns(weights.T)
        sums = self.sums.of_samples(counts, y[:, N_BASES - 1 :], molecule_of_row, columns, kind_of_row)
        residuals, slope = self.residuals.cpu(), self._slope.value()
        for kind, kind_weights in enumerate(columns.T.tolist()):
            of_kind = rows
            if columns.shape[1] > 1:
                of_kind = self._workspace.select("kind", rows, (kind_of_row == kind).nonzero().squeeze(1))
            _, kind_counts, kind_y = of_kind.split([weights.shape[1], counts.shape[1], y.shape[1]], dim=1)
            state = self.variance.of_rows(kind_counts, kind_y, slope)
            for residual, weight in zip(residuals, kind_weights, strict=True):
                self.variance.add(residual, state, weight)
        self.residuals = residuals.to(self.device)
        return sums

    def _with_molecules(self, factors: Tensor, sums: Tensor) -> Tensor:
        """Adds molecules, each with the mean over its samples, to every weigher's factor."""
        stacked = [torch.cat([factor, self.sums.mean_rows(sums, k)]) for k, factor in enumerate(factors.cpu())]
        merged = torch.stack([merge_r_factors(rows, self.basis_info.n_types + 2) for rows in stacked])
        return merged.to(self.device)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Reduces waiting rows, then lets torchmetrics gather the states of all ranks."""
        self._reduce()
        if not self.molecules:  # a rank without molecules still has to join the collective
            self.molecules = [torch.zeros(0, dtype=torch.int64, device=self.device)]
            self.molecule_sums = [self.sums.empty().to(self.device)]
        super().sync(*args, **kwargs)

    def reset(self) -> None:
        """Forgets all samples."""
        self._slope = SlopeGuess(self.basis_info.n_basis)
        super().reset()

    def compute(self) -> dict[str, EnergyFitResult]:
        """Returns, per weigher key, what is needed to solve for a reference."""
        self._reduce()
        factors, n_molecules, residuals = self.factors.cpu(), self.n_molecules.cpu(), self.residuals.cpu()
        if len(self.molecules):
            _, sums = self._joined(self.molecules, self.molecule_sums)
            factors, n_molecules = self._with_molecules(factors, sums).cpu(), n_molecules + self.sums.n_used(sums)
        n_types = self.basis_info.n_types
        return {
            weigher.summary_string(): EnergyFitResult(factors[k], residuals[k], self.variance, n_types, n_molecules[k])
            for k, weigher in enumerate(self.weighers)
        }


def _merge_factors(states: Tensor, n_regressors: int) -> Tensor:
    return torch.stack([merge_r_factors(states[:, k], n_regressors) for k in range(states.shape[1])])


def _require_energies(batches: Sequence[Data]) -> None:
    if any(batch.get("energy_label") is None for batch in batches):
        raise BatchError("fitting reference energies needs the field 'energy_label', which the samples lack")
