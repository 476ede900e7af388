"""Normalisation of machine-learned orbital-free DFT labels as a PyTorch Lightning DataModule plug-in."""

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import OFData
from ofdft_norm.data.of_dataset import OFDataset
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.mixin import NormalizerMixin
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.given_references import create_element_references, references_from_values
from ofdft_norm.normalization.initial_guess_delta import InitialGuessDelta
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.reference_config import load_references_from_config
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.sample_weighers import (
    ConstantSampleWeigher,
    GroundStateOnlySampleWeigher,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    MinSCFIterationSampleWeigher,
    ProductSampleWeigher,
    SampleWeigher,
)
from ofdft_norm.transforms.basis_transforms import BasisTransforms
from ofdft_norm.transforms.local_frames import LocalFrames
from ofdft_norm.transforms.natural_reparametrization import NaturalReparametrization
from ofdft_norm.transforms.project_gradient import ProjectGradient, project_gradient

__all__ = [
    "AtomRef",
    "BasisInfo",
    "BasisTransforms",
    "ConstantSampleWeigher",
    "DatasetStatistics",
    "DimensionWiseRescaling",
    "GroundStateOnlySampleWeigher",
    "HasEnergyLabelSampleWeigher",
    "InitialGuessDelta",
    "InitialGuessOnlySampleWeigher",
    "LinearReferences",
    "LocalFrames",
    "MinSCFIterationSampleWeigher",
    "NaturalReparametrization",
    "Normalizer",
    "NormalizerMixin",
    "OFDFTDataModule",
    "OFData",
    "OFDataset",
    "ProductSampleWeigher",
    "ProjectGradient",
    "SampleWeigher",
    "create_element_references",
    "fit_linear_references",
    "load_references_from_config",
    "project_gradient",
    "references_from_values",
]
