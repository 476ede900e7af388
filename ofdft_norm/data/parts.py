"""The raw data sets of a data module by part; their split in checkpoints; their conversion to another unit or basis."""

import copy
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import Transform, apply_transform, compose
from ofdft_norm.data.elements import find_symbol
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.loader import wrap_loader
from ofdft_norm.data.sources import Source
from ofdft_norm.data.split import Parts, SplitConfig
from ofdft_norm.errors import ConfigError, LabelFileError, SplitError, format_count
from ofdft_norm.units import find_factor


class DataParts:
    """Raw samples, pre-transformed, of ``train``, ``val``, ``test``, ``test_<name>``, and ``all`` members of a source.

    A checkpoint holds the members of each part: a run that is tested or resumed after files were added keeps its
    molecules, if source and split have the same settings. `labels` are target, unit and pre-transforms as plain data.
    """

    def __init__(
        self,
        source: Source,
        split: SplitConfig,
        pre_transforms: Sequence[Transform],
        unit: str = "hartree",
        leave_out_atoms: bool = False,
    ) -> None:
        self.source = source
        self.split = split
        self.pre_transforms = list(pre_transforms)
        self.unit = unit
        self.labels = {
            "energy_key": source.energy_key,
            "gradient_key": source.gradient_key,
            "unit": unit,
            "pre_transforms": [getattr(t, "__qualname__", None) or repr(t) for t in pre_transforms],
        }
        self.leave_out_atoms = leave_out_atoms  # isolated ones
        self._members: Parts | None = None
        self._isolated: dict[str, tuple[int, float]] | None = None
        self._opened: dict[str, Any] = {}
        self._known_split: tuple[str, Parts] | None = None  # identity and members: a checkpoint's, or new ones
        self._required_basis: BasisInfo | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and copies without the data sets."""
        return {**self.__dict__, "_members": None, "_isolated": None, "_opened": {}}

    def release(self) -> None:
        """Frees the data sets; the next use reads the files again."""
        self._members, self._isolated, self._opened = None, None, {}
        self.source.release()

    def names(self) -> list[str]:
        """Returns the parts that have samples, without ``all``."""
        return list(self._find_members())

    def __getitem__(self, part: str) -> Any:
        if part not in self._opened:
            members = self.source.everything() if part == "all" else self._find_members().get(part)
            if members is None:
                raise SplitError(f"the data have no {part!r} split; they have {self.names()} (config: data.split)")
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

    def _find_members(self) -> Parts:
        """Returns the members of the parts: a checkpoint's if source and split have its settings, else new ones."""
        if self._members is None:
            identity = (self.source.split_identity(self.split) or "").replace(str(EMBEDDED), _PLACEHOLDER)
            identity += " without isolated atoms" if identity and self.leave_out_atoms else ""
            if self._known_split is not None and self._known_split[0] == identity:
                self._members = self._known_split[1]
            else:
                self._members = self.source.parts(self.split)
                if self.leave_out_atoms:
                    atoms = self._find_isolated()
                    found = {part: [m for m in names if m not in atoms] for part, names in self._members.items()}
                    self._members = {part: members for part, members in found.items() if members}
                self._known_split = (identity, self._members) if identity else None
        return self._members

    def _find_isolated(self) -> dict[str, tuple[int, float]]:
        if self._isolated is None:
            self._isolated = self.source.isolated_atoms()
        return self._isolated

    def isolated_energies(self) -> dict[int, float]:
        """Returns the energies of isolated atoms [`unit`] by atomic number; refuses two energies of one element."""
        found: dict[int, tuple[float, str]] = {}
        for member, (number, energy) in self._find_isolated().items():
            known, where = found.setdefault(number, (energy, member))
            if energy != known:
                what = f"{where} and {member} have the energies {known!r} and {energy!r}, expected one energy"
                raise LabelFileError(f"{what} of the isolated {find_symbol(number)} atom (config: data.source.paths)")
        if not found:
            expected = "frames of one atom without periodic images, or with config_type=IsolatedAtom"
            raise SplitError(f"the data have no isolated atoms; expected {expected} (config: data.reference.values)")
        factor = find_factor(self.source.unit or self.unit, self.unit)
        return {number: factor * energy for number, (energy, _) in found.items()}

    def _transforms(self) -> list[Transform]:
        """Returns the pre-transforms (of density coefficients), and conversions to the wanted unit and basis."""
        own, required = self.source.basis(), self._required_basis
        transforms = [] if own is None else list(self.pre_transforms)
        stored = self.source.unit or self.unit
        if stored != self.unit:
            fields = [self.source.energy_field, self.source.forces_field, self.source.stress_field, "gradient_label"]
            transforms.append(InUnit(find_factor(stored, self.unit), [name for name in fields if name is not None]))
        if required is not None and own != required:
            if own is None or not own.is_subset(required):
                what = f"the checkpoint's normaliser belongs to {required}, but the labels have"
                raise ConfigError(f"{what} {own or 'no density coefficients'} (config: data.source.basis_info)")
            transforms.append(InBasis(own, required))
        return transforms

    def state(self) -> Mapping[str, Any] | None:
        """Returns the members of each part, as plain data, compressed; None where they are not known."""
        if self._known_split is None:
            return None
        here, files = os.getcwd(), {}
        for part, members in self._known_split[1].items():
            text = "\0".join(os.path.join(here, member) for member in members).replace(str(EMBEDDED), _PLACEHOLDER)
            files[part] = torch.frombuffer(bytearray(zlib.compress(os.fsencode(text))), dtype=torch.uint8)
        return {"identity": self._known_split[0], "files": files}

    def restore(self, state: Mapping[str, Any] | None, basis_info: BasisInfo | None, resuming: bool = False) -> None:
        """Uses a checkpoint's split; refuses to resume training on molecules that were validated or tested on."""
        self._required_basis, self._known_split = basis_info, None
        self.release()
        if state is None:
            return
        members: Parts = {}
        for part, content in state["files"].items():
            text = os.fsdecode(zlib.decompress(content.numpy().tobytes()))
            members[part] = text.replace(_PLACEHOLDER, str(EMBEDDED)).split("\0")
        self._known_split = state["identity"], members
        if not resuming:
            return
        held_back = {Path(name).name for part, names in members.items() if part != "train" for name in names}
        both = sorted(held_back & {Path(member).name for member in self._find_members().get("train", ())})
        if both:
            what = f"the run validated or tested on {format_count(len(both), 'molecule')} that would be trained on now"
            raise SplitError(f"{what}: {', '.join(both[:5])}; resume it with its own split (config: data.split)")


# replaces the folder of the embedded labels, which differs between installations
_PLACEHOLDER = "<embedded>"


@dataclass(frozen=True)
class InUnit:
    """Multiplies energies, and derivatives of energies, of samples and batches by a factor."""

    factor: float
    fields: Sequence[str]
    works_on_batches: ClassVar = True

    def __call__(self, data: Any) -> Any:
        """Returns a copy in the other unit."""
        data = copy.copy(data)
        for field in self.fields:
            if field in data:
                data[field] = data[field].to(torch.float64) * self.factor
        return data


class InBasis:
    """Numbers elements and functions of samples and batches as a basis with more elements does."""

    works_on_batches = True

    def __init__(self, old: BasisInfo, new: BasisInfo) -> None:
        self.new = new
        atom_ind = new.atom_indices(old.atomic_numbers)
        self.atom_ind = torch.from_numpy(atom_ind)
        self.basis_function_ind = torch.from_numpy(new.basis_function_ind(atom_ind))

    def __call__(self, data: Any) -> Any:
        """Returns a copy in the other basis."""
        data = copy.copy(data)
        data.atom_ind = self.atom_ind[data.atom_ind]
        data.basis_function_ind = self.basis_function_ind[data.basis_function_ind]
        given = data.get("basis_info")
        if given is not None:  # one for each sample of a batch
            data.basis_info = [self.new] * len(given) if isinstance(given, list) else self.new
        return data
