"""One sample: a density of one geometry, with its labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import BatchError, LabelFileError


class OFData(Data):
    """A density and its labels; a `torch_geometric.data.Data` that PyG's own `DataLoader` batches.

    Fields (units in brackets; absent ones are simply not set):
        pos: (n_atom, 3) positions [bohr].
        atomic_numbers: (n_atom,).
        coeffs: (n_basis,) density coefficients, atom after atom.
        ground_state_coeffs: (n_basis,) coefficients of the converged density of the geometry.
        gradient_label: (n_basis,) derivative of the energy with respect to `coeffs` [hartree].
        energy_label: (1,) [hartree].
        has_energy_label: (1,) bool; False: energy and gradient of this sample are not to be used.
        dual_basis_integrals: (n_basis,) integrals of the basis functions [electrons].
        atom_ind: (n_atom,) index of each atom's element in the basis.
        basis_function_ind: (n_basis,) index of each function in the concatenation over elements.
        mol_id: name of the geometry; scf_iteration: (1,) index of the density along its SCF path.
        normalized: (1,) bool, set by `Normalizer.normalize`.
        energy_reference: (1,) float64 [hartree], set by `Normalizer.normalize`.
    """

    @classmethod
    def construct_new(
        cls,
        basis_info: BasisInfo,
        pos: Any,
        atomic_numbers: Any,
        coeffs: Any,
        ground_state_coeffs: Any | None = None,
        gradient_label: Any | None = None,
        energy_label: Any | None = None,
        has_energy_label: Any | None = None,
        dual_basis_integrals: Any | None = None,
        mol_id: str | None = None,
        scf_iteration: int | None = None,
    ) -> OFData:
        """Builds a sample and checks that every field fits the basis.

        Args:
            basis_info: The density basis.
            pos: (n_atom, 3) [bohr].
            atomic_numbers: (n_atom,).
            coeffs: (n_basis,).
            ground_state_coeffs: (n_basis,) or None.
            gradient_label: (n_basis,) [hartree] or None.
            energy_label: A number [hartree] or None.
            has_energy_label: Whether the labels may be used; by default, whether `energy_label` is given.
            dual_basis_integrals: (n_basis,) [electrons] or None.
            mol_id: Name of the geometry.
            scf_iteration: Index of the density along its SCF path.

        Returns:
            The sample; floating-point fields keep their dtype.

        Raises:
            BasisError: If an element is not part of the basis.
            LabelFileError: If a field has the wrong length.
        """
        where = f"molecule {mol_id!r}" if mol_id is not None else "sample"
        numbers = np.asarray(atomic_numbers, dtype=np.int64)
        atom_ind = basis_info.atom_indices(numbers, where)
        basis_function_ind = basis_info.basis_function_ind(atom_ind)
        n_basis = len(basis_function_ind)
        positions = torch.as_tensor(pos)
        if positions.shape != (len(numbers), 3):
            raise LabelFileError(
                f"{where}: field 'pos' has shape {tuple(positions.shape)}, expected {(len(numbers), 3)}"
            )

        sample = cls(
            pos=positions,
            atomic_numbers=torch.as_tensor(numbers),
            atom_ind=torch.as_tensor(atom_ind),
            basis_function_ind=torch.as_tensor(basis_function_ind),
        )
        vectors = {
            "coeffs": coeffs,
            "ground_state_coeffs": ground_state_coeffs,
            "gradient_label": gradient_label,
            "dual_basis_integrals": dual_basis_integrals,
        }
        for field, value in vectors.items():
            if value is not None:
                sample[field] = _vector(value, field, n_basis, where)
        if energy_label is not None:
            sample.energy_label = torch.as_tensor(energy_label).reshape(1)
        labelled = energy_label is not None if has_energy_label is None else bool(has_energy_label)
        sample.has_energy_label = torch.tensor([labelled])
        if mol_id is not None:
            sample.mol_id = str(mol_id)
        if scf_iteration is not None:
            sample.scf_iteration = torch.tensor([int(scf_iteration)])
        return sample


def _vector(value: Any, field: str, n_basis: int, where: str) -> Tensor:
    vector = torch.as_tensor(value)
    if vector.shape != (n_basis,):
        raise LabelFileError(
            f"{where}: field {field!r} has shape {tuple(vector.shape)}, but the basis gives this molecule {n_basis} "
            "functions; the labels were made with another basis than data.source.basis_info"
        )
    return vector


def molecule_index(batch: Data, field: str = "coeffs") -> Tensor:
    """Returns, for every entry of `field`, the index of the molecule it belongs to within the batch.

    Args:
        batch: A sample (all indices are 0) or a batch with ``<field>_batch``.
        field: A per-basis-function field, or ``"pos"`` for atoms.

    Returns:
        (n_entries,) int64 indices.

    Raises:
        BatchError: If a batch was collated without ``follow_batch=["coeffs"]``.
    """
    if field == "pos":
        index = batch.get("batch")
        length = batch["atomic_numbers"].shape[0] if "atomic_numbers" in batch else batch.num_nodes
    else:
        index = batch.get(f"{field}_batch")
        length = batch[field].shape[0]
    if index is not None:
        return index
    if batch.get("ptr") is not None or batch.get("batch") is not None:
        raise BatchError(
            f"the batch has no '{field}_batch': give PyG's DataLoader follow_batch=['coeffs'] "
            "(OFDFTDataModule's loaders do)"
        )
    reference = batch["pos"] if field == "pos" and "pos" in batch else batch[field]
    return torch.zeros(length, dtype=torch.int64, device=reference.device)


def n_molecules(batch: Data) -> int:
    """Returns the number of molecules of a batch; 1 for a single sample."""
    ptr = batch.get("ptr")
    if ptr is not None:
        return int(ptr.numel()) - 1
    index = batch.get("batch")
    return 1 if index is None else int(index.max()) + 1


_MOLECULE_INDICES = ("batch", "coeffs_batch")


def join_batches(batches: list[OFData]) -> OFData:
    """Joins batches into one, as PyG would collate all their samples.

    Args:
        batches: Batches with the same fields, each with `batch`, `ptr` and `coeffs_batch`.

    Returns:
        One batch; the only one, if there is only one.
    """
    if len(batches) == 1:
        return batches[0]
    joined = OFData()
    offsets = [0]
    for batch in batches:
        offsets.append(offsets[-1] + n_molecules(batch))
    for field in batches[0].keys():
        values = [batch[field] for batch in batches]
        if field in _MOLECULE_INDICES:
            values = [value + offset for value, offset in zip(values, offsets[:-1], strict=True)]
        if field.endswith("ptr"):
            ends = [0]
            for value in values:
                ends.append(ends[-1] + int(value[-1]))
            values = [values[0], *(v[1:] + e for v, e in zip(values[1:], ends[1:-1], strict=True))]
        if isinstance(values[0], list):
            joined[field] = [item for value in values for item in value]
        else:
            joined[field] = torch.cat(values)
    return joined
