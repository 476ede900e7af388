"""Packs the labels of a data set into a packed set, and compares the two."""

import datetime
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ofdft_norm.data.dataset import MoleculeDataset, ScfSelection, Transform, compose, list_single_transforms
from ofdft_norm.data.files import find_package_version, hash_file, write_whole
from ofdft_norm.data.identity import identify
from ofdft_norm.data.packed import (
    FORMAT,
    META,
    OFFSETS,
    VERSION,
    PackedDataset,
    PackedSet,
    compute_meta_checksum,
    describe_arrays,
)
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
    """Packs all SCF iterations of label files, or packed sets, into a new folder, which appears whole or not at all.

    `pre_transforms` are applied in float64. `dtype`, float64 or float32, is that of coefficients and gradients. The
    further `energies` (``xc`` is ``e_xc``) are packed without gradients.
    """
    output = Path(output).absolute()
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output}: exists already; give another output, or delete it")
    molecules = _Molecules(dataset, targets, pre_transforms, dtype, energies)
    try:
        with write_whole(output) as work:
            work.mkdir()
            loader = DataLoader(molecules, batch_size=None, num_workers=workers, collate_fn=collate_joined)
            _write(molecules, tqdm(loader, "packing", unit=" molecules", disable=not progress), work)
    except OSError as error:
        raise LabelFileError(f"{output}: cannot be written: {error}") from error
    return output


@dataclass
class _Molecules(Dataset[Any]):
    """The entries of all arrays of each molecule; for a bad molecule the error."""

    dataset: MoleculeDataset
    targets: Sequence[str]
    pre_transforms: Sequence[Transform]
    dtype: str
    energies: Sequence[str]

    def __post_init__(self) -> None:
        dataset, self.names = self.dataset, [path.name for path in self.dataset.paths]
        self.datasets = {target: dataset.with_target(target, self.energies) for target in self.targets}
        for of_target in self.datasets.values():
            of_target.transform = compose(self.pre_transforms)
        others = [t for t in list_single_transforms(self.pre_transforms) if not getattr(t, "changes_basis", False)]
        applied = [identify(transform) for transform in others]
        self.description = {
            "format": FORMAT,
            "version": VERSION,
            "basis_info": dataset.basis_info.to_dict(),
            "targets": list(self.targets),
            "energies": list(self.energies),
            "applied": applied,
            "dtype": self.dtype,
            "n_molecules": len(self.names),
            "sources": sorted({str(path.absolute().parent) for path in dataset.paths}),
        }
        if len(set(self.names)) < len(self.names) or not self.names:
            raise ConfigError(f"{len(self.names)} label files, {len(set(self.names))} names: expected a name for each")
        names = [*self.targets, *self.energies]
        if self.dtype not in ("float64", "float32") or not self.targets or len(set(names)) < len(names):
            raise ConfigError(f"dtype {self.dtype!r}, targets {names}: expected float64 or float32, different targets")
        if dataset.transform is not None or vars(dataset.scf_selection) != vars(ScfSelection()):
            raise ConfigError("labels are packed with all SCF iterations: select them where the set is read")
        if None in applied:
            expected = "expected classes of a module, with arguments that can be pickled"
            raise ConfigError(f"a transform of {others} cannot be recognised, {expected} (config: data.pre_transforms)")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, molecule: int) -> dict[str, Any]:
        return {target: dataset.molecules([molecule]) for target, dataset in self.datasets.items()}

    def __getitem__(self, molecule: int) -> tuple[str, dict[str, Array]] | OFDFTNormError:
        try:
            energies = [f"e_{name}" for name in self.energies]
            return _make_entries(self.names[molecule], self.read(molecule), energies)
        except OFDFTNormError as error:
            return error


def _make_entries(name: str, batches: Mapping[str, Any], energies: Sequence[str]) -> tuple[str, dict[str, Array]]:
    """Returns the name of a molecule's coordinates, and its entries of all arrays except the offsets."""
    first = next(iter(batches.values()))
    mol_id, n_samples = first.mol_id[0], len(first.energy_label)
    unknown = sorted(set(first.keys()).difference(_STORED, _IMPLIED, energies))
    if unknown:
        raise ConfigError(f"{name}: packed labels cannot hold the fields {unknown} (config: data.pre_transforms)")
    arrays = {"names": np.frombuffer(name.encode(), np.uint8), "mol_ids": np.frombuffer(mol_id.encode(), np.uint8)}
    for field in _CONSTANT:
        rows = first[field].reshape(n_samples, -1)
        if not (rows == rows[0]).all():
            raise LabelFileError(f"{name}: molecule {mol_id!r}: field {field!r} differs between SCF iterations")
        arrays[field] = first[field][: len(first[field]) // n_samples].numpy()
    arrays |= {field: first[field].numpy() for field in ("has_energy_label", "perturbed", "coeffs", *energies)}
    for target, batch in batches.items():
        arrays |= {f"e_{target}": batch.energy_label.numpy(), f"grad_{target}": batch.gradient_label.numpy()}
    return str(first.coordinates[0]), arrays


def _write(molecules: _Molecules, found: Iterator[Any], work: Path) -> None:
    """Appends the entries of molecule after molecule to the arrays' files, then writes headers and ``meta.json``."""
    specs = describe_arrays(molecules.targets, molecules.energies, molecules.dtype)
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
        "created_by": f"ofdft_norm {find_package_version()}",
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": str(torch.__version__)},
        "arrays": {
            name: {"shape": [lengths[name], *shape], "dtype": dtype, "sha256": hash_file(work / f"{name}.npy")}
            for name, (_, dtype, shape) in specs.items()
        },
    }
    meta["checksum"] = compute_meta_checksum(meta)
    (work / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


def verify_packed(
    dataset: MoleculeDataset,
    output: str | Path,
    targets: Sequence[str] = ("kin",),
    pre_transforms: Sequence[Transform] = (),
    dtype: str = "float64",
    every: int = 100,
) -> int:
    """Compares checksums and the samples of each `every`-th molecule, bit for bit without pre-transforms."""
    if every < 1:
        raise ConfigError(f"verify is {every}, expected 1 or more: the step between compared molecules")
    rounded = len(pre_transforms) > 0
    packed = PackedSet(output, verify=True)
    molecules = _Molecules(dataset, targets, pre_transforms, dtype, packed.meta["energies"])
    differing = [key for key, value in molecules.description.items() if packed.meta[key] != value]
    if differing or packed.names() != molecules.names:
        raise ConfigError(f"{output}: was packed with other {differing or 'label files'}: they cannot be compared")
    found = PackedDataset([packed], energy_key=f"e_{targets[0]}", gradient_key=f"grad_{targets[0]}")
    for molecule in range(0, len(molecules), every):
        for target, expected in molecules.read(molecule).items():
            stored = found.with_target(target, molecules.energies).molecules([molecule])
            for field in (*_STORED, *(f"e_{name}" for name in molecules.energies)):
                a, b = stored[field], expected[field]
                if not (a == b if isinstance(b, list) else _is_equal(a.numpy(), b.to(a.dtype).numpy(), rounded)):
                    what = f"{molecules.names[molecule]}: target {target!r}: field {field!r} is not the packed one"
                    raise LabelFileError(f"{what}: the labels or the set have changed, pack them again")
    return len(range(0, len(molecules), every))


def _is_equal(stored: Array, expected: Array, rounded: bool) -> bool:
    """Compares bit for bit; `rounded`: to rounding, as linear algebra rounds differently in another process."""
    if not rounded or stored.dtype.kind != "f":
        return np.array_equal(stored, expected, equal_nan=stored.dtype.kind == "f")
    tolerance = max(1e-9, 4 * float(np.finfo(stored.dtype).eps))
    atol = tolerance * float(np.nanmax(np.abs(expected), initial=0.0))
    return np.allclose(stored, expected, rtol=tolerance, atol=atol, equal_nan=True)
