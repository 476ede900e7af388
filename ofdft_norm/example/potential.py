"""An interatomic potential: PyG's SchNet on energies and forces, normalised by one scale; and clusters to train on."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn.models import SchNet
from torch_geometric.utils import to_dense_batch

from ofdft_norm.data.files import import_optional
from ofdft_norm.data.sample import VOIGT, find_periodic_directions
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.metrics import EnergyForceErrors, MeasuredModule, get_atomic_numbers
from ofdft_norm.mixin import NormalizerMixin
from ofdft_norm.settings import NonNegative, Positive, PositiveInt, check_arguments

ELEMENTS = ("Al", "Cu", "Ag")
_LATTICE = 4.0  # angstrom, between the lattice constants of the three metals
N_GAUSSIANS = 32  # radial basis functions of a distance


def find_pairs(cutoff: float, batch: Data) -> tuple[Tensor, Tensor]:
    """Returns (2, n_pairs) senders and receivers, and the (n_pairs, 3) lattice vectors of the receivers' images.

    ASE finds the periodic images; SchNet's own neighbour list knows none, and needs a compiled extension.
    """
    periodic = find_periodic_directions(batch)
    if not periodic.any():
        places, real = to_dense_batch(batch.pos, batch.batch)
        distances = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
        near = (distances <= cutoff) & real[:, :, None] & real[:, None]
        near.diagonal(dim1=1, dim2=2).fill_(False)
        molecule, senders, receivers = near.nonzero().T
        return torch.stack([senders, receivers]) + batch.ptr[molecule], batch.pos.new_zeros(len(molecule), 3)
    find = import_optional("ase.neighborlist", "ase").primitive_neighbor_list
    arrays = (values.detach().cpu().double().numpy() for values in (batch.cell.reshape(-1, 3, 3), batch.pos))
    (cells, pos), starts = arrays, batch.ptr.tolist()
    edges, vectors = [], []
    for i, (cell, start, end) in enumerate(zip(cells, starts, starts[1:], strict=False)):
        senders, receivers, images = find("ijS", periodic[i].tolist(), cell, pos[start:end], cutoff)
        edges.append(np.stack([senders, receivers]) + start)
        vectors.append(images @ cell)
    device = batch.pos.device
    lattice = torch.as_tensor(np.concatenate(vectors), dtype=batch.pos.dtype, device=device)
    return torch.as_tensor(np.concatenate(edges, axis=1), device=device), lattice


def compute_volumes(batch: Data) -> Tensor:
    """Returns (n_molecules,) volumes of the cells; NaN where a molecule is not periodic in all three directions."""
    periodic = find_periodic_directions(batch).all(dim=1).to(batch.pos.device)
    cells = batch.cell.reshape(-1, 3, 3) if periodic.any() else batch.pos.new_zeros(len(periodic), 3, 3)
    return torch.where(periodic, torch.linalg.det(cells).abs(), torch.nan)


def _return_given_pairs(pairs: tuple[Tensor, Tensor], molecule: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the pairs and distances that SchNet is called with in place of positions."""
    return pairs


class PotentialModule(NormalizerMixin, MeasuredModule):
    """SchNet for normalised energies E'; forces and stress are derivatives of E', so that one scale serves all three.

    Periodic cells (fields `cell` and `pbc`) have all images within the cutoff as neighbours.

    Args:
        hidden_channels: Features of each atom.
        num_filters: Features of each pair.
        num_interactions: Rounds of messages between neighbours.
        cutoff: Atoms beyond this distance [angstrom] are not neighbours.
        energy_weight: Weight of |E' error| / atoms in the loss.
        forces_weight: Weight of the mean |F' error| in the loss.
        stress_weight: Weight of the mean |stress error| V / atoms in the loss, where the data have stress.
        learning_rate: Largest learning rate; the schedule warms up over a tenth of the steps and decays to zero.

    Raises:
        ConfigError: If a weight is negative, or a size is not positive.
    """

    metric_class = EnergyForceErrors
    predicted = ("energy", "forces", "stress")

    def __init__(
        self,
        hidden_channels: PositiveInt = 64,
        num_filters: PositiveInt = 64,
        num_interactions: PositiveInt = 3,
        cutoff: Positive = 6.0,
        energy_weight: NonNegative = 1.0,
        forces_weight: NonNegative = 1.0,
        stress_weight: NonNegative = 1.0,
        learning_rate: Positive = 2e-3,
    ) -> None:
        check_arguments(PotentialModule.__init__, locals(), "model")
        super().__init__()
        self.save_hyperparameters()
        sizes = (hidden_channels, num_filters, num_interactions, N_GAUSSIANS)
        self.network = SchNet(*sizes, cutoff, interaction_graph=_return_given_pairs)

    def setup(self, stage: str) -> None:
        """Refuses a data module of this package without forces."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and hasattr(datamodule, "source") and datamodule.source.forces_field is None:
            raise ConfigError(
                f"{type(self).__name__} learns energies and forces, and the data have no forces: name them (config: "
                "data.source.forces, data.source.forces_field), or choose model=density for density coefficients"
            )

    def forward(self, batch: Data) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (n_molecules,) E', (n_atom, 3) F' = -dE'/dR, and (n_molecules, 6) stress dE'/d(strain) / V.

        All are differentiable in the parameters while training. The stress has ASE's order xx, yy, zz, yz, xz, xy; it
        is NaN where a molecule is not periodic in all three directions.
        """
        # validation and prediction switch gradients off, but forces are gradients
        with torch.inference_mode(False), torch.enable_grad():
            pos, molecule = batch.pos.clone().requires_grad_(), batch.batch.clone()
            (senders, receivers), images = (values.clone() for values in find_pairs(self.hparams["cutoff"], batch))
            strain = pos.new_zeros(batch.num_graphs, 3, 3).requires_grad_()
            vectors = pos[receivers] + images - pos[senders]
            vectors = vectors + (vectors[:, None] @ strain[molecule[senders]])[:, 0]
            pairs = torch.stack([senders, receivers]), vectors.norm(dim=1)
            energy = self.network(get_atomic_numbers(batch).clone(), pairs, molecule).reshape(-1)
            gradient, virial = torch.autograd.grad(energy.sum(), (pos, strain), create_graph=self.training)
        volume = compute_volumes(batch)[:, None]
        stress = virial[:, VOIGT[0], VOIGT[1]] / volume.nan_to_num(1.0)  # NaN would spread to all gradients
        return energy, -gradient, torch.where(volume.isnan(), torch.nan, stress)

    def predict(self, batch: Data) -> tuple[Tensor, Tensor, Tensor]:
        """Returns energies, forces and stress as `forward`, float64, in the normaliser's unit."""
        energy, forces, stress = (values.detach() for values in self(batch))
        energy, normalizer = self.normalizer.denormalize_energy(energy, batch), self.normalizer
        return energy, normalizer.denormalize_forces(forces, batch), normalizer.denormalize_stress(stress, batch)

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        energy, forces, stress = self(batch)
        n_atoms = torch.bincount(batch.batch, minlength=len(energy))
        true = batch[self.normalizer.energy_field].reshape(-1)
        of_energy = ((energy - true).abs() / n_atoms).mean()
        of_forces = (forces - batch[self.normalizer.forces_field]).abs().mean()
        loss = self.hparams["energy_weight"] * of_energy + self.hparams["forces_weight"] * of_forces
        if (name := self.normalizer.stress_field) is not None:
            known = batch[name].isfinite().all(1)
            errors = (compute_volumes(batch) / n_atoms)[known, None] * (stress - batch[name])[known]
            loss = loss + self.hparams["stress_weight"] * errors.abs().sum() / max(errors.numel(), 1)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=len(energy))
        return loss


def labelled_clusters(n: int, seed: int = 0) -> list[Any]:
    """Returns clusters of displaced atoms of random elements, with energies [eV] and forces [eV/angstrom] of EMT."""
    ase, build, emt = (import_optional(name, "ase") for name in ("ase", "ase.build", "ase.calculators.emt"))
    rng = np.random.default_rng(seed)
    crystal = build.bulk("Cu", a=_LATTICE, cubic=True).repeat((2, 2, 1)).positions
    clusters = []
    for _ in range(n):
        near = np.argsort(np.linalg.norm(crystal - crystal[rng.integers(len(crystal))], axis=1))
        size = int(rng.integers(4, 9))
        positions = crystal[near[:size]] * rng.uniform(0.93, 1.05) + 0.1 * rng.normal(size=(size, 3))
        atoms = ase.Atoms(rng.choice(ELEMENTS, size), positions, calculator=emt.EMT())
        atoms.get_forces()  # the calculator keeps the energy, too
        clusters.append(atoms)
    return clusters
