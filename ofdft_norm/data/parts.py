"""The raw data sets of a data module by part; their split in checkpoints; their conversion to another unit or basis."""

from __future__ import annotations

import copy
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import Transform, apply_transform, compose
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.loader import wrap_loader
from ofdft_norm.data.sources import Source
from ofdft_norm.data.split import Parts, SplitConfig
from ofdft_norm.errors import ConfigError, SplitError, counted
from ofdft_norm.units import conversion


class DataParts:
    """Raw samples, pre-transformed, of the parts ``train``, ``val``, ``test``, and of ``all`` members of a source.

    Each data set is opened when it is asked for. A checkpoint holds the members of each part: a run that is tested or
    resumed after files were added or removed keeps its molecules, if source and split have the same settings.
    """

    def __init__(
        self, source: Source, split: SplitConfig, pre_transforms: Sequence[Transform], unit: str = "hartree"
    ) -> None:
        self.source = source
        self.split = split
        self.pre_transforms = list(pre_transforms)
        self.unit = unit
        self._members: Parts | None = None
        self._opened: dict[str, Any] = {}
        self._state: Mapping[str, Any] | None = None  # of a checkpoint, or of the members
        self._required_basis: BasisInfo | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and copies without the data sets."""
        return {**self.__dict__, "_members": None, "_opened": {}}

    def release(self) -> None:
        """Frees the data sets; the next use looks at the files again."""
        self._members, self._opened = None, {}
        self.source.release()

    def names(self) -> list[str]:
        """Returns the parts that have samples; ``all`` exists besides."""
        return list(self._find_members())

    def __getitem__(self, part: str) -> Any:
        if part not in self._opened:
            members = self.source.everything() if part == "all" else self._find_members().get(part)
            if members is None:
                raise SplitError(
                    f"the data have no {part!r} split; they have {self.names()} (config: data.split, data.source)"
                )
            self._opened[part] = self.source.open(part, members, self._transforms())
        return self._opened[part]

    def loader(self, part: str) -> DataLoader | None:
        """Returns a wrapped data module's own loader of a part, with transformed samples; None for other sources."""
        known = part != "all" and part in self._find_members()  # "all" needs no split
        loader = self.source.loader(part) if known else None
        transform = compose(self._transforms())
        if loader is None or transform is None:
            return loader
        return wrap_loader(loader, partial(apply_transform, transform))

    def elements(self, part: str) -> set[int] | None:
        """Returns the atomic numbers that occur in a part; None where they cost a pass over its files."""
        return self[part].elements()

    def _find_members(self) -> Parts:
        """Returns the members of the parts: a checkpoint's if source and split have its settings, else new ones."""
        if self._members is None:
            identity = (self.source.split_identity(self.split) or "").replace(str(EMBEDDED), _EMBEDDED)
            if self._state is not None and self._state["identity"] == identity:
                self._members = _members_from_state(self._state["files"])
            else:
                self._members = self.source.parts(self.split)
                state = {"identity": identity, "files": _members_to_state(self._members)}
                self._state = state if identity else None
        return self._members

    def _transforms(self) -> list[Transform]:
        """Returns the pre-transforms (of density coefficients), and conversions to the wanted unit and basis."""
        own, required = self.source.basis(), self._required_basis
        transforms = [] if own is None else list(self.pre_transforms)
        stored = self.source.unit or self.unit
        if stored != self.unit:
            fields = [self.source.energy_field, self.source.forces_field, "gradient_label"]
            transforms.append(InUnit(conversion(stored, self.unit), [name for name in fields if name is not None]))
        if required is not None and own != required:
            if own is None or not own.is_subset(required):
                raise ConfigError(
                    f"the checkpoint's normaliser belongs to {required}, but the labels have "
                    f"{own or 'no density coefficients'}: expected elements of it, with its functions (config: "
                    "data.source.basis_info)"
                )
            transforms.append(InBasis(own, required))
        return transforms

    def state(self) -> Mapping[str, Any] | None:
        """Returns the members of each part, as plain data; None where they are not known."""
        return self._state

    def restore(self, state: Mapping[str, Any] | None, basis_info: BasisInfo | None, resuming: bool = False) -> None:
        """Takes a checkpoint's split, and refuses labels of another basis from now on.

        Raises SplitError if training is resumed on molecules that were validated or tested on.
        """
        self._required_basis = basis_info
        self.release()
        self._state = state
        if not resuming or state is None:
            return
        names = {part: {Path(m).name for m in of} for part, of in _members_from_state(state["files"]).items()}
        held_back = names.get("val", set()) | names.get("test", set())
        both = sorted(held_back & {Path(member).name for member in self._find_members().get("train", ())})
        if both:
            raise SplitError(
                f"the run validated or tested on {counted(len(both), 'molecule')} that would be trained on now: "
                f"{', '.join(both[:5])}; resume it with its own split (config: data.split, data.source)"
            )


# stands for the folder of the embedded labels, which differs between installations
_EMBEDDED = "<embedded>"


def _members_to_state(members: Parts) -> dict[str, Any]:
    """Returns the members of each part, compressed to a few bytes for each."""
    here, state = os.getcwd(), {}
    for part, of_part in members.items():
        text = "\0".join(os.path.join(here, member) for member in of_part).replace(str(EMBEDDED), _EMBEDDED)
        state[part] = torch.frombuffer(bytearray(zlib.compress(os.fsencode(text))), dtype=torch.uint8)
    return state


def _members_from_state(state: Mapping[str, Any]) -> Parts:
    texts = {part: os.fsdecode(zlib.decompress(content.numpy().tobytes())) for part, content in state.items()}
    return {part: text.replace(_EMBEDDED, str(EMBEDDED)).split("\0") for part, text in texts.items()}


class InUnit:
    """Multiplies energies, and derivatives of energies, of samples and batches by a factor."""

    works_on_batches = True

    def __init__(self, factor: float, fields: Sequence[str]) -> None:
        self.factor = factor
        self.fields = list(fields)

    def __call__(self, data: Any) -> Any:
        """Returns a copy in the other unit."""
        data = copy.copy(data)
        for field in self.fields:
            if field in data:
                data[field] = data[field].to(torch.float64) * self.factor
        return data


class InBasis:
    """Numbers elements and functions of samples and batches as a basis with more elements does.

    Coefficients stay as they are; `atom_ind` and `basis_function_ind` change. A model and a normaliser of H, C, N, O
    and F so take labels with a basis of O and H.
    """

    works_on_batches = True

    def __init__(self, own: BasisInfo, other: BasisInfo) -> None:
        self.other = other
        atom_ind = other.atom_indices(own.atomic_numbers)
        self.atom_ind = torch.from_numpy(atom_ind)
        self.basis_function_ind = torch.from_numpy(other.basis_function_ind(atom_ind))

    def __call__(self, data: Any) -> Any:
        """Returns a copy in the other basis."""
        data = copy.copy(data)
        data.atom_ind = self.atom_ind[data.atom_ind]
        data.basis_function_ind = self.basis_function_ind[data.basis_function_ind]
        given = data.get("basis_info")
        if given is not None:  # one for each sample of a batch
            data.basis_info = [self.other] * len(given) if isinstance(given, list) else self.other
        return data
