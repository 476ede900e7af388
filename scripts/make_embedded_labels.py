"""Makes the embedded labels again: ``python scripts/make_embedded_labels.py FOLDER --workers 2``.

The set has molecules with one geometry, and five molecules with 40 geometries at 300 K. The script makes the labels,
selects rows, and packs them into ``FOLDER/embedded`` with geometries, split and provenance.
"""

import json
import re
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from ase import Atoms
from ase.io import write
from pyscf.hessian import thermo
from scipy.optimize import minimize

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import OFDataset
from ofdft_norm.data.files import EMBEDDED, hash_file, read_plain, write_text
from ofdft_norm.data.pack import pack_labels
from ofdft_norm.data.packed import META
from ofdft_norm.data.zarr_v2 import ZarrGroup, write_zarr_arrays
from ofdft_norm.labelling.generate import generate_labels
from ofdft_norm.labelling.geometries import (
    BOHR_IN_ANGSTROM,
    Geometry,
    LabellingError,
    make_seeded_generator,
    read_geometries,
)
from ofdft_norm.labelling.kohn_sham import build_molecule, detach_file
from ofdft_norm.labelling.labels import LabelSettings
from ofdft_norm.transforms import BasisTransforms, LocalFrames, NaturalReparametrization

SETTINGS = LabelSettings(targets=("grad_kin", "grad_kin_plus_xc"), perturbations=4)
TARGETS, ENERGIES = ("kin", "kin_plus_xc"), ("xc", "kin_tf", "kin_vw")
# molecules with many geometries; n_samples, and how many of these validate and test
SAMPLED = ("water", "formaldehyde", "methanol", "methylamine", "fluoromethane")
N_GEOMETRIES, N_HELD_OUT, TEMPERATURE = 40, 5, 300.0
# molecules that no part but `test_molecules` has; most have relatives in the training split
TEST_MOLECULES = (
    *("acetaldehyde", "acetonitrile", "difluoromethane", "ethanol", "ethylamine", "fluoroethane"),
    *("formic_acid", "hydrogen_peroxide", "ketene", "methanimine", "propyne", "trans_diazene"),
)
N_ITERATIONS = 3  # SCF iterations that are kept beside the initial guess
_SAMPLE = re.compile(r"(.+)_\d{3}")
METHOD = (
    f"classical harmonic ensemble at {TEMPERATURE:g} K: normal modes of RHF/6-31G* (PySCF's analytic Hessian) at the "
    "relaxed geometry, seed: SHA-256 of the molecule's name"
)
_COMMAND = "python scripts/make_embedded_labels.py FOLDER --workers 2"
Array = npt.NDArray[np.float64]
BOLTZMANN = 3.166811563e-6  # hartree / K, CODATA 2018
DALTON = 1822.888486209  # electron masses, CODATA 2018


def make_embedded(folder: Path, workers: int = 1) -> Path:
    """Makes the whole set in a folder, and returns its packed set; an interrupted run continues."""
    xyz, output = folder / "geometries.xyz", folder / "embedded"
    folder.mkdir(parents=True, exist_ok=True)
    if not xyz.is_file():
        write_geometries(xyz, sample_geometries(read_geometries(EMBEDDED / "geometries.xyz")))
    made = generate_labels(xyz, folder, SETTINGS, workers=workers, command=_COMMAND)
    if made.failures:
        raise LabellingError(f"{xyz}: no labels of {made.failures}")
    return pack_embedded(folder, output, workers)


def sample_geometries(present: Sequence[Geometry]) -> list[Geometry]:
    """Returns the geometries of a set that are no samples, and new samples of the molecules in `SAMPLED`."""
    single = {geometry.mol_id: geometry for geometry in present if not _SAMPLE.fullmatch(geometry.mol_id)}
    found = list(single.values())
    for name in SAMPLED:
        found += sample_normal_modes(relax(single[name]), N_GEOMETRIES, TEMPERATURE)
    return found


def write_geometries(path: Path, geometries: Sequence[Geometry]) -> None:
    """Writes geometries as extended XYZ in angstrom."""
    sampled, frames = f"normal modes at {TEMPERATURE:g} K, see provenance.yaml", []
    for geometry in geometries:
        source = sampled if _SAMPLE.fullmatch(geometry.mol_id) else geometry.source
        info = {"mol_id": geometry.mol_id, "source": source}
        positions = geometry.positions * BOHR_IN_ANGSTROM
        frames.append(Atoms(geometry.atomic_numbers, positions, info=info))
    write(path, frames, format="extxyz")


def kept_rows(perturbed: npt.NDArray[np.bool_], is_sample: bool) -> npt.NDArray[np.int64]:
    """Returns the rows of a label file that the set has: initial guess, perturbed densities, evenly thinned iterations.

    The strongest perturbation is left out: its density is further from the ground state than an initial guess.
    Molecules with one geometry have every second perturbed density.
    """
    rows, n_perturbed = np.arange(len(perturbed)), int(perturbed.sum())
    iterations = np.linspace(n_perturbed + 1, len(perturbed) - 1, N_ITERATIONS).round().astype(np.int64)
    return np.concatenate([[0], rows[perturbed][1:] if is_sample else rows[perturbed][1::2], iterations])


def thin_labels(path: Path, output: Path) -> None:
    """Writes a label file with the rows `kept_rows`."""
    with ZarrGroup(path) as group:
        arrays, attributes = {name: group.read(name) for name in group.arrays()}, group.attributes()
    perturbed = arrays["of_labels/perturbed"]
    rows = kept_rows(perturbed, _SAMPLE.fullmatch(path.name.split(".")[0]) is not None)
    by_row = [name for name, array in arrays.items() if array.ndim and len(array) == len(perturbed)]
    by_row = [name for name in by_row if not name.startswith("geometry/")]
    arrays |= {name: arrays[name][rows] for name in by_row}
    arrays["of_labels/n_scf_steps"] = np.array(len(rows))
    write_zarr_arrays(output, arrays, attributes, by_row=[name for name in by_row if "/spatial/" in name])


def pack_embedded(folder: Path, output: Path, workers: int = 0) -> Path:
    """Packs the labels of a folder, thinned, in local frames and natural coordinates, with split and provenance."""
    names = [geometry.mol_id for geometry in read_geometries(folder / "geometries.xyz")]
    paths = [folder / "thinned" / f"{name}.zarr.zip" for name in names]
    for path in paths:
        thin_labels(folder / "labels" / path.name, path)
    dataset = OFDataset(paths, BasisInfo.from_json(folder / "basis_info.json"))
    change = BasisTransforms([LocalFrames(), NaturalReparametrization()])
    if output.exists():
        shutil.rmtree(output)
    torch.set_num_threads(1)  # equal bits in every process
    pack_labels(dataset, output, TARGETS, [change], workers=workers, progress=False, energies=ENERGIES)
    meta = read_plain(output / META) | {"sources": ["labels"]}  # not the folder on this machine
    write_text(output / META, json.dumps(meta, indent=1))
    for name in ("geometries.xyz", "basis_info.json"):
        shutil.copy(folder / name, output / name)
    write_text(output / "split.yaml", yaml.safe_dump(split_molecules(names), sort_keys=False))
    write_text(output / "provenance.yaml", yaml.safe_dump(_describe(folder), sort_keys=False, allow_unicode=True))
    return output


def split_molecules(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the label files of each part: the last geometries of each sampled molecule validate and test."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": [], "test_molecules": []}
    sampled = [name for name in names if _SAMPLE.fullmatch(name)]
    for name in names:
        later = [other for other in sampled if other[:-4] == name[:-4] and other >= name]  # 0 of a single geometry
        part = "train" if not later else ("test", "val", "train")[min(2, (len(later) - 1) // N_HELD_OUT)]
        parts["test_molecules" if name in TEST_MOLECULES else part].append(f"{name}.zarr.zip")
    return parts


def _describe(folder: Path) -> dict[str, Any]:
    """Returns the provenance of the labels, and how they were thinned and packed."""
    provenance = read_plain(folder / "provenance.yaml")
    last = provenance.pop("runs")[-1]
    rows = f"perturbed densities without the strongest, and {N_ITERATIONS} SCF iterations at even distances"
    packed = {"targets": list(TARGETS), "energies": list(ENERGIES), "coordinates": "local_frames+natural_symmetric"}
    digest = {"geometries.xyz": hash_file(folder / "geometries.xyz")}
    return {
        "command": _COMMAND,
        "geometries": digest,
        "samples": METHOD,
        "rows": f"initial guess, {rows}",
        "packed": packed,
        "date": last["date"],
        **provenance,
        "software": last["software"],
    }


# --- geometries at a temperature --------------------------------------------------------------------------------------


def relax(geometry: Geometry, basis: str = "6-31G*", tolerance: float = 1e-5) -> Geometry:
    """Returns the geometry of minimal Hartree-Fock energy; `tolerance` is the largest gradient [hartree/bohr]."""

    def energy_and_gradient(positions: Array) -> tuple[float, Array]:
        mean_field = _hartree_fock(replace(geometry, positions=positions.reshape(-1, 3)), basis)
        return mean_field.e_tot, mean_field.nuc_grad_method().kernel().ravel()

    start, options = geometry.positions.ravel(), {"gtol": tolerance}
    found = minimize(energy_and_gradient, start, jac=True, method="BFGS", options=options)
    return replace(geometry, positions=found.x.reshape(-1, 3))


def sample_normal_modes(
    relaxed: Geometry, n_samples: int, temperature: float = 300.0, basis: str = "6-31G*"
) -> list[Geometry]:
    """Returns geometries of the classical harmonic ensemble of a relaxed molecule, named ``<mol_id>_000`` and so on.

    Each normal mode of the Hartree-Fock energy has the variance k T / omega^2. Mass-weighted displacements are the
    symmetric root of their covariance times random numbers, so that they do not depend on the signs of modes, nor on
    the choice among degenerate ones. The name of the molecule is the seed.
    """
    mean_field, n = _hartree_fock(relaxed, basis), 3 * len(relaxed.atomic_numbers)
    masses = np.repeat(mean_field.mol.atom_mass_list(isotope_avg=True) * DALTON, 3)
    found = thermo.harmonic_analysis(mean_field.mol, mean_field.Hessian().kernel(), mass=masses[::3])
    modes = found["norm_mode"].reshape(-1, n) * np.sqrt(masses)
    root = modes.T * np.sqrt(BOLTZMANN * temperature / found["force_const_au"]) @ modes
    generator = make_seeded_generator(relaxed.mol_id)
    moved = generator.normal(size=(n_samples, n)) @ root / np.sqrt(masses)
    return [
        replace(relaxed, mol_id=f"{relaxed.mol_id}_{i:03}", positions=relaxed.positions + step.reshape(-1, 3))
        for i, step in enumerate(moved)
    ]


def _hartree_fock(geometry: Geometry, basis: str) -> Any:
    """Returns PySCF's converged restricted Hartree-Fock calculation."""
    mean_field = detach_file(build_molecule(geometry, basis).RHF())
    mean_field.conv_tol = 1e-11
    mean_field.kernel()
    return mean_field


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    print(make_embedded(options.folder, options.workers))
