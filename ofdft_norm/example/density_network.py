"""A small density functional: the energy of each molecule from rescaled density coefficients and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sample import molecule_index, n_molecules

NORM_OFFSET = 1e-2  # sqrt(x + NORM_OFFSET) is smooth where a shell is empty


class DensityNetwork(nn.Module):
    """Energy as a sum over atoms, from each atom's own coefficients and its neighbours.

    The coefficients of an element's atoms form a dense (atoms, dim_Z) block. A quadratic form of the block is one part
    of the energy. For the other part, coefficients of l = 0 enter as they are; shells of higher l are mixed to `rank`
    channels and enter by their norms, and for l <= 2 by their products with the directions of the neighbours. Rounds
    of messages over distances and a readout for each element follow.

    The energy does not change under translations and permutations of atoms. It is rotation invariant only if
    reference and rescaling are (``data/reference=scalar_atom_ref data/rescaling=equivariant``). `DensityModule`
    documents the arguments.

    Examples:
        >>> from ofdft_norm import BasisInfo, OFData
        >>> basis_info = BasisInfo([1], ["2x0e+1x1o"])
        >>> network = DensityNetwork(basis_info, width=8, rank=2)
        >>> sample = OFData.construct_new(basis_info, torch.eye(2, 3), [1, 1], torch.ones(10))
        >>> network(sample, sample.coeffs).shape
        torch.Size([1])
    """

    dims: Tensor

    def __init__(
        self,
        basis_info: BasisInfo,
        width: int = 64,
        rank: int = 16,
        n_layers: int = 2,
        n_radial: int = 16,
        cutoff: float = 12.0,
        coeff_scale: float = 5.0,
    ) -> None:
        super().__init__()
        self.n_radial, self.cutoff, self.coeff_scale = n_radial, cutoff, coeff_scale
        self.n_types, self.width = basis_info.n_types, width
        self.register_buffer("dims", torch.as_tensor(basis_info.basis_dim_per_atom), persistent=False)
        momenta = [basis_info.l_per_basis_func[i].tolist() for i in basis_info.atom_ind_to_basis_function_ind]
        self.encoders = nn.ModuleList(ElementEncoder(l, basis_info.n_types, width, rank, n_radial) for l in momenta)
        self.quadratics = nn.ModuleList(ElementQuadratic(l) for l in momenta)
        self.layers = nn.ModuleList(MessageLayer(width, n_radial) for _ in range(n_layers))
        readouts = [_perceptron(width, width, 1) for _ in momenta]
        for parameter in (parameter for readout in readouts for parameter in readout[-1].parameters()):
            nn.init.zeros_(parameter)  # training starts at the reference: E' = 0
        self.readouts = nn.ModuleList(readouts)

    def forward(self, batch: Data, coeffs: Tensor) -> Tensor:
        """Returns the normalised energies E', (n_molecules,), differentiable in the rescaled coefficients `coeffs`."""
        atom_ind, molecule = batch.atom_ind, molecule_index(batch, "pos")
        receivers, senders = pairs_within_molecules(molecule)
        vectors = batch.pos[senders] - batch.pos[receivers]
        distances = vectors.norm(dim=1)
        near = distances < self.cutoff
        receivers, senders, vectors, distances = receivers[near], senders[near], vectors[near], distances[near]
        radial = radial_basis(distances, self.n_radial, self.cutoff)
        # for l = 1, 2, each atom's moments (atoms, n_types n_radial, 2l+1) of its neighbours' directions
        rows, moments = receivers * self.n_types + atom_ind[senders], []
        for harmonics in directions(vectors / distances[:, None]):
            products = radial[:, :, None] * harmonics[:, None, :]
            total = products.new_zeros(len(atom_ind) * self.n_types, *products.shape[1:]).index_add(0, rows, products)
            moments.append(total.reshape(len(atom_ind), self.n_types * self.n_radial, -1))

        # blocks without atoms are kept: DDP needs every parameter in every step
        atoms = [(atom_ind == element).nonzero().squeeze(1) for element in range(self.n_types)]
        starts = self.dims[atom_ind].cumsum(0) - self.dims[atom_ind]
        features = coeffs.new_zeros(len(atom_ind), self.width)
        energies = coeffs.new_zeros(n_molecules(batch))
        for element, (index, encoder) in enumerate(zip(atoms, self.encoders, strict=True)):
            offsets = torch.arange(int(self.dims[element]), device=coeffs.device)
            block = coeffs[starts[index, None] + offsets] / self.coeff_scale
            encoded = encoder(block, [moment[index] for moment in moments])
            features = features.index_add(0, index, encoded.to(features.dtype))
            energies = energies.index_add(0, molecule[index], self.quadratics[element](block).to(energies.dtype))
        for layer in self.layers:
            features = layer(features, radial, receivers, senders)
        for index, readout in zip(atoms, self.readouts, strict=True):
            energy = readout(features[index]).squeeze(1)
            energies = energies.index_add(0, molecule[index], energy.to(energies.dtype))
        return energies


def _shells(momenta: list[int]) -> dict[int, slice]:
    """Returns the functions of each angular momentum of an element."""
    return {l: slice(momenta.index(l), momenta.index(l) + momenta.count(l)) for l in sorted(set(momenta))}


class ElementEncoder(nn.Module):
    """Features of one element's atoms, from their coefficients and their neighbours' directions."""

    def __init__(self, momenta: list[int], n_types: int, width: int, rank: int, n_radial: int) -> None:
        super().__init__()
        self.shells = _shells(momenta)
        self.mixing, self.sensing = nn.ParameterDict(), nn.ParameterDict()
        n_channels = n_types * n_radial
        for l in filter(None, self.shells):
            n_shells = momenta.count(l) // (2 * l + 1)
            self.mixing[str(l)] = nn.Parameter(0.1 * torch.randn(rank, n_shells) / math.sqrt(n_shells))
            if l <= 2:
                self.sensing[str(l)] = nn.Parameter(torch.randn(rank, n_channels) / math.sqrt(n_channels))
        self.project = nn.Linear(momenta.count(0) + rank * (len(self.mixing) + len(self.sensing)), width)

    def forward(self, block: Tensor, moments: list[Tensor]) -> Tensor:
        """Returns (atoms, width) features of (atoms, dim_Z) scaled coefficients."""
        features = []
        for l, functions in self.shells.items():
            if l == 0:
                features.append(block[:, functions])
                continue
            shells = block[:, functions].unflatten(1, (-1, 2 * l + 1))
            mixed = torch.einsum("rc,acm->arm", self.mixing[str(l)], shells)
            features.append((mixed.square().sum(2) + NORM_OFFSET).sqrt() - math.sqrt(NORM_OFFSET))
            if l <= 2:
                sensed = torch.einsum("rc,acm->arm", self.sensing[str(l)], moments[l - 1].to(block.dtype))
                features.append((mixed * sensed).sum(2))
        return self.project(torch.cat(features, dim=1))


class ElementQuadratic(nn.Module):
    """Energy quadratic in one element's coefficients: most of the response of stiff functions near the nuclei.

    One matrix couples the shells of each l. All components m share it, so that this energy is invariant to rotations if
    the coefficients are; a diagonal and a linear term for each function are not.
    """

    def __init__(self, momenta: list[int]) -> None:
        super().__init__()
        self.shells = _shells(momenta)
        sizes = [momenta.count(l) // (2 * l + 1) for l in self.shells]
        self.coupling = nn.ParameterList(torch.zeros(n_shells, n_shells) for n_shells in sizes)
        self.diagonal = nn.Parameter(torch.zeros(len(momenta)))
        self.linear = nn.Parameter(torch.zeros(len(momenta)))

    def forward(self, block: Tensor) -> Tensor:
        """Returns the (atoms,) energies of (atoms, dim_Z) scaled coefficients."""
        energies = block @ self.linear + 0.5 * block.square() @ self.diagonal
        for (l, functions), coupling in zip(self.shells.items(), self.coupling, strict=True):
            shells = block[:, functions].unflatten(1, (-1, 2 * l + 1))
            energies = energies + 0.5 * (torch.einsum("acm,cd->adm", shells, coupling) * shells).sum(dim=(1, 2))
        return energies


class MessageLayer(nn.Module):
    """Adds messages of the neighbours, filtered by distance, to each atom's features."""

    def __init__(self, width: int, n_radial: int) -> None:
        super().__init__()
        self.filter = nn.Linear(n_radial, width, bias=False)
        self.send = nn.Linear(width, width)
        self.update = _perceptron(2 * width, width, width)

    def forward(self, features: Tensor, radial: Tensor, receivers: Tensor, senders: Tensor) -> Tensor:
        """Returns the updated (atoms, width) features."""
        messages = self.filter(radial.to(features.dtype)) * F.silu(self.send(features))[senders]
        received = torch.zeros_like(features).index_add(0, receivers, messages.to(features.dtype))
        return features + self.update(torch.cat([features, received], dim=1))


def _perceptron(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_out))


# --- geometry ---------------------------------------------------------------------------------------------------------


def pairs_within_molecules(molecule: Tensor) -> tuple[Tensor, Tensor]:
    """Returns all ordered pairs of different atoms of one molecule, as receiving and sending atoms.

    Examples:
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
    """Expands distances in (n_pairs, n_radial) Gaussians that end smoothly at the cutoff."""
    centres = torch.linspace(0, cutoff, n_radial, device=distances.device, dtype=distances.dtype)
    envelope = 0.5 * (torch.cos(math.pi * (distances / cutoff).clamp(max=1)) + 1)
    return torch.exp(-(((distances[:, None] - centres) * n_radial / cutoff) ** 2)) * envelope[:, None]


def directions(units: Tensor) -> tuple[Tensor, Tensor]:
    """Returns real solid harmonics of unit vectors for l = 1 and 2, in the order of the basis, each of norm 1."""
    x, y, z = units.unbind(1)
    root3 = math.sqrt(3)
    second = [root3 * x * y, root3 * y * z, 1.5 * z * z - 0.5, root3 * x * z, root3 / 2 * (x * x - y * y)]
    return units, torch.stack(second, dim=1)
