"""Small real models, for the worked examples: a density functional and an interatomic potential."""

from typing import TYPE_CHECKING

from ofdft_norm.lazy import lazy_names

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from ofdft_norm.example.density_module import DensityModule as DensityModule
    from ofdft_norm.example.density_network import DensityNetwork as DensityNetwork
    from ofdft_norm.example.exact_terms import ExactTerms as ExactTerms
    from ofdft_norm.example.label_errors import LabelErrors as LabelErrors
    from ofdft_norm.example.potential import PotentialModule as PotentialModule
    from ofdft_norm.example.structures import EMTClusters as EMTClusters

_MODULES = {
    "DensityModule": "example.density_module",
    "DensityNetwork": "example.density_network",
    "EMTClusters": "example.structures",
    "ExactTerms": "example.exact_terms",
    "LabelErrors": "example.label_errors",
    "PotentialModule": "example.potential",
}
__all__ = [*_MODULES]
if not TYPE_CHECKING:  # else type checkers would accept any name
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
