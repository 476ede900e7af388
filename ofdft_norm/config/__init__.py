"""The settings by one name, for ``_target_`` in config files; each stands beside what it configures.

They are imported when they are first used: command lines need `readable_errors` alone.
"""

from typing import TYPE_CHECKING

from ofdft_norm.lazy import lazy_names

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from ofdft_norm.config.structures25 import Structures25Labels as Structures25Labels
    from ofdft_norm.data.ase_files import ASEFiles as ASEFiles
    from ofdft_norm.data.label_source import EmbeddedLabels as EmbeddedLabels
    from ofdft_norm.data.label_source import LabelFiles as LabelFiles
    from ofdft_norm.data.loader import LoaderConfig as LoaderConfig
    from ofdft_norm.data.packed_labels import PackedLabels as PackedLabels
    from ofdft_norm.data.sample_file import SampleFile as SampleFile
    from ofdft_norm.data.split import SplitConfig as SplitConfig
    from ofdft_norm.data.wrapped_data import WrappedData as WrappedData
    from ofdft_norm.normalization.atom_ref import AtomRefConfig as AtomRefConfig
    from ofdft_norm.normalization.dimension_wise_rescaling import RescalingConfig as RescalingConfig
    from ofdft_norm.normalization.element_references import LinearReferencesConfig as LinearReferencesConfig
    from ofdft_norm.statistics.config import StatisticsConfig as StatisticsConfig

_MODULES = {
    "ASEFiles": "data.ase_files",
    "AtomRefConfig": "normalization.atom_ref",
    "EmbeddedLabels": "data.label_source",
    "LabelFiles": "data.label_source",
    "LinearReferencesConfig": "normalization.element_references",
    "LoaderConfig": "data.loader",
    "PackedLabels": "data.packed_labels",
    "RescalingConfig": "normalization.dimension_wise_rescaling",
    "SampleFile": "data.sample_file",
    "SplitConfig": "data.split",
    "StatisticsConfig": "statistics.config",
    "Structures25Labels": "config.structures25",
    "WrappedData": "data.wrapped_data",
}
__all__ = [*_MODULES, "nothing"]
if not TYPE_CHECKING:  # else type checkers would accept any name
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)


def nothing() -> None:
    """Stands for "none" in config groups: a group's file cannot itself be null."""
