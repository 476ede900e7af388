"""Which SCF iterations of which molecule are the samples of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.errors import ConfigError, LabelFileError

IntArray = npt.NDArray[np.int64]


class ScfSelection:
    """Numbers the selected SCF iterations of many molecules, molecule after molecule.

    Args:
        n_scf_iterations: (n_molecules,) length of each molecule's SCF path.
        limit: Which SCF iterations to use, as STRUCTURES25 reads it: a number s >= 0 means those from s on, s < 0 the
            last -s (-1: the converged density), a list the iterations in it (negative ones counted from the last; those
            that a molecule does not have are passed over). None: all.
        keep_initial_guess: Whether iteration 0, which has no energy label, is added to what `limit` selects, or left
            out.
        name_of: Returns the name of a molecule, for messages.

    Attributes:
        sample_offsets: (n_molecules + 1,) index of each molecule's first sample.

    Raises:
        ConfigError: If `limit` is nothing of the above.
        LabelFileError: If nothing is selected of a molecule.

    Example:
        >>> selection = ScfSelection([4, 2], limit=-2, keep_initial_guess=False, name_of=str)
        >>> selection.sample_offsets.tolist(), selection.iterations(0).tolist(), selection.iterations(1).tolist()
        ([0, 2, 3], [2, 3], [1])
    """

    def __init__(
        self,
        n_scf_iterations: Sequence[int] | IntArray,
        limit: Any,
        keep_initial_guess: bool,
        name_of: Callable[[int], Any],
    ) -> None:
        self.limit = _check_limit(limit)
        self.keep_initial_guess = keep_initial_guess
        self.n_scf_iterations = np.asarray(n_scf_iterations, dtype=np.int64)
        # molecules with paths of equal length have the same iterations: there are few lengths
        lengths, first, self._row = np.unique(self.n_scf_iterations, return_index=True, return_inverse=True)
        selected = [self._select(int(n), name_of, int(m)) for n, m in zip(lengths, first, strict=True)]
        self._n_selected = np.array([len(iterations) for iterations in selected], dtype=np.int64)
        self._iterations = np.zeros((len(selected), max(self._n_selected, default=0)), dtype=np.int64)
        for row, iterations in zip(self._iterations, selected, strict=True):
            row[: len(iterations)] = iterations
        self.sample_offsets = np.concatenate([[0], np.cumsum(self._n_selected[self._row])]).astype(np.int64)

    def _select(self, n: int, name_of: Callable[[int], Any], molecule: int) -> list[int]:
        if self.limit is None:
            selected = set(range(n))
        elif isinstance(self.limit, int):
            selected = set(range(self.limit if self.limit >= 0 else max(0, n + self.limit), n))
        else:
            selected = {i % n for i in self.limit if -n <= i < n}
        selected = selected | {0} if self.keep_initial_guess else selected - {0}
        if not selected or n < 1:
            raise LabelFileError(
                f"{name_of(molecule)}: none of its {n} SCF iterations is selected by limit_scf_iterations={self.limit} "
                f"with keep_initial_guess={self.keep_initial_guess}: select others (config: "
                "data.source.limit_scf_iterations, data.source.keep_initial_guess) or leave the file out (config: "
                "data.source.exclude)"
            )
        return sorted(selected)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.sample_offsets[-1])

    def iterations(self, molecule: int) -> IntArray:
        """Returns the selected SCF iterations of a molecule, in order.

        Args:
            molecule: Which molecule, from 0.
        """
        row = self._row[molecule]
        return self._iterations[row, : self._n_selected[row]]

    def locate(self, samples: Any) -> tuple[Any, Any]:
        """Returns molecule and SCF iteration of a sample, or of an array of samples.

        Args:
            samples: Index or indices over all selected samples, from 0.
        """
        molecules = np.searchsorted(self.sample_offsets, samples, side="right") - 1
        return molecules, self._iterations[self._row[molecules], samples - self.sample_offsets[molecules]]


def _check_limit(limit: Any) -> int | list[int] | None:
    """Returns plain Python numbers; refuses what would select something unforeseen, such as the letters of a word."""
    if limit is None:
        return None
    several = isinstance(limit, Sequence) and not isinstance(limit, str)
    values = list(limit) if several else [limit]
    if not all(isinstance(i, Integral) and not isinstance(i, bool) for i in values):
        raise ConfigError(
            f"limit_scf_iterations = {limit!r}: expected null, a whole number or a list of whole numbers (config: "
            "data.source.limit_scf_iterations)"
        )
    numbers = [int(i) for i in values]
    return numbers if several else numbers[0]
