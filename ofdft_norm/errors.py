"""Exceptions of the package: all of them `ValueError`s, so that callers can catch either."""


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


class NormalizationError(OFDFTNormError):
    """A sample or batch cannot be normalised, or denormalised, as asked."""


class ConfigError(OFDFTNormError):
    """A configuration value is unknown, of the wrong type, or out of range."""


class BatchError(OFDFTNormError):
    """A batch lacks a field that the package needs."""
