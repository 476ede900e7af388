"""Weight, mean, variance, minimum and maximum of every dimension, for several weighers at once.

The densities of one molecule are rows of one matrix, which is reduced first; then the atoms of each element are. Sums
of samples of equal weights are computed once. Parts merge by the update of Chan, Golub and LeVeque (1983).
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

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
    """The atoms of one element in the runs of a batch, ordered by group of samples."""

    columns: slice  # of the element's functions in the concatenation over elements
    starts: IntArray  # (atoms,) first entry of each atom in the concatenation over runs
    runs: IntArray  # (atoms,)
    sizes: Array  # (atoms, 1) number of samples of the run
    groups: IntArray  # that occur
    bounds: IntArray  # first atom of each of these groups
    counts: IntArray  # number of their atoms


class WeighedBatch:
    """A batch as runs: consecutive samples of one molecule in one group, which has equal weights.

    Of R weighers, `weights` is (R, S).
    """

    def __init__(self, batch: SampleBatch, weights: Array, basis_info: BasisInfo) -> None:
        self.batch, self.basis_info = batch, basis_info
        unique = np.ascontiguousarray(weights.T).view(f"V{8 * len(weights)}")[:, 0]
        _, first, group = np.unique(unique, return_index=True, return_inverse=True)
        self.group_weights = weights[:, first]
        atom_ind, sample = basis_info.atom_indices(batch.atomic_numbers), batch.sample_of_atom
        begins = _find_runs(batch, atom_ind, group)
        self.first = np.flatnonzero(begins)  # sample of each run
        self.groups, self.lengths = group[self.first], np.diff(self.first, append=len(begins))
        atoms = np.flatnonzero(begins[sample])
        self.run, self.atom_ind = (np.cumsum(begins) - 1)[sample[atoms]], atom_ind[atoms]  # of their atoms
        self.dims = basis_info.basis_dim_per_atom[self.atom_ind]
        self.n_functions = np.bincount(self.run, self.dims, len(self.first)).astype(np.int64)

    @cached_property
    def elements(self) -> list[ElementRows]:
        """The atoms of the runs by element."""
        place = self.atom_ind * self.group_weights.shape[1] + self.groups[self.run]
        order = np.argsort(place, kind="stable")
        starts, place, run = (np.cumsum(self.dims) - self.dims)[order], place[order], self.run[order]
        bounds = np.concatenate([[0], np.flatnonzero(place[1:] != place[:-1]) + 1])
        counts, sizes = np.diff(bounds, append=len(place)), self.lengths[run, None].astype(np.float64)
        elements, groups = np.divmod(place[bounds], self.group_weights.shape[1])
        found = []
        for element in np.unique(elements):
            own = elements == element
            begin = bounds[own][0]
            atoms = slice(begin, begin + counts[own].sum())
            columns = slice(*self.basis_info.offsets[element : element + 2].tolist())
            of_atoms = starts[atoms], run[atoms], sizes[atoms]
            found.append(ElementRows(columns, *of_atoms, groups[own], bounds[own] - begin, counts[own]))
        return found

    def vector(self, field: str) -> Array:
        """Returns the flat values of a field."""
        values, expected = self.batch.vector(field), int(self.lengths @ self.n_functions)
        if len(values) != expected:
            what = f"{self.batch.place(0)} and {self.batch.n_samples - 1} others have {len(values)} values of {field!r}"
            basis = f"the samples were made with another basis than {self.basis_info}"
            raise BatchError(f"{what}, expected {expected}: {basis} (config: data.source.basis_info)")
        return values

    def matrices(self, field: str) -> list[Array]:
        """Returns the (samples, functions) matrix of a field for each run."""
        found = split_last_axis(self.vector(field), self.lengths * self.n_functions)
        return [values.reshape(length, -1) for values, length in zip(found, self.lengths.tolist(), strict=True)]

    def reduce(self, field: str) -> Iterator[tuple[ElementRows, Sequence[Any]]]:
        """Yields for each element mean, sum of squared deviations, minimum and maximum of runs, (atoms, functions)."""
        if len(self.lengths) == self.batch.n_samples:
            flat = self.vector(field)[None]
        else:
            runs, flat = self.matrices(field), np.zeros((4, int(self.n_functions.sum())))
            for x, (mean, squares, low, high) in zip(runs, split_last_axis(flat, self.n_functions), strict=True):
                if len(x) == 1:
                    mean[:] = low[:] = high[:] = x[0]
                    continue
                np.divide(np.add.reduce(x), len(x), out=mean)
                np.add.reduce(np.square(x - mean), out=squares)
                np.minimum.reduce(x, out=low)
                np.maximum.reduce(x, out=high)
        for rows in self.elements:
            width = rows.columns.stop - rows.columns.start
            found = np.lib.stride_tricks.sliding_window_view(flat, width, axis=1)[:, rows.starts]
            yield rows, list(found) if len(found) > 1 else [found[0], 0.0, found[0], found[0]]


def split_last_axis(values: npt.NDArray[Any], lengths: IntArray) -> list[npt.NDArray[Any]]:
    """Divides the last axis into consecutive pieces; NumPy's `split` takes longer."""
    ends = np.cumsum(lengths)
    return [values[..., a:b] for a, b in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _find_runs(batch: SampleBatch, atom_ind: IntArray, group: IntArray) -> npt.NDArray[np.bool_]:
    """Returns whether each sample begins a run: the sample before it has another name, other atoms or another group."""
    names, sample = np.array(batch.names, dtype=object), batch.sample_of_atom
    n_atoms, same = np.bincount(sample, minlength=len(names)), np.zeros(len(names), dtype=bool)
    same[1:] = (names[1:] == names[:-1]) & (names[1:] != "") & (group[1:] == group[:-1]) & (np.diff(n_atoms) == 0)
    atoms = np.flatnonzero(same[sample])
    differ = atom_ind[atoms] != atom_ind[atoms - n_atoms[sample[atoms]]]
    same[sample[atoms[differ]]] = False
    return ~same


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
        parts, reduced = np.zeros((5, weights.shape[1], 1, self.state.shape[2])), list(batch.reduce(self.field))
        for rows, (means, squares, minimum, maximum) in reduced:
            total = np.add.reduceat(rows.sizes, rows.bounds)
            mean = np.add.reduceat(rows.sizes * means, rows.bounds) / total
            between = rows.sizes * np.square(means - mean[np.repeat(np.arange(len(total)), rows.counts)])
            part = parts[:, :, 0, rows.columns]  # a view
            part[WEIGHT, rows.groups], part[MEAN, rows.groups] = total, mean
            part[M2, rows.groups] = np.add.reduceat(squares + between, rows.bounds)
            part[MINIMUM, rows.groups] = np.minimum.reduceat(minimum, rows.bounds)
            part[MAXIMUM, rows.groups] = np.maximum.reduceat(maximum, rows.bounds)
        counts_here = weights.T[..., None] * (parts[WEIGHT] > 0) > 0  # (G, K, n_basis)
        parts = np.where(counts_here, parts, _EMPTY)
        parts[[WEIGHT, M2]] *= weights.T[..., None]
        before, self.state = self.state, merge_moments(np.concatenate([self.state[:, None], parts], axis=1))
        if not np.isfinite(self.state[M2].sum()):
            runs = batch.matrices(self.field)
            for run in np.flatnonzero(np.any(weights, axis=0)[batch.groups]).tolist():
                for row, column in np.argwhere(~np.isfinite(runs[run]))[:1]:
                    refuse_value(batch.batch, batch.first[run] + row, self.field, float(runs[run][row, column]))
        if self.field == "gradient_label":
            self._name_holders(batch, reduced, before, weights)

    def _name_holders(
        self,
        weighed: WeighedBatch,
        reduced: Sequence[tuple[ElementRows, Sequence[Array]]],
        before: Array,
        weights: Array,
    ) -> None:
        """Names the molecules of the extremes that a batch has changed: few, after the first batches."""
        batch = weighed.batch
        names = np.array([batch.names[i] or f"sample {batch.indices[i]}" for i in weighed.first.tolist()], object)
        for side, limit in enumerate((MINIMUM, MAXIMUM)):
            changed = self.state[limit] != before[limit]
            for k, (rows, stats) in itertools.product(np.flatnonzero(changed.any(1)), reduced):
                columns = np.flatnonzero(changed[k, rows.columns])
                counted = np.repeat(weights[k, rows.groups] > 0, rows.counts)[:, None]
                extremes = self.state[limit, k, rows.columns][columns]
                atoms, found = np.nonzero(counted & (stats[2 + side][:, columns] == extremes))
                self.holders[side, k, rows.columns][columns[found]] = names[rows.runs[atoms]]

    def merge(self, others: Sequence[Self]) -> None:
        """Uses the merged results of all ranks."""
        states, holders = np.stack([o.state for o in others], axis=1), np.stack([o.holders for o in others])
        self.state = merge_moments(states)
        for side, rank in enumerate((states[MINIMUM].argmin(0), states[MAXIMUM].argmax(0))):
            self.holders[side] = np.take_along_axis(holders[:, side], rank[None], axis=0)[0]

    def compute_results(self, k: int) -> dict[str, Array]:
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
