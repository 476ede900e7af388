"""A small real model, for the worked example."""

from ofdft_norm.example.density_module import DensityModule
from ofdft_norm.example.density_network import DensityNetwork
from ofdft_norm.example.label_errors import LabelErrors

__all__ = ["DensityModule", "DensityNetwork", "LabelErrors"]
