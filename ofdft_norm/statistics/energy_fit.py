"""Streaming fit of energies to compositions and coefficients, for several weighers, over samples and over molecules.

The atomic reference subtracts gbar.p from the energy, and gbar is known only when all gradients have been seen. So
energies and coefficients, added up over each element's atoms, are columns of the same rows, and whatever is linear in
them is asked of their triangle at the end; see `row_factor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.statistics.references import EnergyFitResult
from ofdft_norm.statistics.row_factor import RowLayout, row_factor
from ofdft_norm.statistics.sample_weighers import SampleWeigher, labelled_weights
from ofdft_norm.statistics.weighed_batch import WeighedBatch, distinct_columns

# One factorisation of many rows costs far less than many of few.
ROWS_PER_REDUCTION = 4096
# Samples of different weights have a triangle for each group of equal weights, up to this many groups.
_MOST_GROUPS = 16


class EnergyFit(Metric):
    """Accumulates energies, compositions and coefficient sums for `EnergyFitResult`.

    Args:
        layout: Columns of the rows.
        weighers: K sample weighers; samples without energy label are left out.
        molecules: ``whole``: every batch holds all samples of its molecules; ``scattered``: not so, the sums of each
            molecule's samples are kept until the fit is computed, K width float64 numbers each; None: molecules are
            not looked at, and references that count them cannot be had.
        basis_info: The density basis, needed only for batches that are not weighed yet.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from torch_geometric.loader import DataLoader
        >>> from ofdft_norm import BasisInfo, HasEnergyLabelSampleWeigher, OFData
        >>> basis_info = BasisInfo([1], ["1x0e"])
        >>> samples = [
        ...     OFData.construct_new(basis_info, torch.rand(n, 3), [1] * n, torch.zeros(n), energy_label=-0.5 * n)
        ...     for n in (1, 2, 3)
        ... ]
        >>> metric = EnergyFit(RowLayout(1, 1, 1), [HasEnergyLabelSampleWeigher()], basis_info=basis_info)
        >>> for batch in DataLoader(samples, batch_size=2, follow_batch=["coeffs"]):
        ...     metric.update(batch)
        >>> reference = metric.compute()["has_energy_label"].reference(torch.zeros(1, dtype=torch.float64))
        >>> round(float(reference.t_z[0]), 6), reference.std < 1e-12
        (-0.5, True)
    """

    full_state_update = False
    group_weights: list[Tensor]
    factors: list[Tensor]
    rows: list[Tensor]
    row_weights: list[Tensor]
    molecule_factors: Tensor
    n_molecules: Tensor
    molecules: list[Tensor]
    molecule_sums: list[Tensor]

    def __init__(
        self,
        layout: RowLayout,
        weighers: Sequence[SampleWeigher],
        molecules: Literal["whole", "scattered"] | None = "scattered",
        basis_info: BasisInfo | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.layout = layout
        self.weighers = list(weighers)
        self.molecule_order = molecules
        self.basis_info = basis_info
        n_weighers = len(self.weighers)
        # rows that wait for their reduction are states, too: torchmetrics copies, merges and moves them
        for name in ("group_weights", "factors", "rows", "row_weights", "molecules", "molecule_sums"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.n_regressors = layout.energies.stop
        factors = torch.zeros(n_weighers, self.n_regressors, layout.width, dtype=torch.float64)
        merge = partial(_merge_factors, n_columns=self.n_regressors)
        self.add_state("molecule_factors", factors, dist_reduce_fx=merge)
        n_molecules = torch.zeros(n_weighers, 1 + layout.n_types, dtype=torch.int64)
        self.add_state("n_molecules", n_molecules, dist_reduce_fx="sum")

    def update(self, batch: Data | WeighedBatch, rows: slice = slice(None)) -> None:
        """Takes in a batch of samples, on any device.

        Args:
            batch: Samples with `energy_label`, `has_energy_label`, `coeffs`, perhaps weighed already.
            rows: Which of a `WeighedBatch`'s weights, zero without label, are this accumulator's.

        Raises:
            StatisticsError: If a label of a sample of positive weight is not finite.
            BatchError: If the samples lack a field.
        """
        if not isinstance(batch, WeighedBatch):
            batch = WeighedBatch(batch, labelled_weights(self.weighers, batch), self.basis_info)
        weights = batch.weights[rows]
        used = weights.any(0)
        samples = batch.rows()[used]
        if not len(samples):
            return
        if not torch.isfinite(samples.sum()):
            for field in (*batch.energy_fields, *(["coeffs"] if batch.elements else [])):
                batch.refuse_non_finite(field, weights)
        if self.molecule_order is not None:
            self._add_to_molecules(samples, weights[:, used], batch.molecules[used])
        self.rows.append(samples.to(self.device))
        self.row_weights.append(weights[:, used].T.to(self.device))
        if sum(map(len, self.rows)) >= ROWS_PER_REDUCTION:
            self._reduce()

    # --- samples --------------------------------------------------------------------------------------------------

    def _reduce(self) -> None:
        """Reduces the rows that wait, those of equal weights together."""
        if not isinstance(self.rows, list) or not self.rows:
            return
        rows, weights = torch.cat(self.rows).cpu(), torch.cat(self.row_weights).cpu().T
        columns, group = distinct_columns(weights)
        if columns.shape[1] > _MOST_GROUPS:  # every weigher alone, with weights put into the rows
            for unit, w in zip(torch.eye(len(weights), dtype=torch.float64), weights, strict=True):
                self._add_to_group(unit, rows[w > 0] * w[w > 0].sqrt()[:, None])
        else:
            for i, column in enumerate(columns.T):
                self._add_to_group(column, rows if columns.shape[1] == 1 else rows[group == i])
        self.rows, self.row_weights = [], []
        if len(self.factors) > _MOST_GROUPS + len(weights):
            merged = [self._merged(k) for k in range(len(weights))]
            self.group_weights = list(torch.eye(len(weights), dtype=torch.float64, device=self.device)[:, None])
            self.factors = [factor[None].to(self.device) for factor in merged]

    def _add_to_group(self, weights: Tensor, rows: Tensor) -> None:
        known = [i for i, other in enumerate(self.group_weights) if torch.equal(other[0].cpu(), weights)]
        if known:
            old = self.factors[known[0]][0].cpu()
            rows = torch.cat([old[: int(old.any(1).sum())], rows])
            self.factors[known[0]] = row_factor(rows)[None].to(self.device)
        else:
            self.group_weights.append(weights[None].to(self.device))
            self.factors.append(row_factor(rows)[None].to(self.device))

    def _merged(self, weigher: int) -> Tensor:
        """Returns the triangle of one weigher, with its weights."""
        weights, factors = (torch.cat([t.cpu() for t in _tensors(s)]) for s in (self.group_weights, self.factors))
        roots = weights[:, weigher].sqrt()
        return row_factor((roots[:, None, None] * factors)[roots > 0].flatten(0, 1))

    # --- molecules ------------------------------------------------------------------------------------------------

    def _add_to_molecules(self, samples: Tensor, weights: Tensor, keys: Tensor) -> None:
        molecules, index = torch.unique(keys, return_inverse=True)
        # the first entry of a row is 1: that of the sum is the weight, by which the others are divided
        sums = torch.stack(
            [
                samples.new_zeros(len(molecules), samples.shape[1]).index_add_(0, index, samples * w[:, None])
                for w in weights
            ],
            dim=1,
        )
        if self.molecule_order == "whole":
            self._close(sums)
            return
        self.molecules.append(molecules.to(self.device))
        self.molecule_sums.append(sums.to(self.device))
        if len(self.molecules) > 1 and sum(map(len, self.molecules)) > 2 * len(self.molecules[0]) + ROWS_PER_REDUCTION:
            molecules, sums = self._joined()
            self.molecules, self.molecule_sums = [molecules.to(self.device)], [sums.to(self.device)]

    def _joined(self) -> tuple[Tensor, Tensor]:
        """Adds up the sums of molecules that came several times; returns their (M,) keys and (M, K, width) sums."""
        keys, table = (torch.cat([t.cpu() for t in _tensors(s)]) for s in (self.molecules, self.molecule_sums))
        molecules, index = torch.unique(keys, return_inverse=True)
        return molecules, table.new_zeros(len(molecules), *table.shape[1:]).index_add_(0, index, table)

    def _close(self, sums: Tensor) -> None:
        """Adds molecules of which no more samples come, each with the mean over its samples."""
        factors = self.molecule_factors.cpu()
        self.molecule_factors = torch.stack(
            [_with_molecules(factors[k], sums[:, k], self.n_regressors) for k in range(len(factors))]
        ).to(self.device)
        self.n_molecules = self.n_molecules + self._n_used(sums).to(self.device)

    def _n_used(self, sums: Tensor) -> Tensor:
        """Returns the (K, 1 + n_types) number of molecules of positive weight: all, and those with each element."""
        return (sums[:, :, : 1 + self.layout.n_types] > 0).sum(0)

    # --- results --------------------------------------------------------------------------------------------------

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Reduces waiting rows, then lets torchmetrics gather the states of all ranks."""
        self._reduce()
        n_weighers, width = len(self.weighers), self.layout.width
        empty = {"group_weights": (0, n_weighers), "factors": (0, width, width), "rows": (0, width)}
        empty |= {"row_weights": (0, n_weighers), "molecule_sums": (0, n_weighers, width)}
        for name, shape in empty.items():  # a rank without samples joins the collective all the same
            if not getattr(self, name):
                setattr(self, name, [torch.zeros(shape, dtype=torch.float64, device=self.device)])
        if not self.molecules:
            self.molecules = [torch.zeros(0, dtype=torch.int64, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, EnergyFitResult]:
        """Returns, per weigher key, what is needed to fit a reference."""
        self._reduce()
        molecule_factors, n_molecules = self.molecule_factors.cpu(), self.n_molecules.cpu()
        sums = self._joined()[1] if len(self.molecules) else None
        results = {}
        for k, weigher in enumerate(self.weighers):
            molecules, counts = molecule_factors[k], n_molecules[k]
            if sums is not None:
                molecules = _with_molecules(molecules, sums[:, k], self.n_regressors)
                counts = counts + self._n_used(sums)[k]
            samples = self._merged(k) if len(self.factors) else torch.zeros(self.layout.width, self.layout.width)
            results[weigher.summary_string()] = EnergyFitResult(self.layout, samples, molecules, counts)
        return results


def _tensors(state: list[Tensor] | Tensor) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else state


def _with_molecules(factor: Tensor, sums: Tensor, n_columns: int) -> Tensor:
    used = sums[sums[:, 0] > 0]
    return row_factor(torch.cat([factor, used / used[:, :1]]), n_columns)


def _merge_factors(states: Tensor, n_columns: int) -> Tensor:
    return torch.stack([row_factor(states[:, k].flatten(0, 1), n_columns) for k in range(states.shape[1])])
