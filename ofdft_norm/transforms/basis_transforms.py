"""Changes of the density basis as PyG transforms with exact inverses.

One matrix T for each molecule, from its geometry and basis alone: vectors (coefficients) become T p, dual vectors
(gradients, integrals) T^-T g, so that w.p, g.p and energies stay what they are. Which field is what says
`ofdft_norm.data.fields`. A sample says in its field `coordinates` which changes it has seen, by their names: for
example ``"local_frames+natural_symmetric"``; ``"raw"``, or no such field, means the density basis as it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from ofdft_norm.data.coordinates import RAW
from ofdft_norm.data.fields import DUAL_VECTORS, VECTORS
from ofdft_norm.data.of_data import n_molecules, with_added_fields
from ofdft_norm.errors import BatchError, ConfigError
from ofdft_norm.transforms.basis_change import BasisChange, Step
from ofdft_norm.transforms.molecule import Molecule, molecules_of

DataT = TypeVar("DataT", bound=Data)

# Changes of basis that are remembered: those of a few large molecules, a batch of small ones.
_CACHE_BYTES = 128 * 2**20
_cache: OrderedDict[tuple[str, str], BasisChange] = OrderedDict()
_known: dict[str, BasisTransform] = {}


class BasisTransform(BaseTransform):
    """A change of basis; its subclasses say which.

    The transform follows whatever changes the sample has seen before, in their coordinates.
    """

    works_on_batches = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the change among a sample's `coordinates`."""

    @abstractmethod
    def step(self, molecule: Molecule, before: BasisChange) -> Step:
        """Returns the change of one molecule's basis that follows other changes."""

    def matrix(self, sample: Data) -> tuple[Tensor, Tensor]:
        """Returns T and T^-1 of a sample that this transform is yet to be applied to, (n_basis, n_basis) float64.

        Args:
            sample: One molecule: its geometry and basis count, its coefficients do not.

        Raises:
            BatchError: If it is a batch, or lacks a field.
        """
        before = [t for t in transforms_of(coordinates_of(sample)) if t.name != self.name]
        molecule = _one(sample)
        change = basis_change((*before, self), molecule).after(len(before))
        return change.matrices(len(molecule.functions))

    def forward(self, data: DataT) -> DataT:
        """Returns the sample or batch (already a copy of the caller's) in changed coordinates, in float64.

        Raises:
            ConfigError: If the transform was applied before.
        """
        before = transforms_of(coordinates_of(data))
        return _move(data, before, chain((*before, self)))

    def inverse(self, data: DataT) -> DataT:
        """Returns a copy in the coordinates before this transform: undoes it.

        Raises:
            ConfigError: If it was not the last transform that was applied.
        """
        before = transforms_of(coordinates_of(data))
        if not before or before[-1].name != self.name:
            raise ConfigError(f"{self!r} cannot be undone: the sample is in the coordinates {coordinates_of(data)!r}")
        return _move(data.__copy__(), (*before[:-1], self), before[:-1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class BasisTransforms(BaseTransform):
    """Changes of basis, one after the other; brings a sample into their coordinates from whichever it is in.

    Labels that are stored in other coordinates are brought to the density basis first. So `BasisTransforms([])`
    brings samples to the density basis as it is, and applying the same changes twice does nothing.

    Args:
        transforms: The changes, in the order of application; kept as `changes`.

    Raises:
        ConfigError: If they cannot follow each other.

    Example:
        >>> from ofdft_norm import BasisTransforms, LocalFrames, NaturalReparametrization
        >>> BasisTransforms([LocalFrames(), NaturalReparametrization()]).coordinates
        'local_frames+natural_symmetric'
    """

    works_on_batches = True

    def __init__(self, transforms: Sequence[BasisTransform]) -> None:
        self.changes = chain(tuple(transforms))

    @property
    def coordinates(self) -> str:
        """What a sample says of itself after these changes."""
        return name_of(self.changes)

    def matrix(self, sample: Data) -> tuple[Tensor, Tensor]:
        """Returns T and T^-1 from the density basis to these coordinates, (n_basis, n_basis) float64.

        Args:
            sample: One molecule: its geometry and basis count, its coefficients do not.

        Raises:
            BatchError: If it is a batch, or lacks a field.
        """
        molecule = _one(sample)
        return basis_change(self.changes, molecule).matrices(len(molecule.functions))

    def forward(self, data: DataT) -> DataT:
        """Returns the sample or batch (already a copy of the caller's) in these coordinates, in float64."""
        return _move(data, transforms_of(coordinates_of(data)), self.changes)

    def inverse(self, data: DataT) -> DataT:
        """Returns a copy in the density basis as it is: undoes the changes in reverse order.

        Raises:
            ConfigError: If the sample is not in these coordinates.
        """
        found = coordinates_of(data)
        if found != self.coordinates:
            raise ConfigError(f"{self!r} cannot be undone: the sample is in the coordinates {found!r}")
        return _move(data.__copy__(), self.changes, ())

    def __repr__(self) -> str:
        return f"BasisTransforms([{', '.join(map(repr, self.changes))}])"


# --- coordinates by name ----------------------------------------------------------------------------------------------


def register(*transforms: BasisTransform) -> None:
    """Makes changes of basis known by their names, so that samples can say which they have seen."""
    _known.update({transform.name: transform for transform in transforms})


def name_of(transforms: Sequence[BasisTransform]) -> str:
    """Returns the name of the coordinates after some changes."""
    return "+".join(transform.name for transform in transforms) or RAW


def transforms_of(coordinates: str) -> tuple[BasisTransform, ...]:
    """Returns the changes that lead from the density basis to coordinates of a name.

    Raises:
        ConfigError: If the name is unknown.
    """
    names = [] if coordinates == RAW else coordinates.split("+")
    unknown = [name for name in names if name not in _known]
    if unknown:
        raise ConfigError(f"coordinates {coordinates!r}: expected {RAW!r} or some of {sorted(_known)} joined by '+'")
    return tuple(_known[name] for name in names)


def chain(transforms: tuple[BasisTransform, ...]) -> tuple[BasisTransform, ...]:
    """Returns changes that may follow each other.

    Raises:
        ConfigError: If one comes twice, or atoms' own axes are wanted where functions belong to no atom any more.
    """
    names = [transform.name for transform in transforms]
    if len(set(names)) < len(names) or sum(name.startswith("natural") for name in names) > 1:
        raise ConfigError(f"{names}: the same change of basis comes twice (config: data.pre_transforms)")
    if "natural_canonical" in names[:-1]:
        raise ConfigError(
            f"{names}: canonical natural coordinates belong to no atom, so nothing can follow them; put "
            "NaturalReparametrization last (config: data.pre_transforms)"
        )
    return transforms


def coordinates_of(data: Data) -> str:
    """Returns the coordinates of a sample, or of all samples of a batch.

    Raises:
        BatchError: If samples of a batch differ.
    """
    found = data.get("coordinates")
    names = {RAW} if not found else {found} if isinstance(found, str) else set(found)
    if len(names) > 1:
        raise BatchError(
            f"a batch mixes samples in the coordinates {sorted(names)}, expected one (config: data.source)"
        )
    return next(iter(names))


# --- applying ---------------------------------------------------------------------------------------------------------


def basis_change(transforms: tuple[BasisTransform, ...], molecule: Molecule) -> BasisChange:
    """Returns the change of a molecule's basis; those of the last molecules are remembered."""
    if not transforms:
        return BasisChange()
    key = (name_of(transforms), molecule.key)
    if key not in _cache:
        before = basis_change(transforms[:-1], molecule)
        _cache[key] = before.then(transforms[-1].step(molecule, before))
        while len(_cache) > 1 and sum(change.steps[-1].n_bytes for change in _cache.values()) > _CACHE_BYTES:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def change_coordinates(values: Tensor, data: Data, dual: bool, start: str, target: str) -> Tensor:
    """Brings vectors or dual vectors from one system of coordinates to another; autograd goes through.

    Args:
        values: (n_basis,), any dtype.
        data: The sample or batch that they belong to: its geometries and basis count.
        dual: Whether they are dual vectors (gradients, integrals).
        start: Coordinates of the values.
        target: Coordinates to bring them to.

    Returns:
        (n_basis,) float64.
    """
    if start == target:
        return values.to(torch.float64)
    old, new = transforms_of(start), transforms_of(target)
    return _changed([values], [dual], molecules_of(data), old, new)[0]


def to_coordinates(data: DataT, coordinates: str) -> DataT:
    """Returns a copy of a sample or batch in coordinates of a name, from whichever it is in.

    Args:
        data: Not normalised.
        coordinates: ``raw`` for the density basis as it is, or names of changes of basis joined by ``+``.

    Raises:
        ConfigError: If the name is unknown.
    """
    return _move(data.__copy__(), transforms_of(coordinates_of(data)), transforms_of(coordinates))


def _move(data: DataT, old: tuple[BasisTransform, ...], new: tuple[BasisTransform, ...]) -> DataT:
    """Changes a sample's or batch's fields, in place."""
    fields = [name for name in (*VECTORS, *DUAL_VECTORS) if data.get(name) is not None]
    if name_of(old) != name_of(new):
        molecules = molecules_of(data, with_integrals=not old)
        dual = [name in DUAL_VECTORS for name in fields]
        for name, value in zip(fields, _changed([data[n] for n in fields], dual, molecules, old, new), strict=True):
            data[name] = value
    single = data.get("ptr") is None
    data.coordinates = name_of(new) if single else [name_of(new)] * n_molecules(data)
    return with_added_fields(data, {"coordinates": None})


def _changed(
    values: list[Tensor],
    dual: list[bool],
    molecules: list[tuple[Molecule, slice]],
    old: tuple[BasisTransform, ...],
    new: tuple[BasisTransform, ...],
) -> list[Tensor]:
    """Changes several (n_basis,) vectors; all samples of one molecule together."""
    out: list[list[Tensor]] = [[] for _ in values]
    common = sum(a.name == b.name for a, b in zip(old, new, strict=False))
    first = 0
    while first < len(molecules):
        molecule, last = molecules[first][0], first + 1
        while last < len(molecules) and molecules[last][0] is molecule:
            last += 1
        where = slice(molecules[first][1].start, molecules[last - 1][1].stop)
        back, forth = basis_change(old, molecule).after(common), basis_change(new, molecule).after(common)
        for i, value in enumerate(values):
            rows = value[where].to(torch.float64).reshape(last - first, -1)
            # what all densities of a molecule share is changed once, to the same last digit
            shared = last - first > 1 and not rows.requires_grad and bool((rows == rows[0]).all())
            changed = forth.apply(back.apply(rows[:1] if shared else rows, dual[i], inverse=True), dual[i])
            out[i].append((changed.expand_as(rows) if shared else changed).reshape(-1))
        first = last
    return [torch.cat(changed) for changed in out]


def _one(sample: Data) -> Molecule:
    molecules = molecules_of(sample)
    if len(molecules) != 1:
        raise BatchError(f"matrix() is of one molecule, and the batch has {len(molecules)}: give it samples")
    return molecules[0][0]
