"""Random labels of the size of QM9's: in memory, in files, packed, and streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch_geometric.data import Batch

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.data.label_writer import write_label_file
from ofdft_norm.data.packed import array_specs
from ofdft_norm.data.packed_files import PROGRESS, GrowingArrays
from ofdft_norm.data.packed_writer import PackingPlan, write_meta

BASIS = BasisInfo(
    [1, 6, 7, 8, 9],
    ["6x0e+3x1o+1x2e", "11x0e+8x1o+7x2e+3x3o+2x4e", *["11x0e+8x1o+7x2e+4x3o+2x4e"] * 3],
)


def qm9_sized_molecule(
    rng: np.random.Generator, n_iterations: int, n_atoms: tuple[int, int] = (9, 9)
) -> dict[str, np.ndarray]:
    """Draws labels of 9 heavy atoms and 9 H, about 1,180 functions; the last iteration is the ground state.

    Args:
        rng: Source of random numbers.
        n_iterations: SCF iterations, each a sample.
        n_atoms: Heavy atoms and hydrogen atoms.
    """
    numbers = np.concatenate(
        [rng.choice([6, 7, 8], n_atoms[0], p=[0.8, 0.1, 0.1]), np.ones(n_atoms[1], dtype=np.int64)]
    )
    n = int(BASIS.basis_dim_per_atom[BASIS.atom_indices(numbers)].sum())
    return {
        "atomic_numbers": numbers,
        "positions": rng.normal(size=(len(numbers), 3)) * 3,
        "coeffs": rng.normal(size=(n_iterations, n)),
        "gradient": rng.normal(size=(n_iterations, n)),
        "integrals": rng.uniform(0.1, 1, size=n),
        "energy": rng.normal(size=n_iterations) - 2 * numbers.sum(),
    }


def samples_in_memory(n_molecules: int, n_iterations: int) -> list[OFData]:
    """Returns the samples of random molecules, iteration 0 without label.

    Args:
        n_molecules: Number of molecules.
        n_iterations: SCF iterations of each, each a sample.
    """
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
    """Writes random label files of QM9's size, in the package's own layout.

    Args:
        folder: Where to.
        n_molecules: Number of molecules.
        n_iterations: SCF iterations of each, each a sample.
    """
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


class SyntheticPlan(PackingPlan):
    """What a set says that was drawn, not packed from label files."""

    coordinates = "raw"


def write_packed_set(folder: Path, n_molecules: int, n_iterations: int, n_atoms: tuple[int, int] = (9, 9)) -> Path:
    """Writes a packed set of random labels, without label files; energies are linear in the composition, with noise.

    Args:
        folder: The set's; must not exist.
        n_molecules: Number of molecules.
        n_iterations: Number of samples of each.
        n_atoms: Number of heavy and of hydrogen atoms of a molecule: (9, 9) has about 1,180 functions, (1, 1) 130.
    """
    rng = np.random.default_rng(0)
    plan = SyntheticPlan([Path(f"{m:07d}.zarr.zip") for m in range(n_molecules)], BASIS)
    folder.mkdir(parents=True)
    with GrowingArrays(folder, array_specs(["kin"], "float64"), {**plan.description(), "label_files": ""}) as arrays:
        for m in range(n_molecules):
            labels = qm9_sized_molecule(rng, n_iterations, n_atoms)
            arrays.append_molecule(
                {
                    "names": np.frombuffer(plan.paths[m].name.encode(), np.uint8),
                    "mol_ids": np.frombuffer(f"molecule {m}".encode(), np.uint8),
                    "pos": labels["positions"],
                    "atomic_numbers": labels["atomic_numbers"],
                    "dual_basis_integrals": labels["integrals"],
                    "ground_state_coeffs": labels["coeffs"][-1],
                    "has_energy_label": np.arange(n_iterations) > 0,
                    "e_kin": labels["energy"],
                    "coeffs": labels["coeffs"].reshape(-1),
                    "grad_kin": labels["gradient"].reshape(-1),
                }
            )
        arrays.write_headers()
        write_meta(plan, arrays, None)
    (folder / PROGRESS).unlink()
    return folder


class StreamedMolecules:
    """A label data set whose molecules are drawn when they are asked for.

    Args:
        n_samples: Number of samples.
        n_iterations: Samples of one molecule.
    """

    def __init__(self, n_samples: int, n_iterations: int = 10) -> None:
        self.n_molecules = n_samples // n_iterations
        self.sample_offsets = np.arange(self.n_molecules + 1) * n_iterations
        self.n_iterations = n_iterations
        self._samples = samples_in_memory(1, n_iterations)

    def batch(self, samples: Sequence[int], fields: Any = None) -> OFData:
        """Returns all samples of some molecules; their labels differ by a shift.

        Args:
            samples: Indices of all samples of the molecules.
            fields: Not used.
        """
        molecules = np.asarray(samples)[:: self.n_iterations] // self.n_iterations
        return Batch.from_data_list([s for m in molecules for s in self.molecule(m)], follow_batch=["coeffs"])

    def molecule(self, molecule: int) -> list[OFData]:
        """Returns the samples of one molecule.

        Args:
            molecule: Which molecule, from 0.
        """
        return [
            sample.clone().update(
                {"coeffs": sample.coeffs + 1e-4 * molecule, "energy_label": sample.energy_label + 1e-3 * molecule}
            )
            for sample in self._samples
        ]


def streamed_loader(n_samples: int) -> Iterator[Any]:
    """Yields the same samples as `StreamedMolecules`, 130 to a batch, as a loader would.

    Args:
        n_samples: Number of samples.
    """
    molecules = StreamedMolecules(n_samples)
    for first in range(0, n_samples, 130):
        yield molecules.batch(range(first, min(first + 130, n_samples)))
