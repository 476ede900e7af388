"""Small real models, for the worked examples: a density functional and an interatomic potential."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ofdft_norm.example.density_module import DensityModule as DensityModule
from ofdft_norm.example.density_network import DensityNetwork as DensityNetwork
from ofdft_norm.example.exact_terms import ExactTerms as ExactTerms
from ofdft_norm.example.metrics import LabelErrors as LabelErrors
from ofdft_norm.example.potential import PotentialModule as PotentialModule
from ofdft_norm.example.potential import labelled_clusters as labelled_clusters

if TYPE_CHECKING:
    from ofdft_norm.example.calculator import PotentialCalculator as PotentialCalculator
    from ofdft_norm.example.calculator import potential_calculator as potential_calculator
else:

    def __getattr__(name: str) -> Any:  # the calculator needs ASE
        if name.lower().replace("_", "") != "potentialcalculator":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.calculator"), name)
