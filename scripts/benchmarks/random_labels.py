"""Random labels of the size of QM9's: in memory, in files, and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch_geometric.data import Batch

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.data.label_writer import write_label_file

BASIS = BasisInfo(
    [1, 6, 7, 8, 9],
    ["6x0e+3x1o+1x2e", "11x0e+8x1o+7x2e+3x3o+2x4e", *["11x0e+8x1o+7x2e+4x3o+2x4e"] * 3],
)


def qm9_sized_molecule(rng: np.random.Generator, n_iterations: int) -> dict[str, np.ndarray]:
    """Draws labels of 9 H and 9 heavy atoms, about 1,180 functions; the last iteration is the ground state."""
    numbers = np.concatenate([rng.choice([6, 7, 8], 9, p=[0.8, 0.1, 0.1]), np.ones(9, dtype=np.int64)])
    n = int(BASIS.basis_dim_per_atom[BASIS.atom_indices(numbers)].sum())
    return {
        "atomic_numbers": numbers,
        "positions": rng.normal(size=(18, 3)) * 3,
        "coeffs": rng.normal(size=(n_iterations, n)),
        "gradient": rng.normal(size=(n_iterations, n)),
        "integrals": rng.uniform(0.1, 1, size=n),
        "energy": rng.normal(size=n_iterations) - 400,
    }


def samples_in_memory(n_molecules: int, n_iterations: int) -> list[OFData]:
    """Returns the samples of random molecules, iteration 0 without label."""
    rng = np.random.default_rng(0)
    samples = []
    for m in range(n_molecules):
        labels = qm9_sized_molecule(rng, n_iterations)
        for i in range(n_iterations):
            samples.append(
                OFData.construct_new(
                    BASIS,
                    labels["positions"],
                    labels["atomic_numbers"],
                    labels["coeffs"][i],
                    labels["coeffs"][-1],
                    labels["gradient"][i],
                    labels["energy"][i],
                    i > 0,
                    labels["integrals"],
                    f"molecule {m}",
                    i,
                )
            )
    return samples


def write_label_files(folder: Path, n_molecules: int, n_iterations: int) -> list[Path]:
    """Writes random label files of QM9's size, in the package's own layout."""
    rng = np.random.default_rng(0)
    paths = []
    for m in range(n_molecules):
        labels = qm9_sized_molecule(rng, n_iterations)
        labelled = np.arange(n_iterations) > 0
        path = folder / f"{m:06d}.zarr.zip"
        write_label_file(
            path,
            mol_id=f"molecule {m}",
            atomic_numbers=labels["atomic_numbers"],
            positions=labels["positions"],
            coeffs=labels["coeffs"],
            gradients={"grad_kin": labels["gradient"] * labelled[:, None]},
            dual_basis_integrals=labels["integrals"],
            energies={"e_kin": labels["energy"] * labelled},
            ks_energies={"e_kin": labels["energy"] * labelled},
            has_energy_label=labelled,
        )
        paths.append(path)
    return paths


class StreamedMolecules:
    """A label data set whose molecules are drawn when they are asked for."""

    def __init__(self, n_samples: int, n_iterations: int = 10) -> None:
        self.n_molecules = n_samples // n_iterations
        self.sample_offsets = np.arange(self.n_molecules + 1) * n_iterations
        self._batch = Batch.from_data_list(samples_in_memory(1, n_iterations), follow_batch=["coeffs"])

    def molecule_batch(self, molecule: int) -> OFData:
        """Returns the samples of one molecule; its labels differ from the others' by a shift."""
        batch = self._batch.clone()
        batch.coeffs = batch.coeffs + 1e-4 * molecule
        batch.energy_label = batch.energy_label + 1e-3 * molecule
        return batch


def streamed_loader(n_samples: int) -> Iterator[Any]:
    """Yields the same samples as `StreamedMolecules`, 130 to a batch, as a loader would."""
    molecules = StreamedMolecules(n_samples)
    for m in range(0, molecules.n_molecules, 13):
        batches = [molecules.molecule_batch(k) for k in range(m, min(m + 13, molecules.n_molecules))]
        yield Batch.from_data_list([s for b in batches for s in b.to_data_list()], follow_batch=["coeffs"])
