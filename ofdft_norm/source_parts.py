"""The raw data sets behind a data module, by part: opened when they are asked for, released when a stage ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_geometric.transforms import Compose

from ofdft_norm.checkpoint_state import files_from_state, files_to_state
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.in_basis import InBasis
from ofdft_norm.data.lazy_parts import LazyParts
from ofdft_norm.data.pre_transforms import composed, single_transforms
from ofdft_norm.errors import ConfigError, SplitError


class SourceParts:
    """Raw data sets of ``train``, ``val``, ``test`` and ``all``.

    The split is remembered in checkpoints: a run that is tested or resumed after label files were added or removed goes
    on with the molecules that it began with, as long as the source's paths and the split's settings are the same.

    Args:
        source: Of `ofdft_norm.config`.
        split: Which molecules belong to which part.
        pre_transforms: Applied to each sample.
        index_dir: Folder that remembers the number of SCF iterations of many label files.
    """

    def __init__(self, source: Any, split: Any, pre_transforms: Sequence[Callable[..., Any]], index_dir: Path) -> None:
        self.source = source
        self.split = split
        self.index_dir = index_dir
        transforms = list(pre_transforms)
        self.transform = None if not transforms else transforms[0] if len(transforms) == 1 else Compose(transforms)
        self._parts: LazyParts | None = None
        self._everything: Any = None
        self._state: dict[str, Any] | None = None
        self._required_basis: BasisInfo | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and copies without the data sets."""
        return {**self.__dict__, "_parts": None, "_everything": None}

    def release(self) -> None:
        """Frees the data sets."""
        self._parts, self._everything = None, None

    def names(self) -> list[str]:
        """Returns the names of the split's parts; ``all`` is there besides."""
        return list(self._split_parts())

    def __getitem__(self, part: str) -> Any:
        """Returns a part's data set.

        Raises:
            SplitError: If there is no such part.
            ConfigError: If the labels are in another basis than a loaded checkpoint's.
        """
        if part == "all":
            if self._everything is None:
                self._everything = self.source.everything(self._transform(), self.index_dir)
            return self._everything
        parts = self._split_parts()
        if part not in parts:
            raise SplitError(
                f"the data have no {part!r} part; they have {list(parts)} (config: data.split, data.source)"
            )
        return parts[part]

    def _split_parts(self) -> LazyParts:
        if self._parts is None:
            identity = self.source.split_identity(self.split)
            known = self._state is not None and identity == self._state["identity"]
            files = files_from_state(self._state["files"]) if self._state is not None and known else None
            self._parts = self.source.datasets(self.split, self._transform(), self.index_dir, files)
            if not known:
                self._state = identity and {"identity": identity, "files": files_to_state(self._parts.contents)}
        return self._parts

    def _transform(self) -> Callable[..., Any] | None:
        """Returns the pre-transforms, followed by the change to a checkpoint's basis where the labels have another."""
        required = self._required_basis
        own = None if required is None else self.source.basis()
        if required is None or own == required:
            return self.transform
        if own is None or not own.is_subset(required):
            raise ConfigError(
                f"the checkpoint's normaliser belongs to the basis {required}, but the labels have {own}: expected "
                "some or all of its elements, with the same functions (config: data.source.basis_info)"
            )
        return composed([*single_transforms(self.transform), InBasis(own, required)])

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """Returns the split as plain data; None where there is none, or none was made yet."""
        return self._state

    def restore(self, state: Mapping[str, Any] | None, basis_info: BasisInfo | None) -> None:
        """Takes a checkpoint's split, and refuses labels of another basis from now on."""
        self._state = None if state is None else dict(state)
        self._required_basis = basis_info
        self.release()
