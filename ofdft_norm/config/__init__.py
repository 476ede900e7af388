"""The settings by one name, for ``_target_`` in config files; each stands beside what it configures."""

from ofdft_norm.config.structures25 import Structures25Labels
from ofdft_norm.data.label_source import EmbeddedLabels, LabelFiles
from ofdft_norm.data.loader import LoaderConfig
from ofdft_norm.data.packed_labels import PackedLabels
from ofdft_norm.data.sample_file import SampleFile
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.wrapped_data import WrappedData
from ofdft_norm.normalization.atom_ref import AtomRefConfig
from ofdft_norm.normalization.dimension_wise_rescaling import RescalingConfig
from ofdft_norm.normalization.element_references import LinearReferencesConfig
from ofdft_norm.statistics.config import StatisticsConfig

__all__ = [
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
    "nothing",
]


def nothing() -> None:
    """Stands for "none" in config groups: a group's file cannot itself be null."""
