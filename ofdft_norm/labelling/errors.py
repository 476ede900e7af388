"""Exceptions of the label generation."""

from ofdft_norm.errors import OFDFTNormError


class LabellingError(OFDFTNormError):
    """Labels cannot be made as asked: base class of what this subpackage raises."""


class GeometryError(LabellingError):
    """A geometry file cannot be read, repeats a molecule, or holds an element without a basis."""


class KohnShamError(LabellingError):
    """The self-consistent field calculation cannot be run, or did not converge."""


class LabelCheckError(LabellingError):
    """The labels of a molecule contradict each other beyond the tolerances, and are refused."""
