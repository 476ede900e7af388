"""Tells which samples of a batch belong to the same molecule."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import molecule_index, n_molecules


def molecule_keys(batch: Data) -> Tensor:
    """Returns an (S,) int64 key for each sample: equal for samples of one molecule, however they are batched.

    A key is a hash of the molecule's name, its elements and its positions: two molecules that merely share a name
    (two data sets read together) keep different keys.
    """
    n_samples = n_molecules(batch)
    sample = molecule_index(batch, "pos").cpu()
    numbers = batch.atomic_numbers.cpu().to(torch.float64)
    columns = [numbers, numbers.square()]
    if batch.get("pos") is not None:
        columns += list((batch.pos.cpu().to(torch.float64) * numbers[:, None]).unbind(1))
    table = torch.stack(columns, dim=1)
    # weighting by the place in the molecule makes the sums depend on the order of atoms, so that mirror images and
    # permutations of positions do not collide
    first = torch.searchsorted(sample, torch.arange(n_samples))
    place = torch.arange(len(sample)) - first[sample]
    table = table * torch.cos(0.7 * (place + 1).to(torch.float64))[:, None]
    sums = torch.zeros(n_samples, table.shape[1], dtype=torch.float64).index_add_(0, sample, table)
    names = batch.get("mol_id")
    names = [""] * n_samples if names is None else [names] if isinstance(names, str) else names
    content = sums.numpy()
    digests = [
        hashlib.blake2b(name.encode() + row.tobytes(), digest_size=8).digest()
        for name, row in zip(names, content, strict=True)
    ]
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64)
