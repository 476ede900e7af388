"""Small real models, for the worked examples: a density functional and an interatomic potential."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from ofdft_norm.example.calculator import PotentialCalculator as PotentialCalculator
    from ofdft_norm.example.calculator import potential_calculator as potential_calculator
    from ofdft_norm.example.density_module import DensityModule as DensityModule
    from ofdft_norm.example.density_network import DensityNetwork as DensityNetwork
    from ofdft_norm.example.exact_terms import ExactTerms as ExactTerms
    from ofdft_norm.example.metrics import LabelErrors as LabelErrors
    from ofdft_norm.example.potential import PotentialModule as PotentialModule
    from ofdft_norm.example.potential import labelled_clusters as labelled_clusters

_MODULES = {
    "DensityModule": "density_module",
    "DensityNetwork": "density_network",
    "ExactTerms": "exact_terms",
    "LabelErrors": "metrics",
    "PotentialCalculator": "calculator",
    "PotentialModule": "potential",
    "labelled_clusters": "potential",
    "potential_calculator": "calculator",
}
__all__ = [*_MODULES]

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
