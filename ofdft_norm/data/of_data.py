"""One sample: a density of one geometry, with its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ofdft_norm.data.basis_info import ArrayOrTensor, BasisInfo, split_axis
from ofdft_norm.data.coordinates import RAW
from ofdft_norm.data.label_files import MoleculeLabels, read_molecule, read_n_scf_iterations
from ofdft_norm.data.p_order import POrderCheck
from ofdft_norm.errors import BasisError, BatchError, LabelFileError

DataT = TypeVar("DataT", bound=Data)


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
        basis_info: the density basis.
        coordinates: what vectors and dual vectors are given in: ``raw`` is the density basis as it is, anything else
            the names of changes of basis (`ofdft_norm.transforms`), such as ``natural_symmetric``.
        normalized: (1,) bool, set by `Normalizer.normalize`.
        energy_reference: (1,) float64 [hartree], set by `Normalizer.normalize`.
        energy_reference_coeffs: (n_basis,) normalised coefficients that `energy_reference` belongs to, set by
            `Normalizer.normalize` where the reference depends on the coefficients.
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
        coordinates: str = RAW,
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
            has_energy_label: Whether the labels may be used: True or False (1 or 0), bare or the one value of a list,
                an array or a tensor; by default, whether `energy_label` is given.
            dual_basis_integrals: (n_basis,) [electrons] or None.
            mol_id: Name of the geometry.
            scf_iteration: Index of the density along its SCF path.
            coordinates: What coefficients, gradients and integrals are given in; ``raw``: the density basis as it is.

        Returns:
            The sample; floating-point arrays and tensors keep their dtype, Python numbers and integers become float64.

        Raises:
            BasisError: If an element is not part of the basis.
            LabelFileError: If a field has the wrong length, or `has_energy_label` is neither true nor false.
        """
        where = f"molecule {mol_id!r}" if mol_id is not None else "sample"
        atom_ind = basis_info.atom_indices(atomic_numbers, where)
        basis_function_ind = basis_info.basis_function_ind(atom_ind)
        n_basis = len(basis_function_ind)
        positions = _as_float_tensor(pos)
        if positions.shape != (len(atom_ind), 3):
            raise LabelFileError(
                f"{where}: field 'pos' has shape {tuple(positions.shape)}, expected {(len(atom_ind), 3)}"
            )

        sample = cls(
            pos=positions,
            atomic_numbers=torch.as_tensor(basis_info.atomic_numbers[atom_ind]),
            atom_ind=torch.as_tensor(atom_ind),
            basis_function_ind=torch.as_tensor(basis_function_ind),
            basis_info=basis_info,
            coordinates=coordinates,
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
            energy = _as_float_tensor(energy_label)
            if energy.numel() != 1:
                raise LabelFileError(
                    f"{where}: field 'energy_label' has shape {tuple(energy.shape)}, expected one number [hartree]"
                )
            sample.energy_label = energy.reshape(1)
        labelled = energy_label is not None if has_energy_label is None else _flag(has_energy_label, where)
        sample.has_energy_label = torch.tensor([labelled])
        if mol_id is not None:
            sample.mol_id = str(mol_id)
        if scf_iteration is not None:
            sample.scf_iteration = torch.tensor([int(scf_iteration)])
        return sample

    @classmethod
    def from_labels(cls, labels: MoleculeLabels, basis_info: BasisInfo) -> OFData:
        """Returns the sample of the first row of a molecule's labels.

        Args:
            labels: Labels of a molecule, one row for each SCF iteration.
            basis_info: The density basis.

        Raises:
            BasisError: If an element is not part of the basis.
            LabelFileError: If a field has the wrong length.
        """
        try:
            return cls.construct_new(
                basis_info,
                labels.pos,
                labels.atomic_numbers,
                labels.coeffs[0],
                labels.ground_state_coeffs,
                labels.gradient[0],
                labels.energy[0],
                bool(labels.has_energy_label[0]),
                labels.dual_basis_integrals[0],
                labels.mol_id,
                int(labels.scf_iterations[0]),
                labels.coordinates,
            )
        except (BasisError, LabelFileError) as error:
            raise type(error)(f"{labels.path}: {error}") from None

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        scf_iteration: int,
        basis_info: BasisInfo,
        energy_key: str = "e_kin",
        gradient_key: str = "grad_kin",
    ) -> OFData:
        """Reads one sample of a label file.

        Args:
            path: A ``.zarr`` directory or ``.zarr.zip`` file.
            scf_iteration: The SCF iteration; a negative one counts from the last.
            basis_info: The density basis of the labels.
            energy_key: Which energy below ``of_labels/energies`` becomes `energy_label`.
            gradient_key: Which gradient below ``of_labels/spatial`` becomes `gradient_label`.

        Returns:
            The sample, in the file's float64.

        Raises:
            LabelFileError: If the file is missing or malformed, or has no such iteration.
            BasisError: If an element is not part of the basis.
        """
        row = scf_iteration if scf_iteration >= 0 else read_n_scf_iterations(path) + scf_iteration
        labels = read_molecule(path, energy_key, gradient_key, [row])
        POrderCheck(basis_info.p_order)(labels.path, labels.p_order)
        return cls.from_labels(labels, basis_info)

    @property
    def n_basis_per_atom(self) -> Tensor:
        """(n_atom,) number of basis functions of each atom.

        Raises:
            BatchError: If the sample was built without a basis.
        """
        given = get_field(self, "basis_info")
        basis_info = given[0] if isinstance(given, list) else given
        if basis_info is None:
            raise BatchError("the sample lacks the field 'basis_info': build samples with OFData.construct_new")
        return torch.from_numpy(basis_info.basis_dim_per_atom)[self.atom_ind.cpu()]

    def split_field_by_atom(self, values: ArrayOrTensor, axis: int = 0) -> tuple[ArrayOrTensor, ...]:
        """Splits a field, or anything of its length, by atom.

        Args:
            values: An array or tensor with one entry for each basis function along `axis`.
            axis: The axis.

        Returns:
            One array or tensor (a view) for each atom, `n_basis_per_atom` entries long.

        Raises:
            BasisError: If the length is another.
            BatchError: If the sample was built without a basis.
        """
        return split_axis(values, self.n_basis_per_atom.tolist(), axis, "the sample")


def _as_float_tensor(value: Any) -> Tensor:
    """Converts to a floating-point tensor; Python numbers never pass through torch's default dtype (float32)."""
    if isinstance(value, Tensor):
        tensor = value
    else:
        array = np.asarray(value)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)


def _flag(value: Any, where: str) -> bool:
    """Returns one true or false value; never the truth of a list or an array, which is its having entries."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise LabelFileError(
            f"{where}: field 'has_energy_label' is {value!r}, expected one value, True or False (1 or 0)"
        )
    return bool(array.item())


def _vector(value: Any, field: str, n_basis: int, where: str) -> Tensor:
    vector = _as_float_tensor(value)
    if vector.shape != (n_basis,):
        raise LabelFileError(
            f"{where}: field {field!r} has shape {tuple(vector.shape)}, but the basis gives this molecule {n_basis} "
            "functions; the labels were made with another basis than data.source.basis_info"
        )
    return vector


def get_field(sample: Any, name: str) -> Any:
    """Returns a field of a sample of any class, a mapping's item or an object's attribute; None: it has none.

    Args:
        sample: PyG's `Data`, a mapping, or an object with attributes.
        name: Name of the field.
    """
    if isinstance(sample, dict | Data):  # half the price of asking for an attribute that may be missing
        return sample.get(name, None)
    return sample.get(name) if isinstance(sample, Mapping) else getattr(sample, name, None)


def samples_at(dataset: Any, indices: Sequence[int]) -> Sequence[Any]:
    """Returns some samples of a map-style data set, read at once where it can do that (`__getitems__`).

    Args:
        dataset: Data set with an index.
        indices: Which samples.
    """
    several = getattr(dataset, "__getitems__", None)
    return [dataset[i] for i in indices] if several is None else several(list(indices))


def is_sample(value: Any) -> bool:
    """Whether it is a sample or batch: PyG's `Data`, or of another class with `keys()`, as fairchem's `AtomicData`.

    Args:
        value: Anything.
    """
    return isinstance(value, Data) or (hasattr(value, "keys") and not isinstance(value, Mapping))


def field_names(sample: Any) -> list[str]:
    """Returns the names of the fields of a sample of any class, sorted.

    Args:
        sample: A sample as `is_sample` has it.
    """
    keys = sample.keys() if hasattr(sample, "keys") else vars(sample)
    return sorted(map(str, keys() if callable(keys) else keys))


def as_data(sample: Any) -> Data:
    """Returns a sample of another class as PyG's `Data`, which PyG's collation takes; for names see `only_name`.

    Args:
        sample: A sample as `is_sample` has it.
    """
    if isinstance(sample, Data):
        return sample
    fields = {name: get_field(sample, name) for name in field_names(sample) if name not in ("batch", "ptr")}
    return Data(**{name: only_name(value) for name, value in fields.items() if value is not None})


def only_name(value: Any) -> Any:
    """Returns the text of a list of one text, as fairchem's samples hold names; anything else as it is.

    Args:
        value: A field's value.
    """
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def molecule_index(batch: Data, field: str = "coeffs") -> Tensor:
    """Returns, for every entry of `field`, the index of the molecule it belongs to within the batch.

    Args:
        batch: A sample (all indices are 0) or a batch with ``<field>_batch``.
        field: A per-basis-function field, or ``"pos"`` for atoms.

    Returns:
        (n_entries,) int64 indices.

    Raises:
        BatchError: If a batch was collated without ``follow_batch=["coeffs"]``, or the sample lacks the field.
    """
    name = "batch" if field == "pos" else f"{field}_batch"
    index = get_field(batch, name)
    if index is not None:
        return index
    if isinstance(batch, Batch) or get_field(batch, "ptr") is not None or get_field(batch, "batch") is not None:
        way = (
            "give the samples 'pos', from which PyG counts atoms"
            if field == "pos"
            else (f"give PyG's DataLoader follow_batch=['{field}'] (OFDFTDataModule's loaders do)")
        )
        raise BatchError(f"the batch has no '{name}': {way}")
    names = ("atomic_numbers", "z", "pos") if field == "pos" else (field,)
    for values in (get_field(batch, name) for name in names):
        if values is not None:
            return torch.zeros(values.shape[0], dtype=torch.int64, device=values.device)
    raise BatchError(f"the sample has none of the fields {list(names)}, which say what belongs to it")


def n_molecules(batch: Data) -> int:
    """Returns the number of molecules of a batch; 1 for a single sample.

    This is the one definition, whatever fields the samples have: PyG's boundaries (``ptr``) or, for samples without
    positions, which have none, the number of samples that PyG joined or the boundaries of the coefficients.

    Args:
        batch: A batch or a single sample.
    """
    for name in ("ptr", "coeffs_ptr"):
        boundaries = get_field(batch, name)
        if boundaries is not None:
            return int(boundaries.numel()) - 1
    joined = getattr(batch, "_num_graphs", None)  # what PyG's Batch.num_graphs says
    if joined is not None:
        return int(joined)
    for name in ("batch", "coeffs_batch"):
        index = get_field(batch, name)
        if index is not None:
            return int(index.max()) + 1 if index.numel() else 0
    return 1


def sample_name(batch: Data, sample: int) -> str | None:
    """Returns the name (`mol_id`) of one sample of a batch, where it has one.

    Args:
        batch: A batch or a single sample.
        sample: Which sample of the batch, from 0.
    """
    names = get_field(batch, "mol_id")
    if names is None or isinstance(names, str):
        return names
    name = names[sample]
    return str(name.item() if isinstance(name, Tensor) else name)


def scf_iteration(batch: Data, sample: int) -> int | None:
    """Returns the SCF iteration of one sample of a batch, where it has one.

    Args:
        batch: A batch or a single sample.
        sample: Which sample of the batch, from 0.
    """
    iterations = get_field(batch, "scf_iteration")
    return None if iterations is None else int(iterations.reshape(-1)[sample])


def with_added_fields(batch: DataT, fields: Mapping[str, str | None]) -> DataT:
    """Lets PyG divide fields that were added after collation into samples again.

    Without it ``batch[i]`` and ``batch.to_data_list()`` leave them out: a normalised batch's samples would not know
    that they are normalised.

    Args:
        batch: A batch, or a sample, which stays as it is.
        fields: For each field, the one that has as many entries for each sample; None: one entry.

    Returns:
        The batch itself.
    """
    if isinstance(batch, Batch) and hasattr(batch, "_slice_dict"):
        one_each = torch.arange(n_molecules(batch) + 1)
        slices = {name: one_each if like is None else batch._slice_dict[like] for name, like in fields.items()}
        # new dictionaries: shallow copies of a batch share them
        batch._slice_dict = {**batch._slice_dict, **slices}
        batch._inc_dict = {**batch._inc_dict, **dict.fromkeys(fields)}
    return batch
