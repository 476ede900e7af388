"""Frames of files that ASE reads: each is read when it is asked for, where the format allows it."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.errors import LabelFileError


class Frames:
    """The frames of a file, each read when it is asked for where the format allows, else all at once.

    Args:
        path: A file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def _all(self) -> list[Any]:
        read: list[Any] = []
        with _named(lambda: f"{self.path}@{len(read)}"):
            read.extend(_ase("io").iread(self.path, index=":"))
        return read

    def __len__(self) -> int:
        return len(self._all)

    def atoms(self, index: int) -> Any:
        """Returns a frame as `ase.Atoms`.

        Args:
            index: Which frame of the file, from 0.
        """
        return self._all[index]

    def info(self, index: int) -> dict[str, Any]:
        """Returns what is known of a frame besides its atoms.

        Args:
            index: Which frame of the file, from 0.
        """
        return dict(self._all[index].info)


class ExtendedXYZ(Frames):
    """Frames of an (extended) XYZ file, by where they begin."""

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """(n_frames + 1,) offsets; blank lines between frames are passed over."""
        starts: list[int] = []
        position, line_number = 0, 0
        with open(self.path, "rb") as file:
            for line in file:
                line_number += 1
                if line.strip():
                    n_atoms = _n_atoms(line, f"{self.path}:{line_number}", len(starts))
                    lines = list(islice(file, n_atoms + 1))
                    if sum(1 for atom in lines[1:] if atom.strip()) < n_atoms:
                        place = f"{self.path}@{len(starts)}"
                        raise LabelFileError(f"{place}: the file ends within this frame (config: data.source.paths)")
                    starts.append(position)
                    position += sum(map(len, lines))
                    line_number += len(lines)
                position += len(line)
        return np.array([*starts, position], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def atoms(self, index: int) -> Any:
        """Reads a frame."""
        text = self._text(index)
        with _named(lambda: f"{self.path}@{index}"):
            return _ase("io").read(io.StringIO(text), format="extxyz", index=0)

    def info(self, index: int) -> dict[str, Any]:
        """Reads a frame's comment line."""
        comment = self._text(index).split("\n", 2)[1]
        return dict(_ase("io.extxyz").key_val_str_to_dict(comment))

    def _text(self, index: int) -> str:
        with open(self.path, "rb") as file:
            file.seek(self._starts[index])
            return file.read(self._starts[index + 1] - self._starts[index]).decode().rstrip() + "\n"


class Database(Frames):
    """Rows of an ASE database."""

    @cached_property
    def _ids(self) -> list[int]:
        with _named(lambda: self.path):
            return [row.id for row in self._connection().select(include_data=False, columns=["id"])]

    def _connection(self) -> Any:
        return _ase("db").connect(self.path)  # reads when it is asked to; nothing stays open

    def __len__(self) -> int:
        return len(self._ids)

    def atoms(self, index: int) -> Any:
        """Reads a row."""
        with _named(lambda: f"{self.path}@{index}"):
            return self._connection().get_atoms(self._ids[index], add_additional_information=True)

    def info(self, index: int) -> dict[str, Any]:
        """Reads a row's key-value pairs."""
        return dict(self._connection().get(self._ids[index]).key_value_pairs)


class Trajectory(Frames):
    """Frames of ASE's own trajectory format."""

    def _opened(self) -> Any:
        with _named(lambda: self.path):
            return _ase("io.trajectory").Trajectory(self.path)

    @cached_property
    def _length(self) -> int:
        with self._opened() as trajectory:
            return len(trajectory)

    def __len__(self) -> int:
        return self._length

    def atoms(self, index: int) -> Any:
        """Reads a frame."""
        with self._opened() as trajectory, _named(lambda: f"{self.path}@{index}"):
            return trajectory[index]

    def info(self, index: int) -> dict[str, Any]:
        """Reads a frame's `info`."""
        return dict(self.atoms(index).info)


_FORMATS: dict[str, type[Frames]] = {
    ".xyz": ExtendedXYZ,
    ".extxyz": ExtendedXYZ,
    ".db": Database,
    ".traj": Trajectory,
}


def open_frames(path: str, opened: dict[str, Frames]) -> Frames:
    """Returns the frames of a file, those that are open already from `opened`, to which others are added.

    Args:
        path: An extended XYZ file, an ASE database, or any format of ``ase.io``.
        opened: Frames of files that were opened before, by path; it is added to.
    """
    if path not in opened:
        opened[path] = _FORMATS.get(Path(path).suffix.lower(), Frames)(path)
    return opened[path]


def _ase(module: str) -> Any:
    """Returns a module of ASE.

    Raises:
        ImportError: If ASE is not installed.
    """
    try:
        return importlib.import_module(f"ase.{module}")
    except ImportError as error:
        raise ImportError(
            f"reading frames needs ASE ({error}); install it with: pip install 'ofdft-norm[ase]'"
        ) from error


@contextmanager
def _named(where: Callable[[], str]) -> Iterator[None]:
    """Names the frame in whatever goes wrong inside the readers of ASE's many formats."""
    try:
        yield
    except (LabelFileError, ImportError):
        raise
    except Exception as error:
        raise LabelFileError(
            f"{where()}: ASE cannot read this: {type(error).__name__}: {error} (config: data.source.paths)"
        ) from error


def _n_atoms(line: bytes, where: str, frame: int) -> int:
    try:
        return int(line)
    except ValueError:
        raise LabelFileError(
            f"{where}: frame {frame} begins with {line.decode(errors='replace').strip()!r:.60}, expected its number of "
            "atoms (config: data.source.paths)"
        ) from None
