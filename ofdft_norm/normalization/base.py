"""Base of references and rescalings: float64 buffers, affine maps of fields, checks of fields, and `Reference`."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo, convert_basis
from ofdft_norm.data.sample import get_field
from ofdft_norm.errors import ConfigError, NormalizationError, StatisticsError
from ofdft_norm.statistics.store import DatasetStatistics

OutputDtype: TypeAlias = torch.dtype | Literal["float64", "input"]
Fields: TypeAlias = Data | Mapping[str, Any]


class Float64Module(nn.Module):
    """Base class of modules that hold references or scales.

    Energies of 1e5 hartree with wanted differences of 1e-5 need float64 in every training precision. `.to(dtype)`,
    `.half()`, `.float()` and Lightning's ``bf16-true`` therefore change only the device of these buffers.
    """

    output_dtype: OutputDtype

    def register_float64(self, name: str, value: Any) -> None:
        """Registers a buffer: a float64 copy of a number, list, array or tensor."""
        if value.is_complex() if isinstance(value, Tensor) else np.iscomplexobj(value):
            raise StatisticsError(f"{type(self).__name__}: {name} is complex, expected real numbers")
        # numbers and lists would lose digits in torch's default dtype
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
        self.register_buffer(name, tensor.to(torch.float64, copy=True))

    def set_output_dtype(self, output_dtype: OutputDtype) -> None:
        """Validates and stores the dtype of the module's results."""
        if output_dtype not in ("float64", "input") and not isinstance(output_dtype, torch.dtype):
            raise ConfigError(f"output_dtype = {output_dtype!r}: expected 'float64', 'input' or a torch.dtype")
        self.output_dtype = output_dtype

    def as_output(self, result: Tensor, argument: Tensor) -> Tensor:
        """Casts a float64 result to the output dtype; ``input`` is the dtype of the argument."""
        if isinstance(self.output_dtype, torch.dtype):
            return result.to(self.output_dtype)
        return result.to(argument.dtype) if self.output_dtype == "input" else result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(device=moved.device, non_blocking=True)

        return super()._apply(move_only, recurse)


class Affine(NamedTuple):
    """x' = (x - origin) / scale, and x = scale x' + origin, in float64; None: origin 0, scale 1."""

    origin: Tensor | None = None
    scale: Tensor | None = None

    def normalize(self, values: Tensor) -> Tensor:
        """Returns x' for x."""
        values = values.to(torch.float64)
        if self.origin is not None:
            values = values - self.origin.reshape(values.shape)
        return values if self.scale is None else values / self.scale

    def denormalize(self, values: Tensor) -> Tensor:
        """Returns x for x'."""
        values = self.denormalize_difference(values)
        return values if self.origin is None else values + self.origin.reshape(values.shape)

    def denormalize_difference(self, values: Tensor) -> Tensor:
        """Returns the difference of two x from the difference of their x': the origin cancels."""
        values = values.to(torch.float64)
        return values if self.scale is None else values * self.scale


class Reference(Float64Module):
    """A reference energy E_ref of each molecule, and its gradient with respect to the coefficients.

    The state dict of a reference alone loads into fairchem's or STRUCTURES25's class with ``strict=True``: entries that
    those classes lack (`own_entries`) are in its metadata.
    """

    depends_on_coeffs = False
    own_entries: tuple[str, ...] = ()

    def compute_energy(self, sample_or_batch: Data) -> Tensor:
        """Returns E_ref, (n_molecules,) float64 [hartree], of raw samples, without a check of the elements."""
        raise NotImplementedError

    def find_gradient(self, basis_function_ind: Tensor) -> Tensor | None:
        """Returns dE_ref/dp of each basis function, (n_basis,) float64 [hartree]; None if it is 0."""
        return None

    def check_elements(self, sample_or_batch: Data) -> None:
        """Raises NormalizationError for atoms of elements without a reference."""

    def check_numbers(self, numbers: Tensor, where: str) -> None:
        """Raises NormalizationError for atomic numbers without a reference; `where` names their origin."""

    def energy(self, sample_or_batch: Data) -> Tensor:
        """Returns `compute_energy` of raw samples after `check_elements`."""
        self.check_elements(sample_or_batch)
        return self.compute_energy(sample_or_batch)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not prefix and hasattr(destination, "_metadata"):
            entries = {name: destination.pop(name) for name in self.own_entries if name in destination}
            destination._metadata[""] |= entries

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *args: Any) -> None:
        entries = {prefix + name: metadata[name] for name in self.own_entries if name in metadata}
        state_dict.update(entries | state_dict)
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


def check_basis(statistics: DatasetStatistics, basis_info: BasisInfo | None, n_basis: int) -> BasisInfo | None:
    """Returns the basis; raises StatisticsError if the statistics, of n_basis functions, have another one."""
    if not isinstance(basis_info, BasisInfo | None):
        basis_info = convert_basis(basis_info)
    if basis_info is None or (n_basis == basis_info.n_basis and statistics.basis_info in (basis_info, None)):
        return basis_info
    raise StatisticsError(
        f"{statistics.path or 'the statistics'}: made for {statistics.basis_info or f'{n_basis} functions'}, but the "
        f"labels have {basis_info} of {basis_info.n_basis} functions (config: data.statistics.path, "
        "data.source.basis_info)"
    )


def require_field(name: str, batch: Fields) -> Tensor:
    """Returns a field of a sample or batch; raises NormalizationError if it is missing."""
    value = get_field(batch, name)
    if value is None:
        raise NormalizationError(f"{describe(batch)}: lacks the field {name!r}: give it to OFData.construct_new")
    return value


def get_function_index(name: str, values: Tensor, batch: Fields) -> Tensor:
    """Returns `basis_function_ind`; refuses values of another shape: (n_basis, 1) would broadcast to a matrix."""
    index = require_field("basis_function_ind", batch)
    check_shape(name, values, batch, tuple(index.shape))
    return index


def check_shape(name: str, values: Tensor, batch: Fields, *expected: tuple[int, ...]) -> None:
    """Raises NormalizationError for values of a wrong shape, or complex ones, which would lose their imaginary part."""
    if values.shape not in expected or values.is_complex():
        what = f"shape {tuple(values.shape)} and dtype {values.dtype}, expected {expected[0]} real numbers"
        raise NormalizationError(f"{describe(batch)}: {name!r} has {what}")


def describe(batch: Fields) -> str:
    """Returns the name of a sample, or the first names of a batch, for messages."""
    name = get_field(batch, "mol_id")
    if isinstance(name, list):
        return f"the batch of the molecules {name[:3]}{' ...' if len(name) > 3 else ''}"
    return "the sample" if name is None else f"molecule {name!r}"


def find_unknown(known: Tensor, numbers: Tensor) -> Tensor:
    """Returns (n,) bool: atomic numbers that are False in, or beyond, the table `known` by atomic number."""
    inside = numbers.clamp(0, len(known) - 1).long()
    return ~known[inside] | (inside != numbers)


def name_molecules(batch: Fields, atoms: Tensor) -> str:
    """Names the molecules of the atoms in a mask, for example ``"molecules ['ammonia', 'water']"``."""
    names, index = get_field(batch, "mol_id"), get_field(batch, "batch")
    if isinstance(names, list) and index is not None:
        return f"molecules {sorted({str(names[i]) for i in index[atoms].tolist()})}"
    return describe(batch)
