"""Streaming mean, variance, minimum and maximum of every dimension, for several weighers at once.

Functional core first, the torchmetrics `Metric` around it below. A state is one float64 tensor of shape
(5, K, n_basis): weight, mean, sum of squared deviations, minimum, maximum, for K weighers. Two states merge by the
update of Chan, Golub and LeVeque (1983), which never subtracts large sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torchmetrics import Metric

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.statistics.extremes import (
    LARGEST,
    MOLECULE,
    NOBODY,
    SECOND,
    SMALLEST,
    empty_extremes,
    extremes_of_atoms,
    merge_extremes,
    names_of_molecules,
    values_of,
)
from ofdft_norm.statistics.sample_weighers import SampleWeigher, labelled_weights, sample_weights
from ofdft_norm.statistics.weighed_batch import WeighedBatch

WEIGHT, MEAN, M2, MINIMUM, MAXIMUM = range(5)

# Extrema are taken over stacks of this many rows first: one long vector is several times faster than many short ones.
_ROWS_PER_STACK = 32
_FEWEST_STACKS = 6


def empty_moments(n_weighers: int, n_basis: int) -> Tensor:
    """Returns the (5, K, n_basis) state of no sample at all.

    Args:
        n_weighers: K.
        n_basis: Number of dimensions.
    """
    state = torch.zeros(5, n_weighers, n_basis, dtype=torch.float64)
    state[MINIMUM], state[MAXIMUM] = torch.inf, -torch.inf
    return state


def merge_moments(states: Tensor) -> Tensor:
    """Merges a stack of states.

    Args:
        states: (n, 5, K, n_basis).

    Returns:
        (5, K, n_basis), the state of all their samples together.
    """
    weight, mean = states[:, WEIGHT], states[:, MEAN]
    merged = torch.empty_like(states[0])
    total = torch.sum(weight, 0, out=merged[WEIGHT])
    share = weight / total.clamp_min(torch.finfo(torch.float64).tiny)
    # means are averaged relative to one of them: equal ones stay what they are, to the last bit
    first = mean.gather(0, (weight > 0).to(torch.uint8).argmax(0, keepdim=True))
    torch.sum(share * (mean - first), 0, out=merged[MEAN]).add_(first[0])
    deviation = mean - merged[MEAN]
    torch.sum(states[:, M2] + weight * deviation.square_(), 0, out=merged[M2])
    torch.amin(states[:, MINIMUM], 0, out=merged[MINIMUM])
    torch.amax(states[:, MAXIMUM], 0, out=merged[MAXIMUM])
    return merged


def moments_of_groups(
    field: str, batch: WeighedBatch, used: Sequence[bool], n_basis: int, least: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Takes the moments of a field for each group of samples, every atom counting once.

    Args:
        field: Name of the per-function field.
        batch: The samples.
        used: Which groups are wanted.
        n_basis: Number of functions over all elements.
        least: (G, 2, n_basis) from where on the samples of extremes are wanted, see `extremes`; None: nowhere.

    Returns:
        (G, 5, n_basis), groups that are not wanted are empty; and (G, 3, 2, 2, n_basis), the extremes' samples.
    """
    states = empty_moments(len(used), n_basis)
    holders = None if least is None else empty_extremes(len(used), n_basis)
    for element, matrix in zip(batch.elements, batch.matrices(field), strict=True):
        atoms = (part.split(element.atoms_per_group) for part in (matrix, element.samples))
        for group, (x, samples) in enumerate(zip(*atoms, strict=True)):
            if used[group] and len(x):
                weight, mean, m2, minimum, maximum = states[:, group, element.columns].unbind(0)
                weight.fill_(len(x))
                torch.mean(x, 0, out=mean)
                _over_rows(x, torch.amin, minimum)
                _over_rows(x, torch.amax, maximum)
                if holders is not None and least is not None:
                    wanted = least[group, :, element.columns]
                    if (maximum >= wanted[LARGEST]).any() or (-minimum >= wanted[SMALLEST]).any():
                        holders[..., group, element.columns] = extremes_of_atoms(x, samples, wanted, batch)
                torch.sum(x.sub_(mean).square_(), 0, out=m2)
    # the mean of equal values is that value, to the last bit
    equal = states[MINIMUM] == states[MAXIMUM]
    states[MEAN] = torch.where(equal, states[MINIMUM], states[MEAN])
    states[M2].masked_fill_(equal, 0.0)
    return states.transpose(0, 1), None if holders is None else holders.movedim(-2, 0)


def _over_rows(x: Tensor, reduce: Any, out: Tensor) -> None:
    """Minimum or maximum over the rows of (n, dim)."""
    n_stacks = len(x) // _ROWS_PER_STACK
    if n_stacks < _FEWEST_STACKS:
        reduce(x, 0, out=out)
        return
    whole = n_stacks * _ROWS_PER_STACK
    best = reduce(x[:whole].view(n_stacks, -1), 0).view(_ROWS_PER_STACK, -1)
    reduce(best if whole == len(x) else torch.cat([best, x[whole:]]), 0, out=out)


def least_wanted(extremes: Tensor, weights: Tensor) -> Tensor:
    """Returns what a sample must reach to be among the extremes of a weigher that counts it.

    Args:
        extremes: (3, 2, 2, K, n_basis).
        weights: (K, G) of groups of samples.

    Returns:
        (G, 2, n_basis).
    """
    seconds = values_of(extremes)[:, SECOND]
    unseen = (weights == 0).T[:, None, :, None]
    return torch.where(unseen, torch.inf, seconds).amin(2)


def count_with_weights(states: Tensor, weights: Tensor) -> Tensor:
    """Counts moments of samples of weight 1 with every weigher's weight.

    Args:
        states: (n, 5, n_basis).
        weights: (n, K).

    Returns:
        (n, 5, K, n_basis); a weigher of weight 0 sees nothing, not even a maximum.
    """
    counted = states[:, :, None].repeat(1, 1, weights.shape[1], 1)
    counted[:, [WEIGHT, M2]] *= weights[:, None, :, None]
    unseen = (weights == 0)[:, None, :, None]
    return torch.where(unseen, empty_moments(1, states.shape[-1]), counted) if unseen.any() else counted


class FieldMoments(Metric):
    """Mean, standard deviation and extrema of one per-function field, per element and dimension.

    Statistics run over all atoms of an element, each counted with its sample's weight. Gradients of samples without
    label are left out, whatever the weigher says.

    Args:
        basis_info: The basis.
        field: ``"coeffs"``, ``"gradient_label"``, or ``"initial_guess_delta"`` (`coeffs` minus
            `ground_state_coeffs`).
        weighers: K sample weighers.
        remember_samples: Whether to remember which samples hold the extremes.
        **kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from torch_geometric.loader import DataLoader
        >>> from ofdft_norm import BasisInfo, ConstantSampleWeigher, OFData
        >>> basis_info = BasisInfo([1], ["2x0e"])
        >>> samples = [OFData.construct_new(basis_info, [[0.0, 0, 0]], [1], torch.tensor([x, 1.0])) for x in (1.0, 3.0)]
        >>> metric = FieldMoments(basis_info, "coeffs", [ConstantSampleWeigher()])
        >>> for batch in DataLoader(samples, batch_size=1, follow_batch=["coeffs"]):
        ...     metric.update(batch)
        >>> metric.compute()["constant"]["mean"].tolist(), metric.compute()["constant"]["std"].tolist()
        ([2.0, 1.0], [1.0, 0.0])
    """

    full_state_update = False
    moments: Tensor
    extremes: Tensor

    def __init__(
        self,
        basis_info: BasisInfo,
        field: str,
        weighers: Sequence[SampleWeigher],
        remember_samples: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.basis_info = basis_info
        self.field = field
        self.weighers = list(weighers)
        state = empty_moments(len(self.weighers), basis_info.n_basis)
        self.add_state("moments", state, dist_reduce_fx=merge_moments)
        self.remember_samples = remember_samples
        self.names: dict[int, str] = {}  # of molecules, by key
        if remember_samples:
            no_samples = empty_extremes(len(self.weighers), basis_info.n_basis)
            self.add_state("extremes", no_samples, dist_reduce_fx=merge_extremes)

    def update(self, batch: Data | WeighedBatch, rows: slice = slice(None)) -> None:
        """Takes in a batch of samples (or one sample), on any device.

        Args:
            batch: The samples, perhaps weighed already.
            rows: Which of a `WeighedBatch`'s weights are this accumulator's.

        Raises:
            StatisticsError: If a number of a sample of positive weight is not finite.
            BatchError: If the samples lack a field.
        """
        if not isinstance(batch, WeighedBatch):
            weigh = labelled_weights if self.field == "gradient_label" else sample_weights
            batch = WeighedBatch(batch, weigh(self.weighers, batch), self.basis_info)
        weights = batch.group_weights[rows]
        used = weights.any(0).tolist()
        if not any(used):
            return
        least = least_wanted(self.extremes.cpu(), weights) if self.remember_samples else None
        states, holders = moments_of_groups(self.field, batch, used, self.basis_info.n_basis, least)
        if not torch.isfinite(states[:, M2].sum()):
            batch.refuse_non_finite(self.field, batch.weights[rows])
        counted = count_with_weights(states, weights.T)
        self.moments = merge_moments(torch.cat([self.moments.cpu()[None], counted])).to(self.device)
        if holders is not None and (holders[:, MOLECULE] != NOBODY).any():
            self._remember(holders, weights, batch)

    def _remember(self, holders: Tensor, weights: Tensor, batch: WeighedBatch) -> None:
        """Merges the samples that hold the extremes of groups, (G, 3, 2, 2, n_basis)."""
        columns = (holders[:, MOLECULE] != NOBODY).flatten(0, 2).any(0).nonzero().squeeze(1)  # few, after the first
        seen = (weights > 0).T[:, None, None, None, :, None]
        counted = torch.where(seen, holders[..., None, columns], empty_extremes(1, 1))
        extremes = self.extremes.cpu().clone()
        extremes[..., columns] = merge_extremes(torch.cat([extremes[None][..., columns], counted]))
        self.extremes = extremes.to(self.device)
        self.names.update(names_of_molecules(holders[:, MOLECULE], batch))

    def merge_state(self, incoming_state: Any) -> None:
        """Takes over what another accumulator of the same field has seen."""
        super().merge_state(incoming_state)
        self.names.update(incoming_state.names)

    def compute(self) -> dict[str, dict[str, Tensor]]:
        """Returns, per weigher key, `mean`, `std`, `abs_max`, `minimum`, `maximum`, `weight`: (n_basis,) float64.

        Dimensions that no atom of positive weight has are neutral: 0 throughout. (A basis of one single function
        gives scalars: torchmetrics squeezes them.) With `remember_samples` also `extremes`, (3, 2, 2, n_basis), see
        `ofdft_norm.statistics.extremes`; `names` has the molecules' names.
        """
        found = {w.summary_string(): finish_moments(self.moments[:, k]) for k, w in enumerate(self.weighers)}
        if self.remember_samples:
            for k, statistics in enumerate(found.values()):
                statistics["extremes"] = self.extremes[..., k, :]
        return found


def finish_moments(state: Tensor) -> dict[str, Tensor]:
    """Turns one weigher's (5, n_basis) state into named statistics.

    Args:
        state: Weights, sums and extrema.
    """
    seen = state[WEIGHT] > 0
    minimum = torch.where(seen, state[MINIMUM], 0.0)
    maximum = torch.where(seen, state[MAXIMUM], 0.0)
    return {
        "mean": torch.where(seen, state[MEAN], 0.0),
        "std": torch.where(seen, state[M2] / torch.where(seen, state[WEIGHT], 1.0), 0.0).sqrt(),
        "abs_max": torch.maximum(minimum.abs(), maximum.abs()),
        "minimum": minimum,
        "maximum": maximum,
        "weight": state[WEIGHT],
    }
