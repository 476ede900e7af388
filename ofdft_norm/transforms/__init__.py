"""Pre-transforms: applied to samples in float64, before statistics are computed and before normalisation."""

from torch_geometric.transforms import BaseTransform

# importing the two makes their names known, which samples state in their field `coordinates`
from ofdft_norm.transforms.coordinates import BasisTransforms
from ofdft_norm.transforms.local_frames import LocalFrames
from ofdft_norm.transforms.natural_reparametrization import NaturalReparametrization
from ofdft_norm.transforms.project_gradient import ProjectGradient

__all__ = ["BasisTransforms", "LocalFrames", "NaturalReparametrization", "ProjectGradient", "make_default_transforms"]


def make_default_transforms() -> list[BaseTransform]:
    """Returns the pre-transforms of M-OFDFT and STRUCTURES25: frames, natural reparametrisation, projection."""
    return [BasisTransforms([LocalFrames(), NaturalReparametrization()]), ProjectGradient()]
