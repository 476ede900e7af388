"""All settings in one module, for ``_target_`` in config files; each class is defined next to the code that uses it."""

from ofdft_norm.data.ase import ASEFiles
from ofdft_norm.data.loader import LoaderConfig
from ofdft_norm.data.sources import EmbeddedLabels, LabelFiles, PackedLabels, SampleFile
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.structures25 import Structures25Labels
from ofdft_norm.data.wrapped import WrappedData
from ofdft_norm.normalization.atom_ref import AtomRefConfig
from ofdft_norm.normalization.dimension_wise_rescaling import RescalingConfig
from ofdft_norm.normalization.linear_references import LinearReferencesConfig
from ofdft_norm.statistics.fit_statistics import StatisticsConfig

__all__ = [
    "ASEFiles",
    "AtomRefConfig",
    "EmbeddedLabels",
    "LabelFiles",
    "LinearReferencesConfig",
    "LoaderConfig",
    "PackedLabels",
    "RescalingConfig",
    "SampleFile",
    "SplitConfig",
    "StatisticsConfig",
    "Structures25Labels",
    "WrappedData",
]
