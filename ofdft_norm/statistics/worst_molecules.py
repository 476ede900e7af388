"""The molecules that a reference fits worst, as rows of numbers: what merges tensors over ranks merges them too."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import formula
from ofdft_norm.data.of_data import sample_name, scf_iteration
from ofdft_norm.statistics.element_blocks import BatchBlocks

N_WORST = 10
# longer names are cut
_NAME_BYTES = 64
# a row: whether it is used, residual, target, SCF iteration (-1: none), halves of the molecule's key | name | atoms
_USED, _RESIDUAL, _TARGET, _ITERATION, _KEY, _NAME = 0, 1, 2, 3, slice(4, 6), slice(6, 6 + _NAME_BYTES)

Array = npt.NDArray[np.float64]


def no_molecules(n_weighers: int, basis_info: BasisInfo) -> Tensor:
    """Returns the (n_weighers, N_WORST, columns) float64 rows of nothing seen."""
    return torch.zeros(n_weighers, N_WORST, _NAME.stop + basis_info.n_types, dtype=torch.float64)


def with_samples(worst: Tensor, blocks: BatchBlocks, residuals: Tensor) -> Tensor:
    """Returns one weigher's worst molecules after more samples; each molecule counts by its worst sample.

    Args:
        worst: (N_WORST, columns) so far.
        blocks: Batches of S samples together.
        residuals: (S,) energy less its reference [hartree]; NaN for samples that do not count.
    """
    bar = worst[-1, _RESIDUAL].abs() if worst[-1, _USED] else -1.0
    samples = (residuals.abs() >= bar).nonzero().squeeze(1)  # few, after the first batches
    if not len(samples):
        return worst
    rows = worst.new_zeros(len(samples), worst.shape[1])
    rows[:, _USED] = 1
    rows[:, _RESIDUAL] = residuals[samples]
    rows[:, _TARGET] = blocks.energies()[samples]
    rows[:, _ITERATION] = torch.tensor([_iteration(blocks, s) for s in samples.tolist()])
    keys = blocks.molecule_keys[samples]  # a double holds 53 bits of the 64
    rows[:, _KEY] = torch.stack([keys >> 32, keys & 0xFFFFFFFF], dim=1).to(torch.float64)
    rows[:, _NAME] = torch.stack([_name_bytes(blocks, s) for s in samples.tolist()]).to(torch.float64)
    rows[:, _NAME.stop :] = blocks.composition[samples]
    return _worst(torch.cat([worst, rows]).numpy())


def merged(states: Tensor) -> Tensor:
    """Merges (n_parts, n_weighers, N_WORST, columns) rows of parts of a data set, in any order."""
    on_cpu = states.detach().cpu()
    rows = [_worst(of_weigher.flatten(0, 1).numpy()) for of_weigher in on_cpu.unbind(1)]
    return torch.stack(rows).to(states.device)


def described(worst: Array, basis_info: BasisInfo) -> list[dict[str, Any]]:
    """Says one weigher's worst molecules in plain types, worst first: name, formula, target, residual, iteration."""
    return [
        {
            "name": bytes(row[_NAME].astype(np.uint8)).rstrip(b"\0").decode(errors="ignore"),
            "formula": formula(np.repeat(basis_info.atomic_numbers, row[_NAME.stop :].astype(np.int64))),
            "target": float(row[_TARGET]),
            "residual": float(row[_RESIDUAL]),
            "scf_iteration": int(row[_ITERATION]) if row[_ITERATION] >= 0 else None,
        }
        for row in worst
        if row[_USED]
    ]


def _worst(rows: Array) -> Tensor:
    """Keeps each molecule's worst row, and of those N_WORST, worst first; ties are broken the same way in any order."""
    used = rows[rows[:, _USED] > 0]
    ties = (used[:, _RESIDUAL], used[:, _ITERATION], *used[:, _KEY].T)
    ordered = used[np.lexsort((*ties, -np.abs(used[:, _RESIDUAL])))]
    _, first = np.unique(ordered[:, _KEY], axis=0, return_index=True)
    kept = ordered[np.sort(first)[:N_WORST]]
    return torch.from_numpy(np.concatenate([kept, np.zeros((N_WORST - len(kept), rows.shape[1]))]))


def _iteration(blocks: BatchBlocks, sample: int) -> int:
    iteration = scf_iteration(*blocks.batch_of(sample))
    return -1 if iteration is None else iteration


def _name_bytes(blocks: BatchBlocks, sample: int) -> Tensor:
    name = (sample_name(*blocks.batch_of(sample)) or "").encode()[:_NAME_BYTES]
    return torch.from_numpy(np.frombuffer(name.ljust(_NAME_BYTES, b"\0"), dtype=np.uint8).copy())
