"""Packs the labels of a data set into a packed set, and compares the two."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ofdft_norm.data.dataset import MoleculeDataset, ScfSelection, Transform, compose, single_transforms
from ofdft_norm.data.files import file_digest, package_version, written_whole
from ofdft_norm.data.identity import identity
from ofdft_norm.data.packed import FORMAT, META, OFFSETS, VERSION, PackedDataset, PackedSet, array_specs, meta_checksum
from ofdft_norm.data.sample import collate_joined
from ofdft_norm.errors import ConfigError, LabelFileError, OFDFTNormError

Array = npt.NDArray[Any]

# fields that are the same for all SCF iterations of a molecule
_CONSTANT = ("pos", "atomic_numbers", "dual_basis_integrals")
_BY_SAMPLE = ("energy_label", "has_energy_label", "perturbed", "mol_id", "scf_iteration")
_STORED = (*_CONSTANT, "ground_state_coeffs", "coeffs", "gradient_label", *_BY_SAMPLE)
# fields that follow from the stored ones
_IMPLIED = ("basis_info", "coordinates", "atom_ind", "basis_function_ind", "coeffs_batch", "coeffs_ptr", "batch", "ptr")


def pack_labels(
    dataset: MoleculeDataset,
    output: str | Path,
    targets: Sequence[str] = ("kin",),
    pre_transforms: Sequence[Transform] = (),
    dtype: str = "float64",
    workers: int = 0,
    progress: bool = True,
    energies: Sequence[str] = (),
) -> Path:
    """Packs label files, or packed sets, into a new folder, which appears whole or not at all; returns it.

    Args:
        dataset: Data set of all SCF iterations of the molecules, without transforms.
        output: Folder of the set; must not exist.
        targets: The packed targets: ``kin`` is the energy ``e_kin`` with its gradient ``grad_kin``.
        pre_transforms: Applied to the samples, in float64, before they are packed.
        dtype: ``float64`` or ``float32``, of coefficients and gradients; energies are float64.
        workers: Number of processes that read and transform.
        progress: Whether to show a progress bar.
        energies: Further packed energies, without gradients: ``xc`` is ``e_xc``.
    """
    output = Path(output).absolute()
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output}: exists already; give another output, or delete it")
    molecules = _Molecules(dataset, targets, pre_transforms, dtype, energies)
    try:
        with written_whole(output) as work:
            work.mkdir()
            loader = DataLoader(molecules, batch_size=None, num_workers=workers, collate_fn=collate_joined)
            _write(molecules, tqdm(loader, "packing", unit=" molecules", disable=not progress), work)
    except OSError as error:
        raise LabelFileError(f"{output}: cannot be written: {error}") from error
    return output


class _Molecules(Dataset[Any]):
    """The entries of all arrays of each molecule; for a bad molecule the error."""

    def __init__(
        self,
        dataset: MoleculeDataset,
        targets: Sequence[str],
        pre_transforms: Sequence[Transform],
        dtype: str,
        energies: Sequence[str] = (),
    ) -> None:
        self.names = [path.name for path in dataset.paths]
        self.targets, self.energies, self.dtype = list(targets), list(energies), dtype
        self.datasets = [dataset.with_target(target) for target in targets]
        for of_target in self.datasets:
            of_target.transform = compose(pre_transforms)
        self.of_energies = {name: dataset.with_energy(name) for name in energies}
        others = [t for t in single_transforms(pre_transforms) if not getattr(t, "changes_basis", False)]
        applied = [identity(transform) for transform in others]
        self.description = {
            "format": FORMAT,
            "version": VERSION,
            "basis_info": dataset.basis_info.to_dict(),
            "targets": self.targets,
            "energies": self.energies,
            "applied": applied,
            "dtype": dtype,
            "n_molecules": len(self.names),
            "sources": sorted({str(path.absolute().parent) for path in dataset.paths}),
        }
        if len(set(self.names)) < len(self.names) or not self.names:
            raise ConfigError(f"{len(self.names)} label files, {len(set(self.names))} names: expected a name for each")
        names = [*self.targets, *self.energies]
        if dtype not in ("float64", "float32") or not targets or len(set(names)) < len(names):
            raise ConfigError(f"dtype {dtype!r}, targets {names}: expected float64 or float32, and different targets")
        if dataset.transform is not None or vars(dataset.scf_selection) != vars(ScfSelection()):
            raise ConfigError("labels are packed with all SCF iterations: select them where the set is read")
        if None in applied:
            raise ConfigError(
                f"a pre-transform of {others} cannot be recognised when packed labels are read: use classes of a "
                "module, with arguments that can be pickled (config: data.pre_transforms)"
            )

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, molecule: int) -> dict[str, Any]:
        return {t: d.molecules([molecule]) for t, d in zip(self.targets, self.datasets, strict=True)}

    def __getitem__(self, molecule: int) -> tuple[str, dict[str, Array]] | OFDFTNormError:
        try:
            name, arrays = _entries(self.names[molecule], self.batches(molecule))
            for energy, dataset in self.of_energies.items():
                arrays[f"e_{energy}"] = dataset.molecules([molecule], ("energy_label",)).energy_label.numpy()
            return name, arrays
        except OFDFTNormError as error:
            return error


def _entries(name: str, batches: Mapping[str, Any]) -> tuple[str, dict[str, Array]]:
    """Returns coordinates and entries of all arrays but the offsets of a molecule."""
    first = next(iter(batches.values()))
    mol_id, n_samples = first.mol_id[0], len(first.energy_label)
    unknown = sorted(set(first.keys()).difference(_STORED, _IMPLIED))
    if unknown:
        raise ConfigError(f"{name}: packed labels cannot hold the fields {unknown} (config: data.pre_transforms)")
    arrays = {"names": np.frombuffer(name.encode(), np.uint8), "mol_ids": np.frombuffer(mol_id.encode(), np.uint8)}
    for field in _CONSTANT:
        rows = first[field].reshape(n_samples, -1)
        if not (rows == rows[0]).all():
            raise LabelFileError(f"{name}: molecule {mol_id!r}: field {field!r} differs between SCF iterations")
        arrays[field] = first[field][: len(first[field]) // n_samples].numpy()
    arrays |= {name: first[name].numpy() for name in ("has_energy_label", "perturbed", "coeffs")}
    for target, batch in batches.items():
        arrays |= {f"e_{target}": batch.energy_label.numpy(), f"grad_{target}": batch.gradient_label.numpy()}
    return str(first.coordinates[0]), arrays


def _write(molecules: _Molecules, found: Iterator[Any], work: Path) -> None:
    """Appends the entries of molecule after molecule to the arrays' files, then writes headers and ``meta.json``."""
    specs = array_specs(molecules.targets, molecules.energies, molecules.dtype)
    lengths, coordinates = dict.fromkeys(specs, 0), set()
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(work / f"{name}.npy", "wb")) for name in specs}

        def write_header(name: str) -> None:  # numpy leaves room in it for longer arrays
            shape = (lengths[name], *specs[name][2])
            header = {"descr": specs[name][1], "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)

        def append(name: str, values: Array) -> None:
            files[name].write(np.ascontiguousarray(values, dtype=specs[name][1]).tobytes())
            lengths[name] += len(values)

        for name in specs:
            write_header(name)
            if name.endswith("_offsets"):
                append(name, np.zeros(1))
        for name, molecule in zip(molecules.names, found, strict=True):
            if isinstance(molecule, Exception):
                raise molecule
            coordinates.add(molecule[0])
            if len(coordinates) > 1:
                raise LabelFileError(f"{name}: a set has labels in one system of coordinates, found {coordinates}")
            for array, values in molecule[1].items():
                append(array, values)
            ends = {specs[array][0]: lengths[array] for array in molecule[1]}
            for axis in OFFSETS:
                append(f"{axis}_offsets", np.array([ends[axis]]))
        for name in specs:
            files[name].seek(0)
            write_header(name)
    meta = molecules.description | {
        "coordinates": coordinates.pop(),
        "n_samples": lengths["has_energy_label"],
        "created_by": f"ofdft_norm {package_version()}",
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": str(torch.__version__)},
        "arrays": {
            name: {"shape": [lengths[name], *shape], "dtype": dtype, "sha256": file_digest(work / f"{name}.npy")}
            for name, (_, dtype, shape) in specs.items()
        },
    }
    meta["checksum"] = meta_checksum(meta)
    (work / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


def verify_packed(
    dataset: MoleculeDataset,
    output: str | Path,
    targets: Sequence[str] = ("kin",),
    pre_transforms: Sequence[Transform] = (),
    dtype: str = "float64",
    every: int = 100,
) -> int:
    """Compares a packed set with the labels that it contains; returns the number of compared molecules.

    Compares all checksums and, bit for bit, the samples of each molecule number 0, `every`, 2 `every` ...; the other
    arguments are those of `pack_labels`.
    """
    if every < 1:
        raise ConfigError(f"verify is {every}, expected 1 or more: the step between compared molecules")
    packed = PackedSet(output, verify=True)
    molecules = _Molecules(dataset, targets, pre_transforms, dtype, packed.meta["energies"])
    differing = [key for key, value in molecules.description.items() if packed.meta[key] != value]
    if differing or packed.names() != molecules.names:
        raise ConfigError(f"{output}: was packed with other {differing or 'label files'}: they cannot be compared")
    found = PackedDataset([packed], energy_key=f"e_{targets[0]}", gradient_key=f"grad_{targets[0]}")
    for molecule in range(0, len(molecules), every):
        for target, expected in molecules.batches(molecule).items():
            stored = found.with_target(target).molecules([molecule])
            for field in _STORED:
                a, b = stored[field], expected[field]
                if not (a == b if isinstance(b, list) else np.array_equal(a, b.to(a.dtype), equal_nan=True)):
                    what = f"{molecules.names[molecule]}: target {target!r}: field {field!r} is not the packed one"
                    raise LabelFileError(f"{what}: the labels or the set have changed, pack them again")
    return len(range(0, len(molecules), every))
