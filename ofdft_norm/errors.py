"""Exceptions of the package: all of them `ValueError`s, so that callers can catch either; and hints in messages."""

from collections.abc import Iterable
from difflib import get_close_matches


class OFDFTNormError(ValueError):
    """Base class of every error that `ofdft_norm` raises for bad input."""


class BasisError(OFDFTNormError):
    """An element or a coefficient vector does not fit the density basis."""


class LabelFileError(OFDFTNormError):
    """A label file is missing something, holds non-finite numbers, or does not fit the basis."""


class SplitError(OFDFTNormError):
    """A split of the data set is empty, inconsistent, or names files that do not exist."""


class StatisticsError(OFDFTNormError):
    """Dataset statistics are missing, incomplete, foreign, or could not be fitted."""


class MissingStatisticError(StatisticsError, KeyError):
    """Statistics have no such key; also a `KeyError`, as STRUCTURES25 raises."""

    __str__ = Exception.__str__  # a KeyError's would be the message's repr


class MissingStatisticsFileError(StatisticsError, FileNotFoundError):
    """There are no statistics at a path; also a `FileNotFoundError`, as STRUCTURES25 raises."""


class NormalizationError(OFDFTNormError):
    """A sample or batch cannot be normalised, or denormalised, as asked."""


class ConfigError(OFDFTNormError):
    """A configuration value is unknown, of the wrong type, or out of range."""


class BatchError(OFDFTNormError):
    """A batch lacks a field that the package needs."""


def closest(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Returns the known names that are most like a name, whatever its capitals; the closest first.

    Args:
        name: What was given.
        known: What could have been meant.
        n: At most so many.
        cutoff: How alike they must be at least, from 0 to 1; see `difflib.get_close_matches`.

    Example:
        >>> closest("Dimension_wise", ["dimensionwise", "equivariant", "none"])
        ['dimensionwise']
    """
    lower = {candidate.lower(): candidate for candidate in known}
    return [lower[match] for match in get_close_matches(name.strip().lower(), lower, n, cutoff)]


def did_you_mean(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """Returns ``; did you mean 'x'?`` for the end of a message; nothing where no known name is close.

    Args:
        name: What was given.
        known: What could have been meant.
        n: At most so many are named.
        cutoff: See `closest`.

    Example:
        >>> did_you_mean("sdt", ["std", "mae"])
        "; did you mean 'std'?"
    """
    names = closest(name, known, n, cutoff)
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Returns a number of things in words.

    Args:
        n: How many.
        noun: What one is called.
        plural: What several are called; None: with an s.

    Example:
        >>> counted(1, "molecule"), counted(1419, "atom"), counted(2, "energy", "energies")
        ('1 molecule', '1,419 atoms', '2 energies')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
