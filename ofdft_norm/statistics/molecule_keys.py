"""Tells which samples of a batch belong to the same molecule."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import molecule_index, n_molecules

# The index of each sample's molecule in the data set, where the fit knows it.
MOLECULE_KEY = "molecule_key"

# Odd multipliers with well-spread bits (from splitmix64 and xxHash).
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9],
    dtype=np.uint64,
)


def molecule_keys(*batches: Data) -> Tensor:
    """Returns an (S,) int64 key for each sample: equal for samples of one molecule, however they are batched.

    A key is a hash of the molecule's name, its elements and its positions in their order: two molecules that merely
    share a name (two data sets read together) keep different keys. It is the same in every process. Where the fit knows
    the molecules (`MOLECULE_KEY`), their indices are the keys.
    """
    if all(batch.get(MOLECULE_KEY) is not None for batch in batches):
        return torch.cat([batch[MOLECULE_KEY] for batch in batches])
    n_atoms: list[Tensor] = []
    names: list[str] = []
    columns: list[Tensor] = []
    for batch in batches:
        n_samples = n_molecules(batch)
        n_atoms.append(torch.bincount(molecule_index(batch, "pos").cpu(), minlength=n_samples))
        numbers = batch.atomic_numbers.detach().cpu().to(torch.int64)[:, None]
        # + 0.0 turns -0.0 into 0.0
        positions = [] if batch.get("pos") is None else [batch.pos.detach().cpu().to(torch.float64) + 0.0]
        columns.append(torch.cat([numbers, *(p.view(torch.int64) for p in positions)], dim=1))
        mol_id = batch.get("mol_id")
        names += [""] * n_samples if mol_id is None else [mol_id] if isinstance(mol_id, str) else list(mol_id)
    counts = torch.cat(n_atoms)
    sample = torch.arange(len(counts)).repeat_interleave(counts)
    place = torch.arange(len(sample)) - (counts.cumsum(0) - counts)[sample]
    of_atom = _hashed(torch.cat(columns).numpy().view(np.uint64)) + _mixed(place.numpy().view(np.uint64))
    sums = torch.zeros(len(counts), dtype=torch.int64)
    sums.index_add_(0, sample, torch.from_numpy(_mixed(of_atom).view(np.int64)))
    of_name = np.array([_name_hash(str(name)) for name in names], dtype=np.uint64)
    return torch.from_numpy(_mixed(sums.numpy().view(np.uint64) + of_name).view(np.int64))


def _hashed(table: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hashes the rows of (n, columns)."""
    total = table[:, 0] * _MULTIPLIERS[0]
    for column, multiplier in zip(table.T[1:], _MULTIPLIERS[1:], strict=False):
        total += column * multiplier
    return total


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spreads every bit over all others (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[1]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[2]
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=4096)
def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class MoleculesScattered(Exception):
    """The samples of a molecule do not follow one another: it came back after another one."""


class ConsecutiveMolecules:
    """Watches whether the samples of each molecule follow one another, at the price of one number per molecule."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._last: int | None = None

    def check(self, keys: Tensor) -> None:
        """Takes in the next batch's keys.

        Raises:
            MoleculesScattered: If one of its molecules was closed before.
        """
        for key in torch.unique_consecutive(keys).tolist():
            if key != self._last:
                if key in self._seen:
                    raise MoleculesScattered
                self._seen.add(key)
                self._last = key
