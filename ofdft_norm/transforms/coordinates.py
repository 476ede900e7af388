"""Changes of the density basis: vectors become T p, dual vectors T^-T g, with one matrix T for each molecule.

The field `coordinates` of a sample names the changes that were applied to it, such as
``"local_frames+natural_symmetric"``; ``"raw"``, or no such field, means the density basis itself. T is never multiplied
out: its factors (`Step`) are applied one after the other to all densities of a molecule at once.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from ofdft_norm.data.basis import BasisInfo, name_dimension
from ofdft_norm.data.sample import (
    DUAL_VECTORS,
    PER_FUNCTION,
    RAW,
    DataT,
    IntArray,
    as_float64,
    count_molecules,
    find_molecule_index,
    name_sample,
    register_fields,
)
from ofdft_norm.errors import BasisError, BatchError, ConfigError
from ofdft_norm.settings import check_arguments

Array = npt.NDArray[np.float64]

_CACHE_BYTES = 128 * 2**20  # limit of `_memory`: steps of a few large molecules, or of a batch of small ones
_known: dict[str, BasisTransform] = {}  # by name, see `register`
_ACCURACY = 1e-5  # of integrals, relative to the largest one: labels have at least single precision


@dataclass(frozen=True)
class Molecule:
    """Geometry and basis of one molecule: everything that a change of basis depends on."""

    name: str
    pos: Array  # (n_atom, 3) [bohr]
    atomic_numbers: IntArray
    basis_info: BasisInfo
    functions: IntArray  # (n_basis,) index of each function in the concatenation over elements
    overlap: npt.NDArray[Any] | None  # (n_basis, n_basis), the sample's field `overlap_matrix`

    @cached_property
    def key(self) -> str:
        """Digest of geometry, basis and overlap."""
        digest = hashlib.sha1(self.basis_info.fingerprint().encode(), usedforsecurity=False)
        for part in (self.pos, self.atomic_numbers, self.functions, self.overlap):
            digest.update(b"" if part is None else np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def list_molecules(data: Data) -> list[tuple[Molecule, slice]]:
    """Returns each molecule of a sample or batch with the range of its functions; adjacent densities share a range."""
    missing = [n for n in ("pos", "atomic_numbers", "basis_function_ind", "basis_info") if data.get(n) is None]
    if missing:
        raise BatchError(
            f"molecule {name_sample(data, 0)!r}: lacks the fields {missing}, which a change of basis needs (config: "
            "data.pre_transforms)"
        )
    exact = "pos" if data.get("pos_float64") is None else "pos_float64"
    pos, numbers, functions = (data[n].detach().cpu().numpy() for n in (exact, "atomic_numbers", "basis_function_ind"))
    # a sample without coefficients has a change of basis, too
    ranges = [slice(0, len(functions))] if count_molecules(data) == 1 else _find_ranges(data, "coeffs")
    overlaps = _split_overlaps(data, [where.stop - where.start for where in ranges])
    found: list[tuple[Molecule, slice]] = []
    for i, (atoms, where) in enumerate(zip(_find_ranges(data, "pos"), ranges, strict=True)):
        basis_info = data["basis_info"][i] if isinstance(data["basis_info"], list) else data["basis_info"]
        atoms_of = pos[atoms].astype(np.float64), numbers[atoms]
        molecule = Molecule(name_sample(data, i) or f"sample {i}", *atoms_of, basis_info, functions[where], overlaps[i])
        if found and found[-1][0].key == molecule.key:
            found[-1] = (found[-1][0], slice(found[-1][1].start, where.stop))
        else:
            found.append((molecule, where))
    return found


def _find_ranges(data: Data, field: str) -> list[slice]:
    ends = torch.bincount(find_molecule_index(data, field).cpu(), minlength=count_molecules(data)).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _split_overlaps(data: Data, sizes: list[int]) -> list[npt.NDArray[Any] | None]:
    """Returns each molecule's own overlap, from matrices that PyG joined in any shape."""
    if data.get("overlap_matrix") is None:
        return [None] * len(sizes)
    flat, ends = data["overlap_matrix"].detach().cpu().numpy().reshape(-1), np.cumsum(np.square(sizes))
    if len(flat) != ends[-1]:
        raise BatchError(
            f"field 'overlap_matrix' has {len(flat)} entries, expected {ends[-1]}: (n_basis, n_basis) for molecules of "
            f"{sizes} functions"
        )
    return [matrix.reshape(n, n) for n, matrix in zip(sizes, np.split(flat, ends[:-1]), strict=True)]


@dataclass(frozen=True)
class Step(ABC):
    """One factor of T, made of tensors."""

    tensors: tuple[Tensor, ...]

    @abstractmethod
    def apply(self, rows: Tensor, dual: Tensor, inverse: bool) -> Tensor:
        """Transforms each row of (n, n_basis), float64, or undoes it; `dual`, (n,) bool, marks the dual vectors."""

    @cached_property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


Steps = tuple[Step, ...]


def apply_steps(steps: Steps, rows: Tensor, dual: Tensor, inverse: bool = False) -> Tensor:
    """Transforms each row by T = T_n ... T_1; see `Step.apply`."""
    for step in reversed(steps) if inverse else steps:
        rows = step.apply(rows, dual, inverse)
    return rows


class _Change(BaseTransform):
    """A change of basis as a PyG transform."""

    changes_basis = True
    works_on_batches = True
    reads = (("gradient_label", "dual_basis_integrals"),)  # integrals show whether labels have other axes
    changes: Changes

    def _find_earlier(self, found: Changes) -> Changes:
        """Returns the changes of a sample before this one, which the sample may have already."""
        return ()

    def matrix(self, sample: Data) -> tuple[Tensor, Tensor]:
        """Returns T and T^-1 of this change.

        Args:
            sample: One molecule; only its geometry and basis are used.

        Returns:
            Two (n_basis, n_basis) float64 matrices.

        Raises:
            BatchError: If the sample is a batch of several molecules, or lacks a field.
        """
        molecules, before = list_molecules(sample), self._find_earlier(find_transforms(read_coordinates(sample)))
        if len(molecules) != 1:
            raise BatchError(f"matrix() needs one molecule, and the batch has {len(molecules)}: give it samples")
        molecule, after = molecules[0][0], _check_order((*before, *self.changes))
        unit = torch.eye(len(molecule.functions), dtype=torch.float64)
        pairs, dual = ((before, after), (after, before)), torch.zeros(len(unit), dtype=torch.bool)
        matrix, inverse = (_transform_rows(old, new, molecule, unit, dual).T for old, new in pairs)
        return matrix.contiguous(), inverse.contiguous()

    def inverse(self, data: DataT) -> DataT:
        """Returns a copy in the coordinates before this change: undoes it.

        Args:
            data: A sample or batch.

        Raises:
            ConfigError: If the data are in other coordinates than those after this change.
        """
        before = self._find_earlier(find_transforms(read_coordinates(data)))
        after = (*before, *self.changes)
        if read_coordinates(data) != name_coordinates(after):
            raise ConfigError(f"{self!r} cannot be undone: the sample is in the coordinates {read_coordinates(data)!r}")
        return _move_fields(data.__copy__(), after, before)


class BasisTransform(_Change):
    """One change of basis, applied after the earlier changes of a sample; subclasses define its name and its step."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the change among a sample's `coordinates`."""

    @abstractmethod
    def step(self, molecule: Molecule, before: Steps) -> Step:
        """Returns the step of a molecule, which follows the steps `before`."""

    def check(self, step: Step, molecule: Molecule) -> None:
        """Refuses a step that does not fit the settings: another instance of the same name may have made it."""

    @property
    def changes(self) -> Changes:  # type: ignore[override]
        """This change alone."""
        return (self,)

    def _find_earlier(self, found: Changes) -> Changes:
        return tuple(change for change in found if change.name != self.name)

    def forward(self, data: DataT) -> DataT:
        """Returns the sample or batch (already a copy of the caller's) in changed coordinates, in float64."""
        found = find_transforms(read_coordinates(data))
        return _move_fields(data, found, _check_order((*found, self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class BasisTransforms(_Change):
    """Changes of basis, one after the other; a sample may be in any coordinates before.

    Labels that are stored in other coordinates are brought to the density basis first. So `BasisTransforms([])`
    brings samples to the density basis itself, and a second application of the same changes does nothing.

    Args:
        transforms: The changes, in the order of application; kept as `changes`.

    Attributes:
        coordinates: Name of the coordinates after these changes.

    Raises:
        ConfigError: If a change occurs twice, or one follows canonical natural reparametrisation.

    Examples:
        >>> from ofdft_norm import BasisTransforms, LocalFrames, NaturalReparametrization
        >>> BasisTransforms([LocalFrames(), NaturalReparametrization()]).coordinates
        'local_frames+natural_symmetric'
    """

    def __init__(self, transforms: Sequence[BasisTransform]) -> None:
        check_arguments(BasisTransforms.__init__, locals(), "data.pre_transforms")
        self.changes = _check_order(tuple(transforms))
        self.coordinates = name_coordinates(self.changes)

    def forward(self, data: DataT) -> DataT:
        """Returns the sample or batch (already a copy of the caller's) in these coordinates, in float64."""
        return _move_fields(data, find_transforms(read_coordinates(data)), self.changes)

    def __repr__(self) -> str:
        return f"BasisTransforms([{', '.join(map(repr, self.changes))}])"


Changes = tuple[BasisTransform, ...]


def register(*transforms: BasisTransform) -> None:
    """Registers names of changes of basis, which occur in the `coordinates` of samples."""
    _known.update({transform.name: transform for transform in transforms})


def name_coordinates(transforms: Changes) -> str:
    """Returns the name of the coordinates after some changes."""
    return "+".join(transform.name for transform in transforms) or RAW


def find_transforms(coordinates: str) -> Changes:
    """Returns the changes that lead from the density basis to the named coordinates."""
    names = [] if coordinates == RAW else coordinates.split("+")
    if any(name not in _known for name in names):
        raise ConfigError(f"coordinates {coordinates!r}: expected {RAW!r} or some of {sorted(_known)} joined by '+'")
    return tuple(_known[name] for name in names)


def _check_order(changes: Changes) -> Changes:
    """Checks the order of changes; canonical natural coordinates belong to no atom, so they come last."""
    names = [change.name for change in changes]
    kinds = {"natural" if name.startswith("natural") else name for name in names}
    if len(kinds) < len(names) or "natural_canonical" in names[:-1]:
        raise ConfigError(
            f"{names}: expected each change of basis once, and a canonical NaturalReparametrization last (config: "
            "data.pre_transforms)"
        )
    return changes


def read_coordinates(data: Data) -> str:
    """Returns the coordinates of a sample, or of all samples of a batch."""
    found = data.get("coordinates") or RAW
    names = {found} if isinstance(found, str) else set(found)
    if len(names) > 1:
        raise BatchError(f"a batch mixes the coordinates {sorted(names)}, expected one (config: data.source)")
    return names.pop()


def to_coordinates(data: DataT, coordinates: str) -> DataT:
    """Returns a copy of a sample or batch, not normalised, in the named coordinates."""
    return _move_fields(data.__copy__(), find_transforms(read_coordinates(data)), find_transforms(coordinates))


def change_coordinates(values: Tensor, data: Data, dual: bool, start: str, target: str) -> Tensor:
    """Brings vectors or dual vectors of a sample or batch from one system of coordinates to another.

    Differentiable. The values have any dtype and shape (n_basis,); the result is float64.
    """
    field = "gradient_label" if dual else "coeffs"
    if start == target:
        return as_float64(values, field)
    return _change_fields({field: values}, data, find_transforms(start), find_transforms(target))[field]


def forget_molecules() -> None:
    """Frees the steps in memory."""
    _memory.clear()


def _move_fields(data: DataT, old: Changes, new: Changes) -> DataT:
    """Changes a sample's or batch's fields, in place."""
    fields = {name: data[name] for name in PER_FUNCTION if data.get(name) is not None}
    if fields and name_coordinates(old) != name_coordinates(new):
        for field, values in _change_fields(fields, data, old, new).items():
            data[field] = values
    name = name_coordinates(new)
    data.coordinates = name if data.get("ptr") is None else [name] * count_molecules(data)
    return register_fields(data, {"coordinates": None})


def _change_fields(fields: dict[str, Tensor], data: Data, old: Changes, new: Changes) -> dict[str, Tensor]:
    """Changes (n_basis,) fields of a sample or batch; all vectors of all densities of one molecule together."""
    molecules, out = list_molecules(data), {name: list[Tensor]() for name in fields}
    # integrals of a normalised batch have been cast to the training dtype, as its positions have
    dtypes = data["pos"].dtype, fields.get("dual_basis_integrals", data["pos"]).dtype
    accuracy = max(_ACCURACY, *(2 * torch.finfo(dtype).eps for dtype in dtypes))
    for molecule, where in molecules:
        rows = {n: as_float64(v[where], n).reshape(-1, len(molecule.functions)) for n, v in fields.items()}
        # values that all densities of a molecule share, such as integrals, are changed once
        shared = (not block.requires_grad and bool((block == block[:1]).all()) for block in rows.values())
        distinct = {n: block[:1] if once else block for (n, block), once in zip(rows.items(), shared, strict=True)}
        if "dual_basis_integrals" in distinct:
            _check_integrals(distinct["dual_basis_integrals"].detach().cpu(), molecule, old, accuracy)
        dual = [name in DUAL_VECTORS for name, block in distinct.items() for _ in block]
        joined = torch.cat([*distinct.values()])
        changed = _transform_rows(old, new, molecule, joined, torch.tensor(dual, device=joined.device))
        for name, block in zip(fields, changed.split([len(block) for block in distinct.values()]), strict=True):
            out[name].append(block.expand_as(rows[name]).reshape(-1))
    return {name: torch.cat(changed) for name, changed in out.items()}


def _transform_rows(old: Changes, new: Changes, molecule: Molecule, rows: Tensor, dual: Tensor) -> Tensor:
    """Brings rows of one molecule from old coordinates to new ones, via the last coordinates that both share."""
    old, new = _sort_commuting(old), _sort_commuting(new)
    common = len(list(takewhile(lambda pair: pair[0].name == pair[1].name, zip(old, new, strict=False))))
    back, forth = _find_steps(old, molecule)[common:], _find_steps(new, molecule)[common:]
    return apply_steps(forth, apply_steps(back, rows, dual, inverse=True), dual)


def _sort_commuting(changes: Changes) -> Changes:
    """Returns the same changes with symmetric natural reparametrisation before local frames.

    (R S R^T)^(1/2) R = R S^(1/2) for the orthogonal R of local frames: so the overlap needs no rotation, and one
    diagonalisation serves coordinates with and without frames.
    """
    commuting = ("natural_symmetric", "local_frames")
    if not all(change.name in commuting for change in changes):
        return changes
    return tuple(sorted(changes, key=lambda change: commuting.index(change.name)))


def _find_steps(changes: Changes, molecule: Molecule) -> Steps:
    """Returns the steps of a molecule; the steps of the last molecules stay in memory."""
    steps: Steps = ()
    for n, change in enumerate(changes, 1):
        key = name_coordinates(changes[:n]), molecule.key
        step = cast("Step", _memory.remember(key, partial(change.step, molecule, steps)))
        change.check(step, molecule)
        steps = (*steps, step)
    return steps


class _Memory(OrderedDict[tuple[str, str], Step | Tensor]):
    """Steps and integrals by coordinates and molecule; forgets the oldest beyond `_CACHE_BYTES`."""

    def remember(self, key: tuple[str, str], make: Callable[[], Step | Tensor]) -> Step | Tensor:
        if key not in self:
            self[key] = make()
            while len(self) > 1 and sum(value.nbytes for value in self.values()) > _CACHE_BYTES:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


_memory = _Memory()


def _check_integrals(rows: Tensor, molecule: Molecule, changes: Changes, accuracy: float) -> None:
    """Refuses labels of another basis or in other axes: compares their integrals with computed ones."""
    if molecule.basis_info.exponent_per_shell is None:
        return
    key = f"integrals {name_coordinates(changes)}", molecule.key
    expected = cast("Tensor", _memory.remember(key, partial(_compute_integrals, molecule, changes)))
    difference = (rows - expected).abs()
    if not (difference <= accuracy * expected.abs().max()).all():
        row, i = divmod(int(difference.argmax()), len(expected))
        stated = name_coordinates(changes)
        how = f"other axes than those of {stated!r}" if changes else "other coordinates than they state"
        raise BasisError(
            f"molecule {molecule.name!r}: field 'dual_basis_integrals' has {rows[row, i]:.6g} for basis function {i} "
            f"({name_dimension(molecule.basis_info, int(molecule.functions[i]))}), expected {expected[i]:.6g}: the "
            f"labels were stored in {how}, or made with another basis (config: data.source, data.source.basis_info)"
        )


def _compute_integrals(molecule: Molecule, changes: Changes) -> Tensor:
    """Returns the integrals of the basis functions: (2 pi / a)^(3/4) for a normalised s Gaussian, 0 for l > 0."""
    basis_info, functions = molecule.basis_info, molecule.functions
    exponents = cast("Array", basis_info.exponent_per_shell)[basis_info.basis_func_to_shell[functions]]
    raw = np.where(basis_info.l_per_basis_func[functions] == 0, (2 * np.pi / exponents) ** 0.75, 0.0)
    dual = torch.ones(1, dtype=torch.bool)
    return _transform_rows((), changes, molecule, torch.from_numpy(raw)[None], dual)[0]
