"""The data set of samples, one for each SCF iteration, over label files, one for each molecule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.label_files import MoleculeLabels, read_molecule, read_n_scf_iterations
from ofdft_norm.data.of_data import OFData
from ofdft_norm.data.p_order import POrderCheck
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError

Transform = Callable[[OFData], OFData]


class OFDataset(Dataset[OFData]):
    """Samples over label files.

    Args:
        paths: Label files (``.zarr`` directories or ``.zarr.zip`` files), one molecule each.
        basis_info: The density basis of the labels.
        energy_key: Which energy below ``of_labels/energies`` becomes `energy_label`.
        gradient_key: Which gradient below ``of_labels/spatial`` becomes `gradient_label`.
        transform: Applied to each sample, e.g. `ProjectGradient()`.
        limit_scf_iterations: Which SCF iterations to use, as STRUCTURES25 reads it: a number s >= 0 means those from
            s on, s < 0 the last -s (-1: the converged density), a list the iterations in it (negative ones counted
            from the last; those that a molecule does not have are passed over). None: all.
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
        self.paths = [Path(path) for path in paths]
        self.basis_info = basis_info
        self.energy_key = energy_key
        self.gradient_key = gradient_key
        self.transform = transform
        self._check_p_order = POrderCheck(basis_info.p_order)
        self.limit_scf_iterations = _check_limit(limit_scf_iterations)
        self.keep_initial_guess = keep_initial_guess
        if n_scf_iterations is None:
            n_scf_iterations = [read_n_scf_iterations(path) for path in self.paths]
        self.n_scf_iterations = [int(n) for n in n_scf_iterations]
        if len(self.n_scf_iterations) != len(self.paths):
            raise ConfigError(
                f"n_scf_iterations has {len(self.n_scf_iterations)} numbers for {len(self.paths)} label files, "
                "expected one for each (config: data.split.file)"
            )
        self.scf_iterations_per_path = [
            self._select(path, n) for path, n in zip(self.paths, self.n_scf_iterations, strict=True)
        ]
        # sample_offsets[m] is the index of molecule m's first sample
        lengths = [len(iterations) for iterations in self.scf_iterations_per_path]
        self.sample_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def _select(self, path: Path, n_iterations: int) -> npt.NDArray[np.int64]:
        limit = self.limit_scf_iterations
        if limit is None:
            selected = set(range(n_iterations))
        elif isinstance(limit, int):
            selected = set(range(limit if limit >= 0 else max(0, n_iterations + limit), n_iterations))
        else:
            selected = {i % n_iterations for i in limit if -n_iterations <= i < n_iterations}
        selected = selected | {0} if self.keep_initial_guess else selected - {0}
        if not selected or n_iterations < 1:
            raise LabelFileError(
                f"{path}: none of its {n_iterations} SCF iterations is selected by limit_scf_iterations={limit} with "
                f"keep_initial_guess={self.keep_initial_guess}: select others (config: "
                "data.source.limit_scf_iterations, data.source.keep_initial_guess) or leave the file out (config: "
                "data.source.exclude)"
            )
        return np.array(sorted(selected), dtype=np.int64)

    def __len__(self) -> int:
        return int(self.sample_offsets[-1])

    @property
    def n_molecules(self) -> int:
        """Number of label files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> OFData:
        """Reads one sample: one SCF iteration of one molecule, in the file's float64."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        index = index % len(self)
        molecule = int(np.searchsorted(self.sample_offsets, index, side="right")) - 1
        iteration = self.scf_iterations_per_path[molecule][index - self.sample_offsets[molecule]]
        sample = self._sample(self._read(molecule, np.array([iteration])), 0)
        return sample if self.transform is None else self.transform(sample)

    def __iter__(self) -> Iterator[OFData]:
        return (self[i] for i in range(len(self)))

    def _read(self, molecule: int, iterations: npt.NDArray[np.int64]) -> MoleculeLabels:
        labels = read_molecule(self.paths[molecule], self.energy_key, self.gradient_key, iterations)
        self._check_p_order(labels.path, labels.p_order)
        return labels

    def _sample(self, labels: MoleculeLabels, row: int) -> OFData:
        try:
            return OFData.construct_new(
                self.basis_info,
                labels.pos,
                labels.atomic_numbers,
                labels.coeffs[row],
                labels.ground_state_coeffs,
                labels.gradient[row],
                labels.energy[row],
                bool(labels.has_energy_label[row]),
                labels.dual_basis_integrals[row],
                labels.mol_id,
                int(labels.scf_iterations[row]),
            )
        except (BasisError, LabelFileError) as error:
            raise type(error)(f"{labels.path}: {error}") from None

    def molecule_batch(self, molecule: int) -> OFData:
        """Reads all samples of one molecule together: its file is opened once, its arrays are read whole.

        Args:
            molecule: Index of the label file.

        Returns:
            A batch with the fields of a collated PyG batch (`batch`, `ptr`, `coeffs_batch`, ...), transform applied.

        Raises:
            LabelFileError: If the labels are missing, malformed or not finite.
            BasisError: If an element is not part of the basis.
        """
        labels = self._read(molecule, self.scf_iterations_per_path[molecule])
        if self.transform is None or getattr(self.transform, "works_on_batches", False):
            batch = _as_batch(self._sample(labels, 0), labels)
            return batch if self.transform is None else self.transform(batch)
        samples = [self.transform(self._sample(labels, row)) for row in range(len(labels.scf_iterations))]
        return Batch.from_data_list(samples, follow_batch=["coeffs"])


def _check_limit(limit: Any) -> int | list[int] | None:
    """Returns plain Python numbers; refuses what would select something unforeseen, such as the letters of a word."""
    if limit is None:
        return None
    several = isinstance(limit, Sequence) and not isinstance(limit, str)
    values = list(limit) if several else [limit]
    if not all(isinstance(i, Integral) and not isinstance(i, bool) for i in values):
        raise ConfigError(
            f"limit_scf_iterations = {limit!r}: expected null, a whole number or a list of whole numbers (config: "
            "data.source.limit_scf_iterations)"
        )
    numbers = [int(i) for i in values]
    return numbers if several else numbers[0]


def _as_batch(first: OFData, labels: MoleculeLabels) -> OFData:
    """Builds what PyG would collate from the molecule's samples, without making the samples."""
    n, n_basis = labels.coeffs.shape
    n_atom = len(labels.atomic_numbers)
    batch = OFData(
        pos=first.pos.repeat(n, 1),
        atomic_numbers=first.atomic_numbers.repeat(n),
        atom_ind=first.atom_ind.repeat(n),
        basis_function_ind=first.basis_function_ind.repeat(n),
        coeffs=torch.from_numpy(labels.coeffs.reshape(-1)),
        ground_state_coeffs=first.ground_state_coeffs.repeat(n),
        gradient_label=torch.from_numpy(labels.gradient.reshape(-1)),
        dual_basis_integrals=torch.from_numpy(labels.dual_basis_integrals.reshape(-1)),
        energy_label=torch.from_numpy(labels.energy),
        has_energy_label=torch.from_numpy(labels.has_energy_label),
        scf_iteration=torch.from_numpy(labels.scf_iterations),
        coeffs_batch=torch.arange(n).repeat_interleave(n_basis),
        coeffs_ptr=torch.arange(n + 1) * n_basis,
        batch=torch.arange(n).repeat_interleave(n_atom),
        ptr=torch.arange(n + 1) * n_atom,
    )
    batch.mol_id = [labels.mol_id] * n
    return batch
