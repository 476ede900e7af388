"""Normalisation of labels for machine-learned orbital-free DFT as a PyTorch Lightning DataModule plug-in.

Names are imported at their first use: `import ofdft_norm` alone loads neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from ofdft_norm.data.basis import BasisInfo as BasisInfo
    from ofdft_norm.data.dataset import OFDataset as OFDataset
    from ofdft_norm.data.files import __version__ as __version__
    from ofdft_norm.data.sample import OFData as OFData
    from ofdft_norm.datamodule import OFDFTDataModule as OFDFTDataModule
    from ofdft_norm.hydra_app.readable_errors import readable_errors as readable_errors
    from ofdft_norm.mixin import NormalizerMixin as NormalizerMixin
    from ofdft_norm.normalization.atom_ref import AtomRef as AtomRef
    from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling as DimensionWiseRescaling
    from ofdft_norm.normalization.fit_references import fit_linear_references as fit_linear_references
    from ofdft_norm.normalization.fit_references import fit_references_by_dataset as fit_references_by_dataset
    from ofdft_norm.normalization.initial_guess_delta import InitialGuessDelta as InitialGuessDelta
    from ofdft_norm.normalization.linear_references import DatasetReferences as DatasetReferences
    from ofdft_norm.normalization.linear_references import LinearReferences as LinearReferences
    from ofdft_norm.normalization.normalizer import Normalizer as Normalizer
    from ofdft_norm.normalization.reference_files import create_element_references as create_element_references
    from ofdft_norm.normalization.reference_files import load_references_from_config as load_references_from_config
    from ofdft_norm.normalization.reference_files import references_from_values as references_from_values
    from ofdft_norm.statistics.store import DatasetStatistics as DatasetStatistics
    from ofdft_norm.statistics.weighers import ConstantSampleWeigher as ConstantSampleWeigher
    from ofdft_norm.statistics.weighers import GroundStateOnlySampleWeigher as GroundStateOnlySampleWeigher
    from ofdft_norm.statistics.weighers import HasEnergyLabelSampleWeigher as HasEnergyLabelSampleWeigher
    from ofdft_norm.statistics.weighers import InitialGuessOnlySampleWeigher as InitialGuessOnlySampleWeigher
    from ofdft_norm.statistics.weighers import MinSCFIterationSampleWeigher as MinSCFIterationSampleWeigher
    from ofdft_norm.statistics.weighers import ProductSampleWeigher as ProductSampleWeigher
    from ofdft_norm.statistics.weighers import SampleWeigher as SampleWeigher
    from ofdft_norm.transforms.coordinates import BasisTransforms as BasisTransforms
    from ofdft_norm.transforms.local_frames import LocalFrames as LocalFrames
    from ofdft_norm.transforms.natural_reparametrization import NaturalReparametrization as NaturalReparametrization
    from ofdft_norm.transforms.project_gradient import ProjectGradient as ProjectGradient
    from ofdft_norm.transforms.project_gradient import project_gradient as project_gradient

_MODULES = {
    "data.basis": "BasisInfo",
    "data.dataset": "OFDataset",
    "data.files": "__version__",
    "data.sample": "OFData",
    "datamodule": "OFDFTDataModule",
    "hydra_app.readable_errors": "readable_errors",
    "mixin": "NormalizerMixin",
    "normalization.atom_ref": "AtomRef",
    "normalization.dimension_wise_rescaling": "DimensionWiseRescaling",
    "normalization.fit_references": "fit_linear_references fit_references_by_dataset",
    "normalization.initial_guess_delta": "InitialGuessDelta",
    "normalization.linear_references": "DatasetReferences LinearReferences",
    "normalization.normalizer": "Normalizer",
    "normalization.reference_files": "create_element_references load_references_from_config references_from_values",
    "statistics.store": "DatasetStatistics",
    "statistics.weighers": "ConstantSampleWeigher GroundStateOnlySampleWeigher HasEnergyLabelSampleWeigher "
    "InitialGuessOnlySampleWeigher MinSCFIterationSampleWeigher ProductSampleWeigher SampleWeigher",
    "transforms.coordinates": "BasisTransforms",
    "transforms.local_frames": "LocalFrames",
    "transforms.natural_reparametrization": "NaturalReparametrization",
    "transforms.project_gradient": "ProjectGradient project_gradient",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = [*_MODULE_OF]

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)
