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

# Odd multipliers with well-spread bits (from splitmix64 and xxHash).
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9],
    dtype=np.uint64,
)


def molecule_keys(batch: Data) -> Tensor:
    """Returns an (S,) int64 key for each sample: equal for samples of one molecule, however they are batched.

    A key is a hash of the molecule's name, its elements and its positions in their order: two molecules that merely
    share a name (two data sets read together) keep different keys. It is the same in every process.
    """
    n_samples = n_molecules(batch)
    sample = molecule_index(batch, "pos").cpu()
    first = torch.searchsorted(sample, torch.arange(n_samples))
    place = torch.arange(len(sample)) - first[sample]
    columns = [batch.atomic_numbers.cpu().to(torch.int64)[:, None], place[:, None]]
    if batch.get("pos") is not None:
        # + 0.0 turns -0.0 into 0.0
        columns.append((batch.pos.detach().cpu().to(torch.float64) + 0.0).view(torch.int64))
    table = torch.cat(columns, dim=1).numpy().view(np.uint64)
    of_atom = _mixed(np.multiply(table, _MULTIPLIERS[: table.shape[1]]).sum(axis=1, dtype=np.uint64))
    sums = torch.zeros(n_samples, dtype=torch.int64).index_add_(0, sample, torch.from_numpy(of_atom.view(np.int64)))
    names = batch.get("mol_id")
    names = [""] * n_samples if names is None else [names] if isinstance(names, str) else names
    of_name = np.array([_name_hash(str(name)) for name in names], dtype=np.uint64)
    return torch.from_numpy(_mixed(sums.numpy().view(np.uint64) + of_name).view(np.int64))


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
