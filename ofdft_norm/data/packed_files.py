"""The files of a packed set while they grow: appended to, and cut back to what was whole when a run was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.packed import OFFSETS, ArraySpec
from ofdft_norm.errors import ConfigError

PROGRESS = "progress.json"

# A .npy file's header, written when the array's length is known: longer than any that these arrays need.
_HEADER = 128


@dataclass
class Progress:
    """How far a set is packed.

    Attributes:
        n_molecules: Molecules that are whole.
        lengths: Length of each array.
    """

    n_molecules: int
    lengths: dict[str, int]

    @classmethod
    def read(cls, work: Path, plan: Mapping[str, Any]) -> Progress | None:
        """Returns what an earlier run has done; None: there was none.

        Args:
            work: Folder of the unfinished set.
            plan: What is to be packed, as plain data.

        Raises:
            ConfigError: If it followed another plan.
        """
        if not (work / PROGRESS).exists():
            return None
        written = json.loads((work / PROGRESS).read_text(encoding="utf-8"))
        differing = [key for key, value in plan.items() if written["plan"].get(key) != value]
        if differing:
            raise ConfigError(
                f"{work}: packing was begun with other {differing}: use those again, or delete this folder"
            )
        return cls(**written["progress"])


class GrowingArrays:
    """Appends to the arrays' files; use as a context manager.

    Args:
        work: Folder of the files.
        specs: What each array is.
        plan: What is packed, in plain types: a later run of the same plan goes on.
    """

    def __init__(self, work: Path, specs: Mapping[str, ArraySpec], plan: Mapping[str, Any]) -> None:
        self.work = work
        self.specs = specs
        self.plan = plan
        begun = Progress.read(work, plan)
        self.done = Progress(0, dict.fromkeys(specs, 0)) if begun is None else begun
        self.unsaved = 0
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> GrowingArrays:
        for name, spec in self.specs.items():
            file = self._stack.enter_context(open(self.work / f"{name}.npy", "r+b" if self.done.n_molecules else "w+b"))
            end = _HEADER + self.done.lengths[name] * spec.entry_bytes
            file.truncate(end)  # what was written after the last `save` may not be whole
            file.seek(end)
            self._files[name] = file
        if self.done.n_molecules == 0:
            self._append({f"{axis}_offsets": np.zeros(1, dtype=np.int64) for axis in OFFSETS})
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def molecules(self, *names: str) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        """Yields the entries of some arrays, molecule by molecule, that an earlier run has packed.

        Args:
            names: Names of arrays, none of them offsets.
        """
        if not self.done.n_molecules:
            return iter(())
        ends = [self._read(f"{self.specs[name].counts}_offsets")[1:-1] for name in names]
        return zip(*(np.split(self._read(name), end) for name, end in zip(names, ends, strict=True)), strict=True)

    def _read(self, name: str) -> npt.NDArray[Any]:
        spec, n = self.specs[name], self.done.lengths[name]
        values = np.fromfile(self.work / f"{name}.npy", spec.dtype, n * math.prod(spec.entry_shape), offset=_HEADER)
        return values.reshape(n, *spec.entry_shape)

    def append_molecule(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Appends a molecule's entries of all arrays but the offsets, which follow from them.

        Args:
            values: Entries by name of the array.
        """
        self._append(values)
        ends = {self.specs[name].counts: self.done.lengths[name] for name in values}
        self._append({f"{axis}_offsets": np.array([end], dtype=np.int64) for axis, end in ends.items()})
        self.done.n_molecules += 1

    def _append(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in values.items():
            content = np.ascontiguousarray(array, dtype=self.specs[name].dtype).tobytes()
            self._files[name].write(content)
            self.done.lengths[name] += len(array)
            self.unsaved += len(content)

    def save(self) -> None:
        """Makes sure that everything so far is on disk, and writes down that it is."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        aside = self.work / f"{PROGRESS}.new"
        aside.write_text(json.dumps({"plan": dict(self.plan), "progress": asdict(self.done)}), encoding="utf-8")
        os.replace(aside, self.work / PROGRESS)
        self.unsaved = 0

    def write_headers(self) -> None:
        """Makes .npy files of the files: their lengths are known now."""
        for name, spec in self.specs.items():
            header = np.lib.format.magic(1, 0)
            shape = (self.done.lengths[name], *spec.entry_shape)
            text = repr({"descr": spec.dtype, "fortran_order": False, "shape": shape})
            header += (_HEADER - len(header) - 2).to_bytes(2, "little")
            content = header + text.encode().ljust(_HEADER - len(header) - 1) + b"\n"
            self._files[name].seek(0)
            self._files[name].write(content)
        self.save()
