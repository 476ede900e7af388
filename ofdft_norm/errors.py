"""Exceptions of the package, all of them `ValueError`s, and helpers for their messages."""

from collections.abc import Iterable
from difflib import get_close_matches


class OFDFTNormError(ValueError):
    """Base class of every error that `ofdft_norm` raises for bad input."""


class BasisError(OFDFTNormError):
    """An element or a coefficient vector does not fit the density basis."""


class LabelFileError(OFDFTNormError):
    """A label file lacks something, has numbers that are not finite, or does not fit the basis."""


class SplitError(OFDFTNormError):
    """A split of the data set is empty, inconsistent, or names files that do not exist."""


class StatisticsError(OFDFTNormError):
    """Dataset statistics are missing, incomplete, foreign, or cannot be fitted."""


class MissingStatisticError(StatisticsError, KeyError):
    """Statistics have no such key; also a `KeyError`, as STRUCTURES25 raises."""

    __str__ = Exception.__str__  # a KeyError's would be the message's repr


class MissingStatisticsFileError(StatisticsError, FileNotFoundError):
    """There are no statistics at a path; also a `FileNotFoundError`, as STRUCTURES25 raises."""


class NormalizationError(OFDFTNormError):
    """A sample or batch cannot be normalised or denormalised."""


class ConfigError(OFDFTNormError):
    """A configuration value is unknown, of the wrong type, or out of range."""


class BatchError(OFDFTNormError):
    """A sample or batch lacks a field, or has a wrong one."""


def did_you_mean(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """Returns ``; did you mean 'x'?`` with at most n known names for the end of a message; capitals do not matter.

    Examples:
        >>> did_you_mean("sdt", ["std", "mae"]), did_you_mean("Dimension_wise", ["equivariant"])
        ("; did you mean 'std'?", '')
    """
    lower = {candidate.lower(): candidate for candidate in known}
    names = [repr(lower[match]) for match in get_close_matches(name.strip().lower(), lower, n, cutoff)]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def format_count(n: int, noun: str, plural: str | None = None) -> str:
    """Returns a count with its noun.

    Examples:
        >>> format_count(1, "molecule"), format_count(1419, "atom"), format_count(2, "energy", "energies")
        ('1 molecule', '1,419 atoms', '2 energies')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
