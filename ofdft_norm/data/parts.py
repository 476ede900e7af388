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
from torch_geometric.transforms import BaseTransform

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import Transform, apply_transform, compose
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.loader import wrap_loader
from ofdft_norm.data.sources import Source
from ofdft_norm.data.split import Parts, SplitConfig
from ofdft_norm.errors import BasisError, ConfigError, SplitError, counted
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
        theirs = None if part == "all" or part not in self._find_members() else self.source.loader(part)
        transform = compose(self._transforms())
        return (
            theirs if theirs is None or transform is None else wrap_loader(theirs, partial(apply_transform, transform))
        )

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
                    f"{own or 'no density coefficients'}: expected some or all of its elements with the same functions "
                    "(config: data/source, data.source.basis_info)"
                )
            transforms.append(InBasis(own, required))
        return transforms

    # --- checkpoints --------------------------------------------------------------------------------------------

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
                f"the run that is resumed validated or tested on {counted(len(both), 'molecule')} that would be "
                f"trained on now: {', '.join(both[:5])}{' ...' if len(both) > 5 else ''}; resume with that run's "
                "split (config: data.split, data.source)"
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


# --- conversions ------------------------------------------------------------------------------------------------------


class InUnit(BaseTransform):
    """Multiplies energies, and derivatives of energies, by a factor: a PyG transform of samples and batches."""

    works_on_batches = True

    def __init__(self, factor: float, fields: Sequence[str]) -> None:
        self.factor = factor
        self.fields = list(fields)

    def forward(self, data: Any) -> Any:
        """Returns a copy in the other unit."""
        data = copy.copy(data)
        for field in self.fields:
            if field in data:
                data[field] = data[field].to(torch.float64) * self.factor
        return data


class InBasis(BaseTransform):
    """Numbers elements and functions as a basis with more elements does: a PyG transform of samples and batches.

    Coefficients stay as they are; `atom_ind` and `basis_function_ind` change. A model and a normaliser of H, C, N, O
    and F so take labels with a basis of O and H.
    """

    works_on_batches = True

    def __init__(self, own: BasisInfo, other: BasisInfo) -> None:
        if not own.is_subset(other):
            raise BasisError(f"the elements of {own} do not all have the same functions in {other}")
        self.other = other
        atom_ind = other.atom_indices(own.atomic_numbers)
        self.atom_ind = torch.from_numpy(atom_ind)
        self.basis_function_ind = torch.from_numpy(other.basis_function_ind(atom_ind))

    def forward(self, data: Any) -> Any:
        """Returns a copy in the other basis."""
        data = copy.copy(data)
        data.atom_ind = self.atom_ind[data.atom_ind]
        data.basis_function_ind = self.basis_function_ind[data.basis_function_ind]
        given = data.get("basis_info")
        if given is not None:  # one for each sample of a batch
            data.basis_info = [self.other] * len(given) if isinstance(given, list) else self.other
        return data
