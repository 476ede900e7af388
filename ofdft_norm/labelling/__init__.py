"""Labels from Kohn-Sham calculations with PySCF (``pip install 'ofdft-norm[labels]'``).

The way of a molecule: `read_geometries` -> `run_kohn_sham` (every iteration, with its Fock weights) -> `fit_densities`
-> `evaluate_potentials` -> `make_labels` -> `check_labels` -> a label file. `generate_labels` does all of it. PySCF
is imported only when a calculation runs.
"""

from ofdft_norm.labelling.checks import CheckReport, CheckTolerances, check_labels, report_table
from ofdft_norm.labelling.generate import GenerationResult, generate_labels
from ofdft_norm.labelling.geometries import Geometry, LabellingError, read_geometries
from ofdft_norm.labelling.kohn_sham import KohnShamSettings, run_kohn_sham
from ofdft_norm.labelling.labels import KohnShamLabels, LabelSettings, make_labels

__all__ = [
    "CheckReport",
    "CheckTolerances",
    "GenerationResult",
    "Geometry",
    "KohnShamLabels",
    "KohnShamSettings",
    "LabelSettings",
    "LabellingError",
    "check_labels",
    "generate_labels",
    "make_labels",
    "read_geometries",
    "report_table",
    "run_kohn_sham",
]
