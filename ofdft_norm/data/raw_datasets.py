"""The raw data sets behind a data module: opened when they are asked for, released when a stage ends."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch_geometric.transforms import Compose

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.embedded_data import embedded_here
from ofdft_norm.data.in_basis import InBasis
from ofdft_norm.data.in_unit import InUnit
from ofdft_norm.data.lazy_datasets import LazyDatasets
from ofdft_norm.data.pre_transforms import composed, single_transforms
from ofdft_norm.errors import ConfigError, SplitError, counted
from ofdft_norm.units import conversion


class RawDatasets:
    """Raw samples, pre-transformed, of the splits ``train``, ``val`` and ``test``, and of ``all`` label files.

    Checkpoints remember which label files train, validate and test: a run that is tested or resumed after files were
    added or removed goes on with the molecules that it began with, as long as the source's paths and the split's
    settings are the same.

    Args:
        source: Where samples come from.
        split: Which molecules train, validate and test.
        pre_transforms: Applied to each sample.
        index_dir: Folder that remembers the number of SCF iterations of many label files.
        unit: Unit of energy that samples are wanted in; a source whose `unit` is another is converted.
    """

    def __init__(
        self,
        source: Any,
        split: Any,
        pre_transforms: Sequence[Callable[..., Any]],
        index_dir: Path,
        unit: str = "hartree",
    ) -> None:
        self.source = source
        self.split = split
        self.index_dir = index_dir
        self.unit = unit
        transforms = self.pre_transforms = list(pre_transforms)
        self.transform = None if not transforms else transforms[0] if len(transforms) == 1 else Compose(transforms)
        self._splits: LazyDatasets | None = None
        self._everything: Any = None
        self._state: dict[str, Any] | None = None
        self._required_basis: BasisInfo | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and copies without the data sets."""
        return {**self.__dict__, "_splits": None, "_everything": None}

    def release(self) -> None:
        """Frees the data sets."""
        self._splits, self._everything = None, None

    def names(self) -> list[str]:
        """Returns the names of the splits that have samples; ``all`` is there besides."""
        return list(self._opened())

    def __getitem__(self, name: str) -> Any:
        """Returns a data set.

        Raises:
            SplitError: If there is no such split.
            ConfigError: If the labels are in another basis than a loaded checkpoint's.
        """
        if name == "all":
            if self._everything is None:
                self._everything = self.source.everything(self._transform(), self.index_dir)
            return self._everything
        splits = self._opened()
        if name not in splits:
            raise SplitError(
                f"the data have no {name!r} split; they have {list(splits)} (config: data.split, data.source)"
            )
        return splits[name]

    def loader(self, name: str) -> Any:
        """Returns the loader that somebody's data module reads a split with; None where there is none.

        Args:
            name: ``train``, ``val``, ``test`` or ``predict``.
        """
        _ = self[name]
        return self.opened_loader(name)

    def opened_loader(self, name: str) -> Any:
        """Returns that loader, if the split was asked for already.

        Args:
            name: ``train``, ``val``, ``test`` or ``predict``.
        """
        return None if self._splits is None else self._splits.loaders.get(name)

    def _opened(self) -> LazyDatasets:
        """Returns the splits: the checkpoint's, where it was made by the same settings, or new ones."""
        if self._splits is None:
            identity = self.source.split_identity(self.split)
            remembered = self._state is not None and identity == self._state["identity"]
            files = files_from_state(self._state["files"]) if self._state is not None and remembered else None
            self._splits = self.source.datasets(self.split, self._transform(), self.index_dir, files)
            if not remembered:
                self._state = identity and {"identity": identity, "files": files_to_state(self._splits.contents)}
        return self._splits

    def _transform(self) -> Callable[..., Any] | None:
        """Returns what happens to samples as they are read, in this order.

        The pre-transforms, where there are density coefficients; the change to the unit that is wanted, and to a
        checkpoint's basis, where the labels have others.
        """
        required, own = self._required_basis, self.source.basis()
        stored_in = getattr(self.source, "unit", None) or self.unit
        if (required is None or own == required) and stored_in == self.unit:
            return None if own is None else self.transform
        transforms = [] if own is None else single_transforms(self.transform)
        if stored_in != self.unit:
            names = (getattr(self.source, "energy_field", "energy_label"), getattr(self.source, "forces_field", None))
            fields = [name for name in (*names, "gradient_label") if name is not None]
            transforms.append(InUnit(conversion(stored_in, self.unit), fields))
        if required is None or own == required:
            return composed(transforms)
        if own is None or not own.is_subset(required):
            raise ConfigError(f"{_unlike(own, required)} (config: data/source, data.source.basis_info)")
        return composed([*transforms, InBasis(own, required)])

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """Returns which label files train, validate and test, as plain data; None where that is not known."""
        return self._state

    def restore(self, state: Mapping[str, Any] | None, basis_info: BasisInfo | None, resuming: bool = False) -> None:
        """Takes a checkpoint's split, and refuses labels of another basis from now on.

        Args:
            state: From `state`.
            basis_info: The checkpoint's basis.
            resuming: Whether training goes on: then no molecule may train that was held back so far.

        Raises:
            SplitError: If one would.
        """
        self._required_basis = basis_info
        self.release()
        if state is not None:
            state = {**state, "identity": embedded_here(state["identity"])}
        if resuming and state is not None and self.source.split_identity(self.split) not in (None, state["identity"]):
            self._refuse_tested(files_from_state(state["files"]))
        self._state = state

    def _refuse_tested(self, files: Mapping[str, Sequence[str]]) -> None:
        """Refuses a training split with label files that a checkpoint validated or tested on."""
        self._state = None
        training = {Path(file).name for file in self._opened().contents.get("train", ())}
        held_back = {Path(file).name for name in ("val", "test") for file in files.get(name, ())}
        both = sorted(training & held_back)
        self.release()
        if both:
            raise SplitError(
                f"the run that is resumed validated or tested on {counted(len(both), 'molecule')} that would be "
                f"trained on now: {', '.join(both[:5])}{' ...' if len(both) > 5 else ''}; resume with that run's "
                "split (config: data.split, data.source)"
            )


def _unlike(own: BasisInfo | None, required: BasisInfo) -> str:
    """Says in what the labels' basis is not the checkpoint's."""
    if own is None:
        return f"the checkpoint's normaliser belongs to the basis {required}, but the data have no density coefficients"
    if own.p_order != required.p_order:
        return (
            f"the checkpoint's normaliser belongs to labels whose p functions stand in the order {required.p_order!r}, "
            f"but these have {own.p_order!r}: expected the same order"
        )
    return (
        f"the checkpoint's normaliser belongs to the basis {required}, but the labels have {own}: expected some or all "
        "of its elements, with the same functions"
    )


def files_to_state(files: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Writes the label files of each split, compressed: a few bytes for each.

    Args:
        files: Label files of each split.
    """
    here = os.getcwd()
    joined = {name: "\n".join(os.path.join(here, path) for path in paths).encode() for name, paths in files.items()}
    return {name: torch.frombuffer(bytearray(zlib.compress(t)), dtype=torch.uint8) for name, t in joined.items()}


def files_from_state(state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Reads what `files_to_state` wrote.

    Args:
        state: Compressed names by split.
    """
    joined = {name: zlib.decompress(t.numpy().tobytes()).decode() for name, t in state.items()}
    return {name: embedded_here(text).split("\n") for name, text in joined.items()}
