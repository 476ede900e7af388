"""Real labels from Kohn-Sham calculations with PySCF (``pip install 'ofdft-norm[labels]'``).

The way of a molecule: `read_geometries` -> `run_kohn_sham` (every iteration, with its Fock weights) ->
`fit_densities` -> `evaluate_potentials` -> labels -> `reparametrize` -> `check_labels` -> a label
file. `make_labels` does it for one molecule, `generate` for a set. PySCF is imported only when a calculation
runs.
"""

from ofdft_norm.labelling.checks import CheckReport, CheckTolerances, check_labels
from ofdft_norm.labelling.errors import GeometryError, KohnShamError, LabelCheckError, LabellingError
from ofdft_norm.labelling.generate import GenerationResult, generate
from ofdft_norm.labelling.geometries import Geometry, read_geometries
from ofdft_norm.labelling.kohn_sham import KohnShamSettings, run_kohn_sham
from ofdft_norm.labelling.labels import KohnShamLabels, LabelSettings, make_labels
from ofdft_norm.labelling.provenance import verify_checksums

__all__ = [
    "CheckReport",
    "CheckTolerances",
    "GenerationResult",
    "Geometry",
    "GeometryError",
    "KohnShamError",
    "KohnShamLabels",
    "KohnShamSettings",
    "LabelCheckError",
    "LabelSettings",
    "LabellingError",
    "check_labels",
    "generate",
    "make_labels",
    "read_geometries",
    "run_kohn_sham",
    "verify_checksums",
]
