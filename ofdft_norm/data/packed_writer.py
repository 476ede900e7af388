"""Packs label files into a packed set: `pack_labels`, and `verify_packed`, which compares the two."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ofdft_norm.data.basis_info import BasisInfo, POrder
from ofdft_norm.data.file_states import file_states
from ofdft_norm.data.label_files import read_molecule
from ofdft_norm.data.molecule_names import MoleculeNames
from ofdft_norm.data.of_data import OFData
from ofdft_norm.data.of_dataset import join_labels, transform_batch
from ofdft_norm.data.p_order import POrderCheck
from ofdft_norm.data.packed import FORMAT, META, VERSION, PackedSet, array_specs, file_digest, meta_checksum
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.data.packed_files import PROGRESS, GrowingArrays
from ofdft_norm.data.pre_transforms import composed, described
from ofdft_norm.data.worker_notes import NamingDataLoader, at_work_on
from ofdft_norm.errors import ConfigError, LabelFileError, OFDFTNormError
from ofdft_norm.version import package_version

_LOCK = "lock"
# Progress is written down after so many bytes of labels; what was written since is packed again by the next run.
_BYTES_BETWEEN = 2**28
# Fields that are the same for all SCF iterations of a molecule.
_CONSTANT = ("pos", "atomic_numbers", "dual_basis_integrals", "ground_state_coeffs")
# What a molecule's name stands for.
_GEOMETRY = ("mol_ids", "pos", "atomic_numbers")
# What is stored of a sample, and what follows from it.
_STORED = {*_CONSTANT, "coeffs", "gradient_label", "energy_label", "has_energy_label", "mol_id", "scf_iteration"}
_KNOWN = _STORED | {
    "basis_info",
    "coordinates",
    "atom_ind",
    "basis_function_ind",
    "coeffs_batch",
    "coeffs_ptr",
    "batch",
    "ptr",
}


@dataclass(frozen=True)
class PackingPlan:
    """Everything that decides what is packed.

    Attributes:
        paths: The label files, one molecule each, in the order of the packed set; no two of one name.
        basis_info: Their density basis.
        targets: What is packed: ``kin`` stands for the energy ``e_kin`` and its gradient ``grad_kin``.
        pre_transforms: Applied to the samples, in float64, before they are packed.
        dtype: ``float64`` or ``float32``, of coefficients and gradients; energies are float64.

    Raises:
        ConfigError: If there is no label file, two have one name, or a target or dtype is unknown.
    """

    paths: Sequence[Path]
    basis_info: BasisInfo
    targets: Sequence[str] = ("kin",)
    pre_transforms: Sequence[Callable[[Any], Any]] = ()
    dtype: str = "float64"

    def __post_init__(self) -> None:
        names = [path.name for path in self.paths]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice or not names:
            raise ConfigError(
                f"{len(names)} label files, of which {twice[:5]} have the same name: expected one at least, and a name "
                "for each; pack each folder into a set of its own (data.source.paths takes several)"
            )
        if self.dtype not in ("float64", "float32"):
            raise ConfigError(f"dtype = {self.dtype!r}: expected 'float64' or 'float32'")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"targets = {list(self.targets)}: expected different names, such as 'kin'")

    def read(self, path: Path) -> tuple[dict[str, OFData], POrder | None]:
        """Reads a molecule: for each target its samples as they are packed; and the p order that the file states.

        Args:
            path: Its label file.
        """
        batches, transform = {}, composed(self.pre_transforms)
        for target in self.targets:
            labels = read_molecule(path, f"e_{target}", f"grad_{target}")
            batches[target] = transform_batch(transform, join_labels([labels], self.basis_info))
        return batches, labels.p_order

    @cached_property
    def first(self) -> tuple[str, POrder | None]:
        """Coordinates of the first molecule's vectors and dual vectors, and the p order that its file states."""
        batches, p_order = self.read(self.paths[0])
        return str(batches[self.targets[0]].coordinates[0]), p_order

    @property
    def coordinates(self) -> str:
        """What vectors and dual vectors of the first molecule are given in; the others' must be given in the same."""
        return self.first[0]

    def description(self) -> dict[str, Any]:
        """Returns what the set is, in plain types."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "basis_info": self.basis_info.to_dict(),
            "targets": list(self.targets),
            "pre_transforms": described(self.pre_transforms),
            "coordinates": self.coordinates,
            "dtype": self.dtype,
            "sources": sorted({str(path.absolute().parent) for path in self.paths}),
            "n_molecules": len(self.paths),
        }


def pack_labels(
    plan: PackingPlan, output: str | Path, workers: int = 0, progress: bool = True, command: str | None = None
) -> Path:
    """Packs label files; the set appears whole, under its name, or not at all.

    What is done stands in a folder beside the output (``.NAME.packing``): a run that was killed goes on there.

    Args:
        plan: What to pack.
        output: Folder of the set; must not exist.
        workers: Processes that read label files and transform; this process writes.
        progress: Show a progress bar.
        command: The command line, for the set's `meta.json`.

    Returns:
        The output.

    Raises:
        ConfigError: If the output exists, or another plan was begun for it, or another process is packing it.
        LabelFileError: If a label file is bad or nothing more can be written.
    """
    output = Path(output).absolute()
    if output.exists():
        raise ConfigError(f"{output}: exists already; give another output, or delete it")
    work = output.with_name(f".{output.name}.packing")
    try:
        with _locked(work):
            _pack(plan, work, workers, progress, command)
            os.rename(work, output)
    except OSError as error:
        raise LabelFileError(
            f"{work}: cannot be written: {error}; make room and start again: packing goes on where it ended, or delete "
            "this folder"
        ) from error
    return output


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    with open(work / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{work}: another process is packing the same set") from error
        yield


def _pack(plan: PackingPlan, work: Path, workers: int, progress: bool, command: str | None) -> None:
    label_files = hashlib.sha256(json.dumps(file_states(list(plan.paths))).encode()).hexdigest()
    written_plan = {**plan.description(), "label_files": label_files}
    with GrowingArrays(work, array_specs(plan.targets, plan.dtype), written_plan) as arrays:
        missing = range(arrays.done.n_molecules, len(plan.paths))
        loader = NamingDataLoader(
            _Molecules(plan), batch_size=None, sampler=missing, num_workers=workers, collate_fn=_unchanged
        )
        check_p_order, check_name = POrderCheck(plan.basis_info.p_order), MoleculeNames().check
        check_p_order(plan.paths[0], plan.first[1])
        for path, (name, pos, elements) in zip(plan.paths, arrays.molecules(*_GEOMETRY), strict=False):
            check_name(path, _text(name), pos, elements.astype(np.int64))
        shown = tqdm(loader, "packing", len(plan.paths), initial=missing.start, unit=" molecules", disable=not progress)
        for molecule in shown:
            if isinstance(molecule, Exception):
                arrays.save()
                raise molecule
            values, p_order = molecule
            path, entries = plan.paths[arrays.done.n_molecules], {name: t.numpy() for name, t in values.items()}
            check_p_order(path, p_order)
            name, pos, elements = (entries[field] for field in _GEOMETRY)
            check_name(path, _text(name), pos, elements)
            arrays.append_molecule(entries)
            if arrays.unsaved > _BYTES_BETWEEN:
                arrays.save()
        arrays.write_headers()
        write_meta(plan, arrays, command)
    for file in (PROGRESS, _LOCK):
        (work / file).unlink()


def write_meta(plan: PackingPlan, arrays: GrowingArrays, command: str | None) -> None:
    """Writes down what a set is, last of all; its arrays are whole.

    Args:
        plan: What was packed.
        arrays: The packed arrays.
        command: Command line that is written down with them; None: none.
    """
    meta = plan.description() | {
        "n_samples": arrays.done.lengths["has_energy_label"],
        "label_files": arrays.plan["label_files"],
        "created_by": f"ofdft_norm {package_version()}",
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "arrays": {
            name: {
                "shape": [arrays.done.lengths[name], *spec.entry_shape],
                "dtype": spec.dtype,
                "sha256": file_digest(arrays.work / f"{name}.npy"),
            }
            for name, spec in arrays.specs.items()
        },
    }
    meta["checksum"] = meta_checksum(meta)
    (arrays.work / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


class _Molecules(Dataset[Any]):
    """What is packed of each molecule; its error, where it cannot be."""

    def __init__(self, plan: PackingPlan) -> None:
        self.plan = plan

    def __getitem__(self, molecule: int) -> tuple[dict[str, torch.Tensor], POrder | None] | OFDFTNormError:
        path = self.plan.paths[molecule]
        try:
            with at_work_on(lambda: str(path)):
                batches, p_order = self.plan.read(path)
            self._check_coordinates(path, str(batches[self.plan.targets[0]].coordinates[0]))
            return molecule_arrays(path, batches), p_order
        except OFDFTNormError as error:
            return error

    def _check_coordinates(self, path: Path, coordinates: str) -> None:
        if coordinates != self.plan.coordinates:
            raise LabelFileError(
                f"{path}: its vectors are given in the coordinates {coordinates!r}, those of {self.plan.paths[0]} in "
                f"{self.plan.coordinates!r}: a packed set has one (config: data.source.paths, data.source.exclude)"
            )


def _unchanged(molecule: Any) -> Any:
    return molecule


def molecule_arrays(path: Path, batches: Mapping[str, OFData]) -> dict[str, torch.Tensor]:
    """Returns a molecule's entries of all arrays, those of offsets left out.

    Args:
        path: Its label file.
        batches: For each target, all its samples.

    Raises:
        LabelFileError: If something that is stored once differs between SCF iterations.
        ConfigError: If a pre-transform added fields.
    """
    first = next(iter(batches.values()))
    name, n_samples = first.mol_id[0], len(first.energy_label)
    unknown = sorted(set(first.keys()) - _KNOWN)
    if unknown:
        raise ConfigError(
            f"{path}: the pre-transforms add the fields {unknown}, which packed labels do not hold: leave those "
            "transforms out, and have them applied when the packed set is read (config: data.pre_transforms)"
        )
    arrays = {"names": _bytes(path.name), "mol_ids": _bytes(name)}
    for field in _CONSTANT:
        rows = first[field].reshape(n_samples, -1)
        if not (rows == rows[0]).all():
            raise LabelFileError(
                f"{path}: molecule {name!r}: field {field!r} differs between SCF iterations, expected one value for "
                "all: make the label again, or leave the molecule out (config: data.source.exclude)"
            )
        arrays[field] = first[field][: len(first[field]) // n_samples]
    arrays |= {"has_energy_label": first.has_energy_label, "coeffs": first.coeffs}
    for target, batch in batches.items():
        arrays |= {f"e_{target}": batch.energy_label, f"grad_{target}": batch.gradient_label}
    return arrays


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _text(content: npt.NDArray[np.uint8]) -> str:
    return content.tobytes().decode()


def verify_packed(plan: PackingPlan, output: str | Path, every: int = 100) -> int:
    """Compares a packed set with its label files: all digests, and every k-th sample bit for bit.

    Args:
        plan: What was packed.
        output: The set.
        every: k.

    Returns:
        The number of samples that were compared.

    Raises:
        LabelFileError: If an array has changed since it was packed, or a sample differs from its label file's.
        ConfigError: If the set was packed with another plan.
    """
    packed = PackedSet(output, verify=True)
    differing = [key for key, value in plan.description().items() if packed.meta[key] != value]
    if differing or packed.names() != [path.name for path in plan.paths]:
        raise ConfigError(f"{output}: was packed with other {differing or ['label files']}: nothing to compare with")
    for target in plan.targets:
        dataset = PackedDataset([packed], energy_key=f"e_{target}", gradient_key=f"grad_{target}")
        for index in range(0, len(dataset), every):
            molecule, iteration = dataset.selection.locate(index)
            batches, _ = plan.read(plan.paths[molecule])
            _compare(dataset[index], batches[target][int(iteration)], plan.paths[molecule])
    return len(range(0, packed.meta["n_samples"], every))


def _compare(found: OFData, expected: OFData, path: Path) -> None:
    for field in _STORED:
        a, b = found[field], expected[field]
        if isinstance(b, torch.Tensor):
            b = b.to(a.dtype)
            same = a.shape == b.shape and torch.equal(a.view(torch.uint8), b.contiguous().view(torch.uint8))
        else:
            same = a == b
        if not same:
            raise LabelFileError(
                f"{path}: molecule {expected.mol_id!r}, SCF iteration {int(expected.scf_iteration)}: field {field!r} "
                "differs from the packed set's: the label file has changed, or the set: pack it again"
            )
