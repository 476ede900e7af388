"""Samples (a density of one geometry, with its labels), their batches, and the base class of data sets of batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from ofdft_norm.data.basis import ArrayOrTensor, BasisInfo, split_axis
from ofdft_norm.errors import BatchError, LabelFileError

DataT = TypeVar("DataT", bound=Data)
IntArray = npt.NDArray[np.int64]

# The density basis as it is. Other coordinates are named by the changes of basis that lead to them, joined by "+".
RAW = "raw"
# A change of basis is a matrix T for each molecule: vectors become T p, dual vectors T^-T g, so that g.p is the same.
VECTORS = ("coeffs", "ground_state_coeffs")
DUAL_VECTORS = ("gradient_label", "dual_basis_integrals")
PER_FUNCTION = (*VECTORS, *DUAL_VECTORS)
# Rows and columns of a stress tensor in ASE's order: xx, yy, zz, yz, xz, xy
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


class OFData(Data):
    """A density and its labels; a `torch_geometric.data.Data` that PyG's own `DataLoader` can join.

    Fields (units in brackets; absent ones are not set):
        pos: (n_atom, 3) positions [bohr].
        atomic_numbers: (n_atom,).
        coeffs: (n_basis,) density coefficients, atom after atom.
        ground_state_coeffs: (n_basis,) coefficients of the converged density of the geometry.
        gradient_label: (n_basis,) derivative of the energy with respect to `coeffs` [hartree].
        energy_label: (1,) [hartree].
        has_energy_label: (1,) bool; False: energy and gradient of this sample are not to be used.
        perturbed: (1,) bool; True: the density is off the SCF path, that of a perturbed Fock matrix. Samples of label
            files and packed sets have it.
        dual_basis_integrals: (n_basis,) integrals of the basis functions [electrons].
        atom_ind: (n_atom,) index of each atom's element in the basis.
        basis_function_ind: (n_basis,) index of each function in the concatenation over elements.
        mol_id: name of the geometry.
        scf_iteration: (1,) index of the density along its SCF path.
        basis_info: the density basis.
        coordinates: coordinates of vectors and dual vectors: ``raw`` is the density basis itself, other names are
            those of changes of basis (`ofdft_norm.transforms`), such as ``natural_symmetric``.
        normalized: (1,) bool, set by `Normalizer.normalize`.
        integrals_rescaled: (1,) bool, set by `Normalizer.normalize` if there is a rescaling.
        energy_reference: (1,) float64 [hartree], set by `Normalizer.normalize`.
        energy_reference_coeffs: (n_basis,) normalised coefficients of `energy_reference`, set by
            `Normalizer.normalize` if the reference depends on the coefficients.
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

        The arguments are fields of `OFData`, as tensors, arrays, lists or numbers. Floating-point arrays and tensors
        keep their dtype; Python numbers and integers become float64. `has_energy_label` is true or false (1 or 0); by
        default, it is whether `energy_label` is given.

        Raises:
            BasisError: If an element is not part of the basis.
            LabelFileError: If a field has the wrong length or is not real, or `has_energy_label` is not true or false.
        """
        where = f"molecule {mol_id!r}" if mol_id is not None else "sample"
        atom_ind = basis_info.atom_indices(atomic_numbers, where)
        basis_function_ind = basis_info.basis_function_ind(atom_ind)
        sample = cls(
            pos=_convert_to_real_tensor(pos, "pos", (len(atom_ind), 3), where),
            atomic_numbers=torch.as_tensor(basis_info.atomic_numbers[atom_ind]),
            atom_ind=torch.as_tensor(atom_ind),
            basis_function_ind=torch.as_tensor(basis_function_ind),
            basis_info=basis_info,
            coordinates=coordinates,
        )
        vectors = (coeffs, ground_state_coeffs, gradient_label, dual_basis_integrals)
        for field, value in zip(PER_FUNCTION, vectors, strict=True):
            if value is not None:
                sample[field] = _convert_to_real_tensor(value, field, (len(basis_function_ind),), where)
        if energy_label is not None:
            sample.energy_label = _convert_to_real_tensor(energy_label, "energy_label", (1,), where)
        flag = energy_label is not None if has_energy_label is None else has_energy_label
        labelled = _convert_to_real_tensor(flag, "has_energy_label", (1,), where)
        if labelled.item() not in (0, 1):
            raise LabelFileError(f"{where}: field 'has_energy_label' is {flag!r}, expected True or False, or 1 or 0")
        sample.has_energy_label = labelled.bool()
        if mol_id is not None:
            sample.mol_id = str(mol_id)
        if scf_iteration is not None:
            sample.scf_iteration = torch.tensor([int(scf_iteration)])
        return sample

    @property
    def n_basis_per_atom(self) -> Tensor:
        """(n_atom,) number of basis functions of each atom."""
        given = get_field(self, "basis_info")
        basis_info = given[0] if isinstance(given, list) else given
        if basis_info is None:
            raise BatchError("the sample lacks the field 'basis_info': build samples with OFData.construct_new")
        return torch.from_numpy(basis_info.basis_dim_per_atom)[self.atom_ind.cpu()]

    def split_field_by_atom(self, values: ArrayOrTensor, axis: int = 0) -> tuple[ArrayOrTensor, ...]:
        """Splits an array or tensor with one entry per basis function along an axis into one view for each atom."""
        return split_axis(values, self.n_basis_per_atom.tolist(), axis, "the sample")


# PyG caches batch classes by the name of the sample's class, and STRUCTURES25's class is called OFData, too.
OFData.__name__ = "OFDFTNormData"


def _convert_to_real_tensor(value: Any, field: str, shape: tuple[int, ...], where: str) -> Tensor:
    """Returns a real tensor; Python numbers do not pass through torch's default dtype (float32)."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        is_number = array.dtype.kind in "biufc"  # other values become an empty tensor, which is refused below
        value = torch.from_numpy(np.require(array, requirements="W")) if is_number else torch.zeros(0)
    if value.is_complex() or not (value.shape == shape or value.numel() == 1 == math.prod(shape)):
        what = f"{where}: field {field!r} has dtype {value.dtype} and shape {tuple(value.shape)}"
        raise LabelFileError(f"{what}, expected real numbers of shape {shape} (config: data.source.basis_info)")
    return (value if value.is_floating_point() else value.to(torch.float64)).reshape(shape)


def as_float64(values: Tensor, field: str) -> Tensor:
    """Returns values in float64; raises BatchError for complex ones, which would lose their imaginary part."""
    if values.is_complex():
        raise BatchError(f"field {field!r} has dtype {values.dtype}, expected real numbers (config: data.source)")
    return values.to(torch.float64)


def get_field(sample: Any, name: str) -> Any:
    """Returns a field of a sample of any class (a mapping's item or an attribute), or None."""
    if isinstance(sample, Data | Mapping):  # PyG's `get` takes half the time of an attribute that may be missing
        return sample.get(name, None)
    return getattr(sample, name, None)


def set_field(sample: Any, name: str, value: Any) -> None:
    """Sets a field of a sample; subclasses of `Data` may log or refuse names that are set as attributes or items."""
    (sample._store if isinstance(sample, Data) else sample)[name] = value


def is_sample(value: Any) -> bool:
    """Returns whether a value is a sample or batch: PyG's `Data`, or an object with `keys`, such as fairchem's."""
    return isinstance(value, Data) or (hasattr(value, "keys") and not isinstance(value, Mapping))


def list_fields(sample: Any) -> list[str]:
    """Returns the sorted names of the fields of a sample of any class; `keys` may be a method or a list (MACE)."""
    keys = sample.keys if hasattr(sample, "keys") else vars(sample)
    return sorted(map(str, keys() if callable(keys) else keys))


def convert_to_data(sample: Any) -> Data:
    """Returns a sample of any class as PyG's `Data`, which PyG can join."""
    if isinstance(sample, Data):
        return sample
    fields = {name: get_field(sample, name) for name in list_fields(sample) if name not in ("batch", "ptr")}
    return Data(**{name: unwrap_name(value) for name, value in fields.items() if value is not None})


def unwrap_name(value: Any) -> Any:
    """Returns the text in a list of one text, as fairchem's samples hold names; any other value as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def find_molecule_index(batch: Data, field: str = "coeffs") -> Tensor:
    """Returns, for every entry of a field ("pos": for every atom), the index of its sample within the batch."""
    name = "batch" if field == "pos" else f"{field}_batch"
    index = get_field(batch, name)
    if index is not None:
        return index
    if isinstance(batch, Batch) or get_field(batch, "ptr") is not None or get_field(batch, "batch") is not None:
        way = "give the samples 'pos'" if field == "pos" else f"give PyG's DataLoader follow_batch=['{field}']"
        raise BatchError(f"the batch has no '{name}': {way}")
    for known in ("atomic_numbers", "z", "pos") if field == "pos" else (field,):
        if (values := get_field(batch, known)) is not None:
            return torch.zeros(values.shape[0], dtype=torch.int64, device=values.device)
    raise BatchError(f"the sample lacks the field {field!r}: the number of its entries is unknown")


def count_molecules(batch: Data) -> int:
    """Returns the number of samples of a batch, each SCF iteration a molecule of its own; 1 for a single sample."""
    for name in ("ptr", "coeffs_ptr"):
        if (boundaries := get_field(batch, name)) is not None:
            return len(boundaries) - 1
    if isinstance(batch, Batch):
        return int(batch.num_graphs)
    for name in ("batch", "coeffs_batch"):
        if (index := get_field(batch, name)) is not None:
            return int(index.max()) + 1 if len(index) else 0
    return 1


def find_periodic_directions(batch: Data) -> Tensor:
    """Returns (n_molecules, 3) bool: the periodic directions; without `pbc`, the directions with a cell vector."""
    cell, pbc = get_field(batch, "cell"), get_field(batch, "pbc")
    if cell is None:
        return torch.zeros(count_molecules(batch), 3, dtype=torch.bool)
    return torch.as_tensor(cell).reshape(-1, 3, 3).any(2) if pbc is None else torch.as_tensor(pbc).reshape(-1, 3).bool()


def name_sample(batch: Data, sample: int) -> str | None:
    """Returns the name (`mol_id`) of one sample of a batch, if it has one."""
    names = get_field(batch, "mol_id")
    if names is None or isinstance(names, str):
        return names
    name = names[sample]
    return str(name.item() if isinstance(name, Tensor) else name)


def register_fields(batch: DataT, fields: Mapping[str, str | None]) -> DataT:
    """Makes ``batch[i]`` return added fields: divided like a given field, or (None) with one entry per sample."""
    if isinstance(batch, Batch) and hasattr(batch, "_slice_dict"):
        one_each = torch.arange(count_molecules(batch) + 1)
        slices = {name: one_each if like is None else batch._slice_dict[like] for name, like in fields.items()}
        # new dictionaries: shallow copies of a batch share them
        batch._slice_dict = {**batch._slice_dict, **slices}
        batch._inc_dict = {**batch._inc_dict, **dict.fromkeys(fields)}
    return batch


_EMPTY = Batch(_base_cls=OFData)  # making one takes PyG longer than copying it
# glibc keeps freed memory of up to twice the largest block that was freed before (at most 32 MiB), and returns more to
# the system. New memory comes page by page: without this line, packed batches take three times as long.
torch.empty(31 * 2**20, dtype=torch.uint8)


def make_batch(
    per_atom: Mapping[str, Tensor],
    per_function: Mapping[str, Tensor],
    per_sample: Mapping[str, Any],
    n_atoms: IntArray,
    n_functions: IntArray,
) -> Any:
    """Returns the batch of joined fields, equal to that of PyG's ``Batch.from_data_list(samples, ["coeffs"])``."""
    n = len(n_atoms)
    added = {}
    for index, ends, counts in (("coeffs_batch", "coeffs_ptr", n_functions), ("batch", "ptr", n_atoms)):
        added[index] = torch.from_numpy(np.repeat(np.arange(n), counts))
        added[ends] = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
    atoms, functions = added["ptr"], added["coeffs_ptr"]
    batch = copy(_EMPTY)
    batch._store._mapping.update({**per_atom, **per_function, **per_sample, **added})
    # for ``batch[i]``, as `from_data_list` stores it
    batch._num_graphs = n
    by_sample = dict.fromkeys(per_sample, torch.arange(n + 1))
    batch._slice_dict = dict.fromkeys(per_atom, atoms) | dict.fromkeys(per_function, functions) | by_sample
    batch._inc_dict = dict.fromkeys(batch._slice_dict)
    return batch


def join_samples(samples: Sequence[Any], follow_batch: Sequence[str] = ("coeffs",)) -> Any:
    """Returns the PyG batch of samples of any class, which must have the same fields."""
    data = list(map(convert_to_data, samples))
    fields = set(data[0].keys())
    differing = sorted({name for sample in data[1:] for name in fields ^ set(sample.keys())})
    if differing:
        raise BatchError(f"only some samples have the fields {differing} (config: data.source, data.pre_transforms)")
    return Batch.from_data_list(data, follow_batch=list(follow_batch))


class JoinedDataset(Dataset[Any]):
    """Base of data sets that read several samples at once: `__getitems__` returns them joined and transformed."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, samples: Sequence[int]) -> Any:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        """Reads one sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a data set of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def collate_joined(batch: Any) -> Any:
    """Returns a batch that its data set has joined: the `collate_fn` of loaders over a `JoinedDataset`."""
    return batch


def read_items(dataset: Any, indices: Sequence[int]) -> Any:
    """Returns a list or a batch of some samples of any map-style data set."""
    several = getattr(dataset, "__getitems__", None)
    return [dataset[i] for i in indices] if several is None else several(list(indices))


def read_batch(dataset: Any, samples: Sequence[int]) -> Any:
    """Returns the batch of some samples of any map-style data set."""
    found = read_items(dataset, samples)
    return found if isinstance(found, Batch) else join_samples(found)
