"""A density functional by attention: the energy of a molecule from its density coefficients and distances of atoms.

The architecture is that of M-OFDFT and STRUCTURES25, which follow Graphormer (Ying et al., arXiv 2106.05234), in small.
"""

import math

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sample import count_molecules, find_molecule_index


class DensityNetwork(nn.Module):
    """Energy of a molecule: a sum over atoms, which attend to each other.

    A perceptron for each element embeds the coefficients of an atom. Layers of attention follow: Gaussian features of
    the distance between two atoms are added to their attention score. A readout gives the energy of each atom.

    The energy does not change under translations and permutations of atoms. It does not change under rotations if the
    coefficients are in local frames. `DensityModule` documents the arguments.

    Examples:
        >>> from ofdft_norm import BasisInfo, OFData
        >>> basis_info = BasisInfo([1], ["2x0e+1x1o"])
        >>> network = DensityNetwork(basis_info, width=8, n_heads=2)
        >>> sample = OFData.construct_new(basis_info, torch.eye(2, 3), [1, 1], torch.ones(10))
        >>> network(sample, sample.coeffs).shape
        torch.Size([1])
    """

    dims: Tensor

    def __init__(
        self,
        basis_info: BasisInfo,
        width: int = 64,
        n_layers: int = 3,
        n_heads: int = 4,
        n_gaussians: int = 32,
        coeff_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.width, self.n_types, self.coeff_scale = width, basis_info.n_types, coeff_scale
        sizes = basis_info.basis_dim_per_atom.tolist()
        self.register_buffer("dims", torch.tensor(sizes), persistent=False)
        self.embeddings = nn.ModuleList(_make_perceptron(size, width, width) for size in sizes)
        self.distances = GaussianFeatures(basis_info.n_types, n_gaussians)
        self.surroundings = nn.Linear(n_gaussians, width)
        self.biases = _make_perceptron(n_gaussians, n_gaussians, n_layers * n_heads)
        self.layers = nn.ModuleList(AttentionLayer(width, n_heads) for _ in range(n_layers))
        self.readout = nn.Sequential(nn.LayerNorm(width), *_make_perceptron(width, width, 1))
        for parameter in self.readout[-1].parameters():  # training starts at the reference: E' = 0
            nn.init.zeros_(parameter)

    def forward(self, batch: Data, coeffs: Tensor) -> Tensor:
        """Returns the normalised energies E', (n_molecules,), differentiable in the rescaled coefficients `coeffs`."""
        atom_ind, molecule = batch.atom_ind, find_molecule_index(batch, "pos")
        counts = torch.bincount(molecule, minlength=count_molecules(batch))
        place = torch.arange(len(molecule), device=molecule.device) - (counts.cumsum(0) - counts)[molecule]
        where = molecule, place  # index of each atom in arrays (molecule, atom), padded to the largest molecule
        shape = len(counts), int(counts.max())

        features = self.embed(atom_ind, coeffs)
        positions = batch.pos.new_zeros(*shape, 3).index_put(where, batch.pos)
        elements = atom_ind.new_zeros(shape).index_put(where, atom_ind)
        present = torch.arange(shape[1], device=counts.device) < counts[:, None]

        gaussians = self.distances(positions, elements).to(features.dtype)
        others = (present[:, :, None] & present[:, None, :])[..., None]
        features = features + self.surroundings(torch.where(others, gaussians, 0.0).sum(dim=2)[where])
        # (layer, molecule, head, atom, atom); absent atoms get no attention
        biases = self.biases(gaussians).masked_fill(~present[:, None, :, None], -math.inf)
        biases = biases.unflatten(3, (len(self.layers), -1)).permute(3, 0, 4, 1, 2)
        for layer, bias in zip(self.layers, biases, strict=True):
            features = layer(features, bias, where)
        energies = self.readout(features).squeeze(1)
        return energies.new_zeros(len(counts)).index_add(0, molecule, energies)

    def embed(self, atom_ind: Tensor, coeffs: Tensor) -> Tensor:
        """Returns (n_atom, width) features of each atom's coefficients.

        Elements without atoms get empty blocks: under DDP every parameter takes part in every step.
        """
        starts = self.dims[atom_ind].cumsum(0) - self.dims[atom_ind]
        features = coeffs.new_zeros(len(atom_ind), self.width)
        for element, embedding in enumerate(self.embeddings):
            index = (atom_ind == element).nonzero().squeeze(1)
            functions = starts[index, None] + torch.arange(int(self.dims[element]), device=coeffs.device)
            embedded = embedding(coeffs[functions] / self.coeff_scale)
            features = features.index_add(0, index, embedded.to(features.dtype))
        return features


class GaussianFeatures(nn.Module):
    """Gaussians of distances, with a scale and a shift for each pair of elements; centres start at 0 ... 10 bohr."""

    def __init__(self, n_types: int, n_gaussians: int) -> None:
        super().__init__()
        self.n_types = n_types
        self.centres = nn.Parameter(torch.linspace(0, 10, n_gaussians))
        self.log_widths = nn.Parameter(torch.full((n_gaussians,), math.log(10 / n_gaussians)))
        self.scale, self.shift = (nn.Parameter(torch.full((n_types**2,), start)) for start in (1.0, 0.0))

    def forward(self, positions: Tensor, elements: Tensor) -> Tensor:
        """Returns (molecule, atom, atom, Gaussian) of (molecule, atom, 3) positions and (molecule, atom) elements."""
        distances = (positions[:, :, None] - positions[:, None]).norm(dim=3)
        pairs = elements[:, :, None] * self.n_types + elements[:, None]
        scaled = self.scale[pairs] * distances + self.shift[pairs]
        return torch.exp(-0.5 * ((scaled[..., None] - self.centres) / self.log_widths.exp()) ** 2)


class AttentionLayer(nn.Module):
    """Attention with a bias for each pair of atoms, and a perceptron; each is added to the normalised features."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.combine = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.update = _make_perceptron(width, 2 * width, width)

    def forward(self, features: Tensor, bias: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        """Returns (n_atom, width) features; `bias` is (molecule, head, atom, atom), and `where` the atoms' places."""
        projected = self.project(self.first_norm(features))
        padded = projected.new_zeros(bias.shape[0], bias.shape[2], projected.shape[1]).index_put(where, projected)
        query, key, value = padded.unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + bias
        received = (scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2)[where]
        features = features + self.combine(received)
        return features + self.update(self.second_norm(features))


def _make_perceptron(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_out))
