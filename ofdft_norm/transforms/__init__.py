"""Pre-transforms: what happens to a sample in float64, before statistics are taken and before it is normalised."""

# importing the two makes them known by name: samples say in their field `coordinates` which they have seen
from ofdft_norm.transforms.local_frames import LocalFrames
from ofdft_norm.transforms.natural_reparametrization import NaturalReparametrization

__all__ = ["LocalFrames", "NaturalReparametrization"]
