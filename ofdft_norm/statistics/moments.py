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
from ofdft_norm.errors import BatchError
from ofdft_norm.statistics.element_blocks import SampleKind, sample_kinds
from ofdft_norm.statistics.sample_weighers import SampleWeigher, sample_weights

WEIGHT, MEAN, M2, MINIMUM, MAXIMUM = range(5)


def empty_moments(n_weighers: int, n_basis: int) -> Tensor:
    """Returns the (5, K, n_basis) state of no sample at all."""
    state = torch.zeros(5, n_weighers, n_basis, dtype=torch.float64)
    state[MINIMUM], state[MAXIMUM] = torch.inf, -torch.inf
    return state


def merge_moments(states: Tensor) -> Tensor:
    """Merges a stack of states, first to last.

    Args:
        states: (n, 5, K, n_basis).

    Returns:
        (5, K, n_basis), the state of all their samples together.
    """
    merged = states[0]
    for other in states[1:]:
        merged = _merge_two(merged, other)
    return merged


def _merge_two(a: Tensor, b: Tensor) -> Tensor:
    total = a[WEIGHT] + b[WEIGHT]
    share = b[WEIGHT] / total.clamp_min(torch.finfo(torch.float64).tiny)
    delta = b[MEAN] - a[MEAN]
    merged = torch.empty_like(a)
    merged[WEIGHT] = total
    # a convex combination: exactly b's mean where a is empty, exactly a's where b is
    merged[MEAN] = torch.where(share < 1, a[MEAN] + delta * share, b[MEAN])
    merged[M2] = a[M2] + b[M2] + delta.square() * (a[WEIGHT] * share)
    torch.minimum(a[MINIMUM], b[MINIMUM], out=merged[MINIMUM])
    torch.maximum(a[MAXIMUM], b[MAXIMUM], out=merged[MAXIMUM])
    return merged


def moments_of_kind(values: Tensor, kind: SampleKind, weights: Tensor, n_basis: int) -> Tensor:
    """Takes the moments of one kind of samples and counts them with every weigher's weight.

    Args:
        values: (N,) flat field of the batch.
        kind: Samples of equal weights.
        weights: (K,) their weights.
        n_basis: Number of functions over all elements.

    Returns:
        (5, K, n_basis) state; a weigher of weight 0 sees nothing, not even a maximum.
    """
    one = empty_moments(1, n_basis)[:, 0]
    for block in kind.blocks:
        x = values.take(block.entries)
        columns = block.columns
        one[WEIGHT, columns] = x.shape[0]
        torch.mean(x, 0, out=one[MEAN, columns])
        torch.amin(x, 0, out=one[MINIMUM, columns])
        torch.amax(x, 0, out=one[MAXIMUM, columns])
        x -= one[MEAN, columns]
        torch.sum(x.square_(), 0, out=one[M2, columns])
    state = one[:, None].repeat(1, len(weights), 1)
    state[WEIGHT] *= weights[:, None]
    state[M2] *= weights[:, None]
    unseen = weights == 0
    if unseen.any():
        state[:, unseen] = empty_moments(1, n_basis)
    return state


class FieldMoments(Metric):
    """Mean, standard deviation and extrema of one per-function field, per element and dimension.

    Statistics run over all atoms of an element, each counted with its sample's weight. Gradients of samples without
    label are left out, whatever the weigher says.

    Args:
        basis_info: The basis.
        field: ``"coeffs"``, ``"gradient_label"``, or ``"initial_guess_delta"`` (`coeffs` minus
            `ground_state_coeffs`).
        weighers: K sample weighers.
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

    def __init__(self, basis_info: BasisInfo, field: str, weighers: Sequence[SampleWeigher], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.basis_info = basis_info
        self.field = field
        self.weighers = list(weighers)
        state = empty_moments(len(self.weighers), basis_info.n_basis)
        self.add_state("moments", state, dist_reduce_fx=merge_moments)

    def weights(self, batch: Data) -> Tensor:
        """Returns the (K, S) weights with which this field of the batch's samples counts."""
        weights = sample_weights(self.weighers, batch)
        return weights * has_label(batch) if self.field == "gradient_label" else weights

    def update(self, batch: Data, kinds: Sequence[SampleKind] | None = None, rows: slice = slice(None)) -> None:
        """Takes in a batch of samples (or one sample), on any device.

        Args:
            batch: The samples.
            kinds: Their element blocks, where they are already known.
            rows: Which of the kinds' weights are this accumulator's.
        """
        batch = batch.cpu() if self.moments.device.type != "cpu" else batch
        values = field_values(batch, self.field).to(torch.float64)
        if kinds is None:
            kinds = sample_kinds(batch, self.basis_info, self.weights(batch))
        for kind in kinds:
            weights = kind.weights[rows]
            if weights.any():
                state = moments_of_kind(values, kind, weights, self.basis_info.n_basis)
                self.moments = _merge_two(self.moments, state.to(self.moments.device))

    def compute(self) -> dict[str, dict[str, Tensor]]:
        """Returns, per weigher key, `mean`, `std`, `abs_max`, `minimum`, `maximum`, `weight`: (n_basis,) float64.

        Dimensions that no atom of positive weight has are neutral: 0 throughout.
        """
        return {w.summary_string(): finish_moments(self.moments[:, k]) for k, w in enumerate(self.weighers)}


def finish_moments(state: Tensor) -> dict[str, Tensor]:
    """Turns one weigher's (5, n_basis) state into named statistics."""
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


def has_label(batch: Data) -> Tensor:
    """Returns (S,) float64: 1 where a sample's energy and gradient labels may be used."""
    flags = batch.get("has_energy_label")
    if flags is None:
        raise BatchError("the sample lacks the field 'has_energy_label', which says whether its labels may be used")
    return flags.cpu().to(torch.float64)


def field_values(batch: Data, field: str) -> Tensor:
    """Returns the flat (N,) values of a field, or of the derived `initial_guess_delta`."""
    names = ("coeffs", "ground_state_coeffs") if field == "initial_guess_delta" else (field,)
    for name in names:
        if batch.get(name) is None:
            raise BatchError(f"statistics of {field!r} need the field {name!r}, which the samples lack")
    if field == "initial_guess_delta":
        return batch["coeffs"].to(torch.float64) - batch["ground_state_coeffs"].to(torch.float64)
    value: Tensor = batch[field]
    return value
