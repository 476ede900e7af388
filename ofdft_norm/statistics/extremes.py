"""Which samples hold the extremes of a field, and what the extremes are without those samples' molecules.

A state is one int64 tensor of shape (3, 2, 2, K, n_basis), for K weighers. First axis: value (the bits of a float64),
molecule and SCF iteration of a sample. Second axis: the largest values, and the smallest ones, which are negated, so
that larger is always more extreme. Third axis: the sample that holds the extreme, and the one that holds it among all
OTHER molecules. Ties go to the smaller molecule key, then to the earlier iteration: states merge to the same result in
any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofdft_norm.data.of_data import sample_name
from ofdft_norm.statistics.reading import SAMPLE_INDEX
from ofdft_norm.statistics.weighed_batch import WeighedBatch

IntArray = npt.NDArray[np.int64]

VALUE, MOLECULE, ITERATION = range(3)
LARGEST, SMALLEST = range(2)
FIRST, SECOND = range(2)

NOBODY = int(torch.iinfo(torch.int64).max)  # a molecule key that no molecule has
UNKNOWN_ITERATION = -1

_SHARE_OF_A_FEW = 16  # one of so many

# Under these names statistics hold where in their table of samples each entry stands; those of SECOND also the value.
PLACES = {
    "maximum": (LARGEST, FIRST),
    "minimum": (SMALLEST, FIRST),
    "second_maximum": (LARGEST, SECOND),
    "second_minimum": (SMALLEST, SECOND),
}


def empty_extremes(*shape: int) -> Tensor:
    """Returns the (3, 2, 2, *shape) state of no sample at all.

    Args:
        *shape: Shape of the dimensions.
    """
    state = torch.full((3, 2, 2, *shape), NOBODY)
    values_of(state).fill_(-torch.inf)
    return state


def values_of(state: Tensor) -> Tensor:
    """Returns the float64 values of a state, in the same memory.

    Args:
        state: State of largest and smallest values with whose they are.
    """
    return state[VALUE].view(torch.float64)


def merge_extremes(states: Tensor) -> Tensor:
    """Merges a stack of states, (n, 3, 2, 2, ...) -> (3, 2, 2, ...).

    Args:
        states: States of several batches or ranks.
    """
    entries = states.movedim(3, 1).flatten(0, 1)  # whoever was first or second is a candidate for both
    first = _most_extreme(entries)
    again = (entries[:, MOLECULE] == first[MOLECULE])[:, None]
    nobody = empty_extremes()[:, 0, 0].view(3, *(1,) * (entries.ndim - 2))
    return torch.stack([first, _most_extreme(torch.where(again, nobody, entries))], dim=2)


def _most_extreme(entries: Tensor) -> Tensor:
    """Returns the entry (3, 2, ...) of the largest value among (n, 3, 2, ...)."""
    values = entries[:, VALUE].view(torch.float64)
    best = values.amax(0)
    molecules = torch.where(values == best, entries[:, MOLECULE], NOBODY)
    molecule = molecules.amin(0)
    iteration = torch.where(molecules == molecule, entries[:, ITERATION], NOBODY).amin(0)
    return torch.stack([best.view(torch.int64), molecule, iteration])


def extremes_of_atoms(x: Tensor, samples: Tensor, least: Tensor, batch: WeighedBatch) -> Tensor:
    """Returns the state (3, 2, 2, dim) of some atoms of one element.

    Args:
        x: (atoms, dim) the field.
        samples: (atoms,) the sample of each atom.
        least: (2, dim) smaller values are of no interest.
        batch: The samples.

    Returns:
        The state, in which values of no interest may be missing.
    """
    few = len(x) // _SHARE_OF_A_FEW
    if few and least.isinf().any():  # nothing is known yet: a few atoms tell what all others must reach
        found = extremes_of_atoms(x[:few], samples[:few], least, batch)
        least = torch.maximum(least, values_of(found)[:, SECOND])
        return merge_extremes(torch.stack([found, _extremes_beyond(x[few:], samples[few:], least, batch)]))
    return _extremes_beyond(x, samples, least, batch)


def _extremes_beyond(x: Tensor, samples: Tensor, least: Tensor, batch: WeighedBatch) -> Tensor:
    """Searches the atoms that reach `least` in some column: most have none."""
    state, values = empty_extremes(x.shape[1]), x.numpy()
    for side, bounds in enumerate(least.numpy()):
        # NumPy: torch takes four times as long to compare and to find the few that are true
        reaching = np.flatnonzero(values >= bounds if side == LARGEST else values <= -bounds)
        if len(reaching):
            atoms, columns = (np.unique(index) for index in np.divmod(reaching, x.shape[1]))
            molecules, iterations = (ids.numpy()[samples.numpy()[atoms]] for ids in (batch.molecules, batch.iterations))
            order = np.lexsort((iterations, molecules))
            of_columns = values[atoms[order]][:, columns].T if side == LARGEST else -values[atoms[order]][:, columns].T
            found = _two_largest(of_columns, molecules[order], iterations[order])
            state[:, side][..., torch.from_numpy(columns)] = found
    return state


def _two_largest(values: npt.NDArray[np.float64], molecules: IntArray, iterations: IntArray) -> Tensor:
    """Returns the state (3, 2, columns) of (columns, atoms) values; atoms are sorted by molecule and iteration."""
    state = empty_extremes(len(values))[:, LARGEST]
    for place in (FIRST, SECOND):
        atom = values.argmax(1)  # the first of equal ones
        largest = values[np.arange(len(values)), atom]
        found = largest > -np.inf
        ids = np.stack([molecules[atom], iterations[atom]])
        state[MOLECULE:, place] = torch.from_numpy(np.where(found, ids, NOBODY))
        values_of(state[:, None])[0, place] = torch.from_numpy(largest)
        values = np.where(molecules == ids[0][:, None], -np.inf, values)
    return state


def names_of_molecules(molecules: Tensor, batch: WeighedBatch) -> dict[int, str]:
    """Returns the names of some of a batch's molecules, given and returned by key; `NOBODY` has none.

    Args:
        molecules: Keys of molecules.
        batch: The batch that they are part of.
    """
    sample_of_key = {key: sample for sample, key in enumerate(batch.molecules.tolist())}
    keys = molecules[molecules != NOBODY].unique().tolist()
    return {key: _name(batch, sample_of_key[key]) for key in keys}


def _name(batch: WeighedBatch, sample: int) -> str:
    name, index = sample_name(batch.data, sample), batch.data.get(SAMPLE_INDEX)
    return name or ("" if index is None else f"sample {int(index[sample])}")


def extreme_arrays(
    key: str, field: str, state: Tensor, names: Mapping[int, str], mean: Tensor
) -> tuple[dict[str, npt.NDArray[Any]], list[dict[str, Any]]]:
    """Returns one weigher's extremes as statistics hold them: arrays by key, and a table of samples.

    Args:
        key: The weigher's.
        field: The field.
        state: (3, 2, 2, n_basis).
        names: Of molecules, by key.
        mean: (n_basis,) what stands for the extreme of other molecules where there are none.

    Returns:
        The values ``<field>/second_maximum`` and ``second_minimum``, and the rows ``<field>_samples/maximum``, ... of
        the table, -1 for none; the table has `name`, `scf_iteration`, and `molecule`, a number that tells molecules of
        one name apart.
    """
    molecules, iterations = (state[i].flatten().tolist() for i in (MOLECULE, ITERATION))
    entries = sorted({(names.get(m, ""), m, i) for m, i in zip(molecules, iterations, strict=True) if m != NOBODY})
    row = {(m, i): n for n, (_, m, i) in enumerate(entries)}
    number = {m: n for n, m in enumerate(dict.fromkeys(m for _, m, _ in entries))}
    rows = [row.get(entry, -1) for entry in zip(molecules, iterations, strict=True)]
    in_table = np.array(rows, dtype=np.int64).reshape(state.shape[1:])
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, place in PLACES.items():
        arrays[f"{key}/{field}_samples/{name}"] = in_table[place]
        if place[1] == SECOND:
            values = values_of(state)[place] * (1 if place[0] == LARGEST else -1)
            arrays[f"{key}/{field}/{name}"] = torch.where(values.isfinite(), values, mean).numpy()
    table = [
        {"name": name, "scf_iteration": None if i == UNKNOWN_ITERATION else i, "molecule": number[m]}
        for name, m, i in entries
    ]
    return arrays, table
