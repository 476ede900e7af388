"""The data set of samples, one for each SCF iteration, over label files, one for each molecule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.file_states import file_states
from ofdft_norm.data.joined_batch import make_batch
from ofdft_norm.data.label_files import MoleculeLabels, read_molecule, read_n_scf_iterations
from ofdft_norm.data.molecule_names import MoleculeNames
from ofdft_norm.data.of_data import OFData
from ofdft_norm.data.p_order import POrderCheck
from ofdft_norm.data.scf_iterations import IntArray, ScfSelection
from ofdft_norm.data.worker_notes import TOLD, at_work_on, first_of
from ofdft_norm.errors import BatchError, ConfigError, LabelFileError

Transform = Callable[[OFData], OFData]


class OFDataset(Dataset[OFData]):
    """Samples over label files.

    Args:
        paths: Label files (``.zarr`` directories or ``.zarr.zip`` files), one molecule each.
        basis_info: The density basis of the labels.
        energy_key: Which energy below ``of_labels/energies`` becomes `energy_label`.
        gradient_key: Which gradient below ``of_labels/spatial`` becomes `gradient_label`.
        transform: Applied to each sample, e.g. `ProjectGradient()`.
        limit_scf_iterations: Which SCF iterations to use; see `ScfSelection`. None: all.
        keep_initial_guess: Whether iteration 0, which has no energy label, is part of the data set: True adds it to
            what `limit_scf_iterations` selects, False leaves it out.
        n_scf_iterations: Number of SCF iterations in each file, where known (a split file's, an index's); otherwise
            every file's header is read once.

    Raises:
        LabelFileError: If a file is missing or unreadable, or has no iteration that `limit_scf_iterations` selects.
        ConfigError: If `limit_scf_iterations` is not of these kinds, or `n_scf_iterations` has another length.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        basis_info: BasisInfo,
        energy_key: str = "e_kin",
        gradient_key: str = "grad_kin",
        transform: Transform | None = None,
        limit_scf_iterations: int | Sequence[int] | None = None,
        keep_initial_guess: bool = True,
        n_scf_iterations: Sequence[int] | None = None,
    ) -> None:
        self._paths = [Path(path) for path in paths]
        self.basis_info = basis_info
        self.energy_key = energy_key
        self.gradient_key = gradient_key
        self.transform = transform
        self._check_p_order = POrderCheck(basis_info.p_order)
        self._names = MoleculeNames()
        if n_scf_iterations is None:
            n_scf_iterations = [read_n_scf_iterations(path) for path in self.paths]
        if len(n_scf_iterations) != len(self.paths):
            raise ConfigError(
                f"n_scf_iterations has {len(n_scf_iterations)} numbers for {len(self.paths)} label files, "
                "expected one for each (config: data.split.file)"
            )
        self._selection = ScfSelection(n_scf_iterations, limit_scf_iterations, keep_initial_guess, self._name)

    @classmethod
    def from_directory(cls, directory: str | Path, basis_info: BasisInfo, **options: Any) -> OFDataset:
        """Opens all label files of a folder, sorted by name.

        Args:
            directory: The folder.
            basis_info: The density basis of the labels.
            options: The other arguments of the class.

        Raises:
            LabelFileError: If the folder has no label file; also as the class does.
        """
        paths = sorted(p for p in Path(directory).glob("*.zarr*") if p.name.endswith((".zarr", ".zarr.zip")))
        if not paths:
            raise LabelFileError(f"{directory}: no label file (*.zarr, *.zarr.zip) there (config: data.source.paths)")
        return cls(paths, basis_info, **options)

    def __len__(self) -> int:
        return len(self.selection)

    @property
    def selection(self) -> ScfSelection:
        """Which SCF iterations of which molecule are the samples."""
        return self._selection

    @property
    def paths(self) -> list[Path]:
        """(n_molecules,) the label files."""
        return self._paths

    @property
    def n_molecules(self) -> int:
        """Number of molecules."""
        return len(self.selection.n_scf_iterations)

    @property
    def sample_offsets(self) -> IntArray:
        """(n_molecules + 1,) index of each molecule's first sample."""
        return self.selection.sample_offsets

    def __getitem__(self, index: int) -> OFData:
        """Reads one sample: one SCF iteration of one molecule, in the dtype it is stored in."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        sample = self._raw_sample(*self.selection.locate(index % len(self)))
        return sample if self.transform is None else _transformed(self.transform, sample)

    def __iter__(self) -> Iterator[OFData]:
        return (self[i] for i in range(len(self)))

    def batch(self, samples: Sequence[int] | IntArray, fields: Collection[str] | None = None) -> OFData:
        """Reads samples together; those of one molecule that follow one another are read at once.

        Args:
            samples: Their indices, not negative.
            fields: Fields that are asked for; others may be left out. None: all.

        Returns:
            A batch with the fields of a collated PyG batch (`batch`, `ptr`, `coeffs_batch`, ...), transform applied.

        Raises:
            LabelFileError: If the labels are missing, malformed or not finite.
            BasisError: If an element is not part of the basis.
        """
        located = self.selection.locate(np.asarray(samples, dtype=np.int64))
        raw = self._raw_batch(*located, fields if self.transform is None else None)
        return transform_batch(self.transform, raw)

    def molecule_batch(self, molecule: int) -> OFData:
        """Reads all samples of one molecule together; see `batch`.

        Args:
            molecule: Which molecule, from 0.
        """
        return self.batch(range(self.sample_offsets[molecule], self.sample_offsets[molecule + 1]))

    def names(self, samples: Sequence[int]) -> list[str]:
        """Returns what messages call the molecules of some samples, one for each: their label files.

        Args:
            samples: Their indices, not negative.
        """
        return [self._name(molecule) for molecule in self.selection.locate(np.asarray(samples))[0].tolist()]

    def _name(self, molecule: int) -> str:
        return str(self.paths[molecule])

    def state(self, contents: bool = False, folder: Path | None = None) -> dict[str, Any]:
        """Describes in plain types what the samples are: equal states, equal raw samples.

        Args:
            contents: Tell label files by their contents, not by size and modification time.
            folder: Where digests of contents are remembered; None: nowhere.
        """
        return {
            "files": file_states(self.paths, contents, folder),
            "samples": [self.selection.iterations(m).tolist() for m in range(self.n_molecules)],
            "energy_key": self.energy_key,
            "gradient_key": self.gradient_key,
        }

    def _raw_sample(self, molecule: Any, iteration: Any) -> OFData:
        return OFData.from_labels(self._read(molecule, np.array([iteration])), self.basis_info)

    def _raw_batch(self, molecules: IntArray, iterations: IntArray, fields: Collection[str] | None) -> OFData:
        """Reads runs of samples of the same molecule together, and all their fields."""
        bounds = np.flatnonzero(np.diff(molecules)) + 1
        runs = zip(np.split(molecules, bounds), np.split(iterations, bounds), strict=True)
        return join_labels([self._read(run[0], of_run) for run, of_run in runs], self.basis_info)

    def _read(self, molecule: int, iterations: IntArray) -> MoleculeLabels:
        n_iterations = int(self.selection.n_scf_iterations[molecule])
        path = self.paths[molecule]
        with at_work_on(lambda: str(path)):
            labels = read_molecule(path, self.energy_key, self.gradient_key, iterations, n_iterations)
        self._check_p_order(labels.path, labels.p_order)
        self._names.check(labels.path, labels.mol_id, labels.pos, labels.atomic_numbers)
        return labels


def join_labels(of_molecule: Sequence[MoleculeLabels], basis_info: BasisInfo) -> OFData:
    """Returns the batch of all samples of some molecules.

    Args:
        of_molecule: Labels of each molecule, one row for each SCF iteration.
        basis_info: The density basis.

    Raises:
        LabelFileError: If labels do not have the basis's length.
        BasisError: If an element is not part of the basis.
    """
    firsts = [OFData.from_labels(labels, basis_info) for labels in of_molecule]
    n_rows = [len(labels.scf_iterations) for labels in of_molecule]

    def repeated(name: str) -> Tensor:
        values = [first[name] for first in firsts]
        return torch.cat([v.repeat(n, *[1] * (v.dim() - 1)) for v, n in zip(values, n_rows, strict=True)])

    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(labels, name).reshape(-1) for labels in of_molecule]))

    per_sample = {
        "energy_label": joined("energy"),
        "has_energy_label": joined("has_energy_label"),
        "mol_id": [labels.mol_id for labels, n in zip(of_molecule, n_rows, strict=True) for _ in range(n)],
        "scf_iteration": joined("scf_iterations"),
        "basis_info": [basis_info] * sum(n_rows),
        "coordinates": [labels.coordinates for labels, n in zip(of_molecule, n_rows, strict=True) for _ in range(n)],
    }
    per_function = {
        "basis_function_ind": repeated("basis_function_ind"),
        "coeffs": joined("coeffs"),
        "ground_state_coeffs": repeated("ground_state_coeffs"),
        "gradient_label": joined("gradient"),
        "dual_basis_integrals": joined("dual_basis_integrals"),
    }
    per_atom = {name: repeated(name) for name in ("pos", "atomic_numbers", "atom_ind")}
    n_atoms = np.repeat([len(first.pos) for first in firsts], n_rows)
    n_functions = np.repeat([len(first.coeffs) for first in firsts], n_rows)
    return make_batch(per_atom, per_function, per_sample, n_atoms, n_functions)


def transform_batch(transform: Transform | None, batch: OFData) -> OFData:
    """Applies a transform to a batch at once if it says that it can (`works_on_batches`), else to its samples.

    Args:
        transform: A transform of samples; None: nothing happens.
        batch: Samples to be transformed.

    Raises:
        BatchError: If the transformed samples have different fields.
    """
    if transform is None:
        return batch
    if getattr(transform, "works_on_batches", False):
        return _transformed(transform, batch)
    samples = [_transformed(transform, sample) for sample in batch.to_data_list()]
    fields = set(samples[0].keys())
    differing = sorted({name for sample in samples for name in fields ^ set(sample.keys())})
    if differing:
        raise BatchError(
            f"some samples have the fields {differing} and others do not: give all of them the same fields "
            "(config: data.pre_transforms)"
        )
    return Batch.from_data_list(samples, follow_batch=["coeffs"])


def _transformed(transform: Transform, samples: OFData) -> OFData:
    """Transforms a sample or a batch; the transform may be anybody's, and its errors know nothing of molecules."""
    names, iterations = samples.mol_id, samples.scf_iteration

    def describe() -> str:
        if isinstance(names, str):
            told = f"molecule {names!r}, SCF iteration {int(iterations)}"
        else:
            told = f"the molecules {first_of(names[:TOLD], len(names))}"
        return f"{told} (config: data.pre_transforms)"

    with at_work_on(describe):
        return transform(samples)
