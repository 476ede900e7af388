"""Small clusters of three metals, labelled by a calculator that comes with ASE: data for the worked potential."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import Subset
from torch_geometric.loader import DataLoader

from ofdft_norm.data.ase_files import ASEDataset
from ofdft_norm.settings import NonNegativeInt, PositiveInt, check_arguments

ELEMENTS = ("Al", "Cu", "Ag")
_LATTICE = 4.0  # angstrom, between those of the three metals


def labelled_clusters(n: int, seed: int = 0) -> list[Any]:
    """Returns shaken pieces of a crystal of random composition, with energies [eV] and forces [eV/angstrom] of EMT.

    Args:
        n: How many.
        seed: Of all that is drawn.

    Raises:
        ImportError: If ASE is not installed.
    """
    try:
        from ase import Atoms
        from ase.build import bulk
        from ase.calculators.emt import EMT
    except ImportError as error:
        raise ImportError(f"clusters need ASE ({error}); install it with: pip install 'ofdft-norm[ase]'") from error
    rng = np.random.default_rng(seed)
    crystal = bulk("Cu", a=_LATTICE, cubic=True).repeat((2, 2, 1)).positions
    clusters = []
    for _ in range(n):
        near = np.argsort(np.linalg.norm(crystal - crystal[rng.integers(len(crystal))], axis=1))
        size = int(rng.integers(4, 9))
        positions = crystal[near[:size]] * rng.uniform(0.93, 1.05) + 0.1 * rng.normal(size=(size, 3))
        atoms = Atoms(rng.choice(ELEMENTS, size), positions, calculator=EMT())
        atoms.get_forces()  # and with them the energy, which the calculator keeps
        clusters.append(atoms)
    return clusters


class EMTClusters(LightningDataModule):
    """Clusters from `labelled_clusters`, as somebody's data module, to be wrapped: it knows nothing of normalisation.

    Args:
        n_train: Clusters to train on.
        n_val: Clusters to validate on.
        n_test: Clusters to test on.
        batch_size: Clusters in a batch.
        seed: Of the clusters and their order.
    """

    def __init__(
        self,
        n_train: PositiveInt = 240,
        n_val: PositiveInt = 30,
        n_test: PositiveInt = 30,
        batch_size: PositiveInt = 16,
        seed: NonNegativeInt = 0,
    ) -> None:
        check_arguments(EMTClusters.__init__, locals(), "data.source.datamodule")
        super().__init__()
        self.sizes = {"train": n_train, "val": n_val, "test": n_test}
        self.batch_size, self.seed = batch_size, seed
        self.parts: dict[str, Subset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Makes all clusters, once."""
        if self.parts:
            return
        dataset = ASEDataset(labelled_clusters(sum(self.sizes.values()), self.seed))
        ends = np.cumsum(list(self.sizes.values())).tolist()
        for (part, size), end in zip(self.sizes.items(), ends, strict=True):
            self.parts[part] = Subset(dataset, range(end - size, end))

    def train_dataloader(self) -> DataLoader:
        """Loads the training clusters in random order."""
        return DataLoader(self.parts["train"], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Loads the validation clusters."""
        return DataLoader(self.parts["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Loads the test clusters."""
        return DataLoader(self.parts["test"], self.batch_size)
