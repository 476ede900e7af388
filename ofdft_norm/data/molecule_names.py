"""A molecule's name stands for one geometry in a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ofdft_norm.errors import LabelFileError


class MoleculeNames:
    """Remembers the geometry and file of each name that was read; two geometries of one name are an error.

    What belongs together by name (results of a molecule, samples of its SCF path) would be mixed without a word. Each
    process sees what it reads: ranks of a fit and workers of a loader read parts of a data set. Copies begin anew.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, Path]] = {}

    def __reduce__(self) -> tuple[type[MoleculeNames], tuple[()]]:
        return MoleculeNames, ()

    def check(self, path: Path, name: str, positions: npt.NDArray[np.float64], elements: npt.NDArray[np.int64]) -> None:
        """Compares a molecule with the one that was read under its name.

        Args:
            path: Its label file.
            name: Its name, `mol_id`.
            positions: (n_atom, 3) [bohr].
            elements: (n_atom,) atomic numbers.

        Raises:
            LabelFileError: If they differ; the message names both files.
        """
        geometry = hash((positions.tobytes(), elements.tobytes()))  # differs between processes
        known, file = self._seen.setdefault(name, (geometry, path))
        if known != geometry:
            raise LabelFileError(
                f"{path}: molecule {name!r} has another geometry than the molecule of that name in {file}: expected "
                "one name for each geometry; rename one, or leave it out (config: data.source.exclude)"
            )
