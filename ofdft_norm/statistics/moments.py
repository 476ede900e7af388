"""Weight, mean, variance, minimum and maximum of every dimension, for several weighers at once.

A field of a batch is one dense matrix for each element: reducing matrices is faster than scattering numbers. Sums of
samples of equal weights are computed once. Parts merge by the update of Chan, Golub and LeVeque (1983).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics.reading import SampleBatch

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WEIGHT, MEAN, M2, MINIMUM, MAXIMUM = range(5)
_EMPTY = np.array([0.0, 0.0, 0.0, np.inf, -np.inf]).reshape(5, 1, 1, 1)


class ElementRows(NamedTuple):
    """The atoms of one element in a batch, ordered by group of samples."""

    columns: slice  # of the element's functions in the concatenation over elements
    starts: IntArray  # (atoms,) first entry of each atom in the batch's flat vectors
    samples: IntArray  # (atoms,)
    groups: IntArray  # that occur
    bounds: IntArray  # first atom of each of these groups
    counts: IntArray  # number of their atoms


class WeighedBatch:
    """A batch sorted by element and by group of samples of equal weights; of R weighers, `weights` is (R, S)."""

    def __init__(self, batch: SampleBatch, weights: Array, basis_info: BasisInfo) -> None:
        self.batch, self.basis_info = batch, basis_info
        unique = np.ascontiguousarray(weights.T).view(f"V{8 * len(weights)}")[:, 0]
        _, first, group = np.unique(unique, return_index=True, return_inverse=True)
        self.group_weights = weights[:, first]
        atom_ind = basis_info.atom_indices(batch.atomic_numbers)
        dims = basis_info.basis_dim_per_atom[atom_ind]
        self.n_functions = int(dims.sum())
        place = atom_ind * len(first) + group[batch.sample_of_atom]
        order = np.argsort(place, kind="stable")
        starts, place, samples = (np.cumsum(dims) - dims)[order], place[order], batch.sample_of_atom[order]
        bounds = np.concatenate([[0], np.flatnonzero(place[1:] != place[:-1]) + 1])
        counts, (elements, groups) = np.diff(bounds, append=len(place)), np.divmod(place[bounds], len(first))
        self.elements = []
        for element in np.unique(elements):
            own = elements == element
            begin = bounds[own][0]
            atoms = slice(begin, begin + counts[own].sum())
            columns = slice(*basis_info.offsets[element : element + 2].tolist())
            rows = ElementRows(columns, starts[atoms], samples[atoms], groups[own], bounds[own] - begin, counts[own])
            self.elements.append(rows)

    def matrices(self, field: str) -> list[tuple[ElementRows, Array]]:
        """Returns the (atoms, functions) matrix of a field for each element."""
        values = self.batch.vector(field)
        if len(values) != self.n_functions:
            what = f"{self.batch.place(0)} and {self.batch.n_samples - 1} others have {len(values)} values of {field!r}"
            expected = f"expected {self.n_functions}: the samples were made with another basis than {self.basis_info}"
            raise BatchError(f"{what}, {expected} (config: data.source.basis_info)")
        windows = np.lib.stride_tricks.sliding_window_view
        widths = [rows.columns.stop - rows.columns.start for rows in self.elements]
        return [(r, windows(values, width)[r.starts]) for r, width in zip(self.elements, widths, strict=True)]


def refuse_value(batch: SampleBatch, sample: int, field: str, value: float) -> None:
    """Raises the error of a number that is not finite."""
    expected = "expected finite numbers, or has_energy_label False, or weight 0 (config: data.statistics.weighers)"
    raise StatisticsError(f"{batch.place(sample)}: field {field!r} is {value}, {expected}")


class Moments:
    """Moments of a per-function field for K weighers, the `rows` of the weights of a `WeighedBatch`.

    `state` (5, K, n_basis) has weight, mean, sum of squared deviations, minimum and maximum; `holders` (2, K, n_basis)
    the names of the molecules with the smallest and the largest gradient; empty without atoms.
    """

    def __init__(self, field: str, rows: slice, n_basis: int) -> None:
        self.field, self.rows, n_weighers = field, rows, rows.stop - rows.start
        self.state = np.broadcast_to(_EMPTY[:, 0], (5, n_weighers, n_basis)).copy()
        self.holders = np.full((2, n_weighers, n_basis), "", dtype=object)

    @np.errstate(all="ignore")  # values of samples with weight 0 are arbitrary
    def update(self, batch: WeighedBatch) -> None:
        """Adds samples."""
        weights = batch.group_weights[self.rows]
        if not weights.any():
            return
        matrices = batch.matrices(self.field)
        parts = np.zeros((5, weights.shape[1], 1, self.state.shape[2]))
        for rows, x in matrices:
            counts = rows.counts[:, None]
            mean = np.add.reduceat(x, rows.bounds) / counts
            squares = np.square(x - mean[np.repeat(np.arange(len(counts)), rows.counts)])
            part = parts[:, :, 0, rows.columns]  # a view
            part[WEIGHT, rows.groups], part[MEAN, rows.groups] = counts, mean
            part[M2, rows.groups] = np.add.reduceat(squares, rows.bounds)
            part[MINIMUM, rows.groups] = np.minimum.reduceat(x, rows.bounds)
            part[MAXIMUM, rows.groups] = np.maximum.reduceat(x, rows.bounds)
        counts_here = weights.T[..., None] * (parts[WEIGHT] > 0) > 0  # (G, K, n_basis)
        parts = np.where(counts_here, parts, _EMPTY)
        parts[[WEIGHT, M2]] *= weights.T[..., None]
        before, self.state = self.state, merge_moments(np.concatenate([self.state[:, None], parts], axis=1))
        if not np.isfinite(self.state[M2].sum()):
            for rows, x in matrices:
                counted = np.repeat(np.any(weights, axis=0)[rows.groups], rows.counts)
                for atom, column in np.argwhere(~np.isfinite(x) & counted[:, None])[:1]:
                    refuse_value(batch.batch, int(rows.samples[atom]), self.field, float(x[atom, column]))
        if self.field == "gradient_label":
            self._name_holders(batch.batch, matrices, before, weights)

    def _name_holders(
        self, batch: SampleBatch, matrices: Sequence[tuple[ElementRows, Array]], before: Array, weights: Array
    ) -> None:
        """Names the molecules of the extremes that a batch has changed: few, after the first batches."""
        names = np.array([name or f"sample {i}" for name, i in zip(batch.names, batch.indices, strict=True)], object)
        for side, limit in enumerate((MINIMUM, MAXIMUM)):
            changed = self.state[limit] != before[limit]
            for k, (rows, x) in itertools.product(np.flatnonzero(changed.any(1)), matrices):
                columns = np.flatnonzero(changed[k, rows.columns])
                counted = np.repeat(weights[k, rows.groups] > 0, rows.counts)[:, None]
                atoms, found = np.nonzero(counted & (x[:, columns] == self.state[limit, k, rows.columns][columns]))
                self.holders[side, k, rows.columns][columns[found]] = names[rows.samples[atoms]]

    def merge(self, others: Sequence[Moments]) -> None:
        """Uses the merged results of all ranks."""
        states, holders = np.stack([o.state for o in others], axis=1), np.stack([o.holders for o in others])
        self.state = merge_moments(states)
        for side, rank in enumerate((states[MINIMUM].argmin(0), states[MAXIMUM].argmax(0))):
            self.holders[side] = np.take_along_axis(holders[:, side], rank[None], axis=0)[0]

    def results(self, k: int) -> dict[str, Array]:
        """Returns mean, std, abs_max, minimum, maximum of one weigher, (n_basis,); 0 without atoms."""
        seen = self.state[WEIGHT, k] > 0
        weight, mean, m2, minimum, maximum = np.where(seen, self.state[:, k], [[1.0], [0.0], [0.0], [0.0], [0.0]])
        equal = minimum == maximum  # the mean of equal values is that value, to the last bit
        return {
            "mean": np.where(equal, minimum, mean),
            "std": np.where(equal, 0.0, np.sqrt(m2 / weight)),
            "abs_max": np.maximum(np.abs(minimum), np.abs(maximum)),
            "minimum": minimum,
            "maximum": maximum,
        }


def merge_moments(states: Array) -> Array:
    """Merges (5, P, K, n_basis) states of P parts to (5, K, n_basis)."""
    weight, mean = states[WEIGHT], states[MEAN]
    merged = np.empty((5, *states.shape[2:]))
    merged[WEIGHT] = total = weight.sum(0)
    share = weight / np.maximum(total, np.finfo(np.float64).tiny)
    # means are averaged relative to one of them, so that equal ones stay the same to the last bit
    origin = np.take_along_axis(mean, (weight > 0).argmax(0)[None], axis=0)[0]
    merged[MEAN] = origin + (share * (mean - origin)).sum(0)
    merged[M2] = (states[M2] + weight * np.square(mean - merged[MEAN])).sum(0)
    merged[MINIMUM], merged[MAXIMUM] = states[MINIMUM].min(0), states[MAXIMUM].max(0)
    return merged
