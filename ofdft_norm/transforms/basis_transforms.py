"""Changes of the density basis as PyG transforms with exact inverses.

One matrix T for each molecule, from its geometry and basis alone: vectors (coefficients) become T p, dual vectors
(gradients, integrals) T^-T g, so that w.p, g.p and energies stay what they are. Which field is what says
`ofdft_norm.data.fields`. A sample says in its field `coordinates` which changes it has seen, by their names: for
example ``"local_frames+natural_symmetric"``; ``"raw"``, or no such field, means the density basis as it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
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

# Steps that are remembered: those of a few large molecules, a batch of small ones.
_CACHE_BYTES = 128 * 2**20
_cache: OrderedDict[tuple[str, str], Step] = OrderedDict()
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
        """Returns the change of one molecule's basis that follows other changes.

        Args:
            molecule: Geometry and basis.
            before: The changes that come first.
        """

    def check(self, step: Step, molecule: Molecule) -> None:
        """Refuses a step that was made before, by a transform of the same name with other settings.

        Args:
            step: The step that was made.
            molecule: The molecule that it was made for.
        """

    def matrix(self, sample: Data) -> tuple[Tensor, Tensor]:
        """Returns T and T^-1 of a sample that this transform is yet to be applied to, (n_basis, n_basis) float64.

        Args:
            sample: One molecule: its geometry and basis count, its coefficients do not.

        Raises:
            BatchError: If it is a batch, or lacks a field.
        """
        before = [t for t in transforms_of(coordinates_of(sample)) if t.name != self.name]
        return _matrices(_one(sample), tuple(before), (*before, self))

    def forward(self, data: DataT) -> DataT:
        """Returns the sample or batch (already a copy of the caller's) in changed coordinates, in float64.

        Raises:
            ConfigError: If the transform was applied before.
        """
        before = transforms_of(coordinates_of(data))
        return _move(data, before, chain((*before, self)))

    def inverse(self, data: DataT) -> DataT:
        """Returns a copy in the coordinates before this transform: undoes it.

        Args:
            data: A sample or batch.

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
        return _matrices(_one(sample), (), self.changes)

    def forward(self, data: DataT) -> DataT:
        """Returns the sample or batch (already a copy of the caller's) in these coordinates, in float64."""
        return _move(data, transforms_of(coordinates_of(data)), self.changes)

    def inverse(self, data: DataT) -> DataT:
        """Returns a copy in the density basis as it is: undoes the changes in reverse order.

        Args:
            data: A sample or batch.

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
    """Makes changes of basis known by their names, so that samples can say which they have seen.

    Args:
        *transforms: Changes of basis with names.
    """
    _known.update({transform.name: transform for transform in transforms})


def name_of(transforms: Sequence[BasisTransform]) -> str:
    """Returns the name of the coordinates after some changes.

    Args:
        transforms: Changes in the order of application.
    """
    return "+".join(transform.name for transform in transforms) or RAW


def transforms_of(coordinates: str) -> tuple[BasisTransform, ...]:
    """Returns the changes that lead from the density basis to coordinates of a name.

    Args:
        coordinates: Names of changes, joined as `name_of` does.

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

    Args:
        transforms: Changes in the order of application.

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

    Args:
        data: A sample or batch.

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
    """Returns the change of a molecule's basis; the steps of the last molecules are remembered.

    Args:
        transforms: Changes in the order of application.
        molecule: Geometry and basis.
    """
    change = BasisChange()
    for n, transform in enumerate(transforms, 1):
        key = (name_of(transforms[:n]), molecule.key)
        if key not in _cache:
            _cache[key] = transform.step(molecule, change)
            while len(_cache) > 1 and sum(step.n_bytes for step in _cache.values()) > _CACHE_BYTES:
                _cache.popitem(last=False)
        _cache.move_to_end(key)
        transform.check(_cache[key], molecule)
        change = change.then(_cache[key])
    return change


def forget_molecules() -> None:
    """Frees the steps that are remembered."""
    _cache.clear()


def in_normal_order(transforms: tuple[BasisTransform, ...]) -> tuple[BasisTransform, ...]:
    """Returns the same change of basis with symmetric natural reparametrisation before local frames.

    (R S R^T)^(1/2) R = R S^(1/2) for the orthogonal R of local frames: so the overlap needs no turning, and one
    diagonalisation serves coordinates with and without frames.

    Args:
        transforms: Changes in the order of application.
    """
    natural_first = {"natural_symmetric": 0, "local_frames": 1}
    if not all(transform.name in natural_first for transform in transforms):
        return transforms
    return tuple(sorted(transforms, key=lambda transform: natural_first[transform.name]))


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
    """Changes several (n_basis,) vectors; all vectors of all samples of one molecule together."""
    out: list[list[Tensor]] = [[] for _ in values]
    for molecule, where in _runs(molecules):
        rows = [value[where].to(torch.float64).reshape(-1, len(molecule.functions)) for value in values]
        distinct = [own[:1] if _all_equal(own) else own for own in rows]
        duals = torch.tensor([d for d, own in zip(dual, distinct, strict=True) for _ in own], device=rows[0].device)
        changed = _between(old, new, molecule, torch.cat(distinct), duals).split([len(own) for own in distinct])
        for i, own in enumerate(rows):
            out[i].append(changed[i].expand_as(own).reshape(-1))
    return [torch.cat(changed) for changed in out]


def _runs(molecules: list[tuple[Molecule, slice]]) -> Iterator[tuple[Molecule, slice]]:
    """Yields each molecule with the functions of all its samples that follow one another."""
    for _, run in groupby(molecules, key=lambda found: id(found[0])):
        samples = list(run)
        yield samples[0][0], slice(samples[0][1].start, samples[-1][1].stop)


def _all_equal(rows: Tensor) -> bool:
    """Whether all densities of a molecule share these values, which are changed once then."""
    return len(rows) > 1 and not rows.requires_grad and bool((rows == rows[0]).all())


def _between(
    old: tuple[BasisTransform, ...],
    new: tuple[BasisTransform, ...],
    molecule: Molecule,
    rows: Tensor,
    dual: Tensor,
) -> Tensor:
    """Brings rows of one molecule from old coordinates to new ones, as far as they differ; see `Step.apply`."""
    old, new = in_normal_order(old), in_normal_order(new)
    common = len(list(takewhile(lambda pair: pair[0].name == pair[1].name, zip(old, new, strict=False))))
    back, forth = basis_change(old, molecule).after(common), basis_change(new, molecule).after(common)
    return forth.apply(back.apply(rows, dual, inverse=True), dual)


def _matrices(
    molecule: Molecule, old: tuple[BasisTransform, ...], new: tuple[BasisTransform, ...]
) -> tuple[Tensor, Tensor]:
    """Returns T and T^-1 from old coordinates to new ones, (n_basis, n_basis) float64 each."""
    unit = torch.eye(len(molecule.functions), dtype=torch.float64)
    dual = torch.zeros(len(unit), dtype=torch.bool)
    forth, back = _between(old, new, molecule, unit, dual), _between(new, old, molecule, unit, dual)
    return forth.T.contiguous(), back.T.contiguous()


def _one(sample: Data) -> Molecule:
    molecules = molecules_of(sample)
    if len(molecules) != 1:
        raise BatchError(f"matrix() is of one molecule, and the batch has {len(molecules)}: give it samples")
    return molecules[0][0]
