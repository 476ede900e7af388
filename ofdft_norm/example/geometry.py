"""What a network sees of a molecule's geometry: pairs of atoms, distances, directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ofdft_norm.data.basis_info import POrder


def pairs_within_molecules(molecule: Tensor) -> tuple[Tensor, Tensor]:
    """Lists all ordered pairs of different atoms of one molecule.

    Args:
        molecule: (n_atom,) molecule of each atom, sorted.

    Returns:
        Two (n_pairs,) index vectors: receiving and sending atoms.

    Example:
        >>> receivers, senders = pairs_within_molecules(torch.tensor([0, 0, 1]))
        >>> receivers.tolist(), senders.tolist()
        ([0, 1], [1, 0])
    """
    _, sizes = torch.unique_consecutive(molecule, return_counts=True)
    first_atom = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    n_partners = sizes.repeat_interleave(sizes)
    receivers = torch.arange(len(molecule), device=molecule.device).repeat_interleave(n_partners)
    first_pair = (n_partners.cumsum(0) - n_partners).repeat_interleave(n_partners)
    senders = torch.arange(len(receivers), device=molecule.device) - first_pair + first_atom[receivers]
    different = receivers != senders
    return receivers[different], senders[different]


def radial_basis(distances: Tensor, n_radial: int, cutoff: float) -> Tensor:
    """Expands distances in Gaussians that end smoothly at the cutoff.

    Args:
        distances: (n_pairs,) [bohr].
        n_radial: Number of Gaussians, spread evenly over 0 ... cutoff.
        cutoff: [bohr].

    Returns:
        (n_pairs, n_radial).
    """
    centres = torch.linspace(0, cutoff, n_radial, device=distances.device, dtype=distances.dtype)
    envelope = 0.5 * (torch.cos(math.pi * (distances / cutoff).clamp(max=1)) + 1)
    return torch.exp(-(((distances[:, None] - centres) * n_radial / cutoff) ** 2)) * envelope[:, None]


def directions(units: Tensor, p_order: POrder = "yzx") -> tuple[Tensor, Tensor]:
    """Real solid harmonics of unit vectors for l = 1 and 2, in the order of the basis, each of norm 1.

    Args:
        units: (n_pairs, 3).
        p_order: Order for l = 1, as in `BasisInfo`; l = 2 is ordered m = -2 ... 2.

    Returns:
        (n_pairs, 3) and (n_pairs, 5).
    """
    x, y, z = units.unbind(1)
    root3 = math.sqrt(3)
    first = torch.stack([y, z, x], dim=1) if p_order == "yzx" else units
    second = [root3 * x * y, root3 * y * z, 1.5 * z * z - 0.5, root3 * x * z, root3 / 2 * (x * x - y * y)]
    return first, torch.stack(second, dim=1)
