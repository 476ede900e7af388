"""Normalisation of machine-learned orbital-free DFT labels as a PyTorch Lightning DataModule plug-in.

Its names are imported when they are first used: `import ofdft_norm` alone loads neither torch nor Lightning.
"""

from typing import TYPE_CHECKING

from ofdft_norm.lazy import lazy_names

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from ofdft_norm.config.readable_errors import readable_errors as readable_errors
    from ofdft_norm.data.basis_info import BasisInfo as BasisInfo
    from ofdft_norm.data.of_data import OFData as OFData
    from ofdft_norm.data.of_dataset import OFDataset as OFDataset
    from ofdft_norm.datamodule import OFDFTDataModule as OFDFTDataModule
    from ofdft_norm.mixin import NormalizerMixin as NormalizerMixin
    from ofdft_norm.normalization.atom_ref import AtomRef as AtomRef
    from ofdft_norm.normalization.dataset_references import DatasetReferences as DatasetReferences
    from ofdft_norm.normalization.dataset_references import fit_references_by_dataset as fit_references_by_dataset
    from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling as DimensionWiseRescaling
    from ofdft_norm.normalization.element_references import LinearReferences as LinearReferences
    from ofdft_norm.normalization.fit_linear_references import fit_linear_references as fit_linear_references
    from ofdft_norm.normalization.given_references import create_element_references as create_element_references
    from ofdft_norm.normalization.given_references import references_from_values as references_from_values
    from ofdft_norm.normalization.initial_guess_delta import InitialGuessDelta as InitialGuessDelta
    from ofdft_norm.normalization.normalizer import Normalizer as Normalizer
    from ofdft_norm.normalization.reference_config import load_references_from_config as load_references_from_config
    from ofdft_norm.statistics.dataset_statistics import DatasetStatistics as DatasetStatistics
    from ofdft_norm.statistics.sample_weighers import ConstantSampleWeigher as ConstantSampleWeigher
    from ofdft_norm.statistics.sample_weighers import GroundStateOnlySampleWeigher as GroundStateOnlySampleWeigher
    from ofdft_norm.statistics.sample_weighers import HasEnergyLabelSampleWeigher as HasEnergyLabelSampleWeigher
    from ofdft_norm.statistics.sample_weighers import InitialGuessOnlySampleWeigher as InitialGuessOnlySampleWeigher
    from ofdft_norm.statistics.sample_weighers import MinSCFIterationSampleWeigher as MinSCFIterationSampleWeigher
    from ofdft_norm.statistics.sample_weighers import ProductSampleWeigher as ProductSampleWeigher
    from ofdft_norm.statistics.sample_weighers import SampleWeigher as SampleWeigher
    from ofdft_norm.transforms.basis_transforms import BasisTransforms as BasisTransforms
    from ofdft_norm.transforms.local_frames import LocalFrames as LocalFrames
    from ofdft_norm.transforms.natural_reparametrization import NaturalReparametrization as NaturalReparametrization
    from ofdft_norm.transforms.project_gradient import ProjectGradient as ProjectGradient
    from ofdft_norm.transforms.project_gradient import project_gradient as project_gradient
    from ofdft_norm.version import __version__ as __version__

_MODULES = {
    "__version__": "version",
    "AtomRef": "normalization.atom_ref",
    "BasisInfo": "data.basis_info",
    "BasisTransforms": "transforms.basis_transforms",
    "ConstantSampleWeigher": "statistics.sample_weighers",
    "DatasetReferences": "normalization.dataset_references",
    "DatasetStatistics": "statistics.dataset_statistics",
    "DimensionWiseRescaling": "normalization.dimension_wise_rescaling",
    "GroundStateOnlySampleWeigher": "statistics.sample_weighers",
    "HasEnergyLabelSampleWeigher": "statistics.sample_weighers",
    "InitialGuessDelta": "normalization.initial_guess_delta",
    "InitialGuessOnlySampleWeigher": "statistics.sample_weighers",
    "LinearReferences": "normalization.element_references",
    "LocalFrames": "transforms.local_frames",
    "MinSCFIterationSampleWeigher": "statistics.sample_weighers",
    "NaturalReparametrization": "transforms.natural_reparametrization",
    "Normalizer": "normalization.normalizer",
    "NormalizerMixin": "mixin",
    "OFDFTDataModule": "datamodule",
    "OFData": "data.of_data",
    "OFDataset": "data.of_dataset",
    "ProductSampleWeigher": "statistics.sample_weighers",
    "ProjectGradient": "transforms.project_gradient",
    "SampleWeigher": "statistics.sample_weighers",
    "create_element_references": "normalization.given_references",
    "fit_linear_references": "normalization.fit_linear_references",
    "fit_references_by_dataset": "normalization.dataset_references",
    "load_references_from_config": "normalization.reference_config",
    "project_gradient": "transforms.project_gradient",
    "readable_errors": "config.readable_errors",
    "references_from_values": "normalization.given_references",
}
__all__ = [*_MODULES]
if not TYPE_CHECKING:  # else type checkers would accept any name
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
