"""Labels from Kohn-Sham calculations with PySCF (``pip install 'ofdft-norm[labels]'``).

`generate_labels` does all: `read_geometries` -> `run_kohn_sham` (every iteration, with its Fock weights) ->
`fit_densities` -> `evaluate_potentials` -> `make_labels` -> `check_labels` -> a label file.
"""

from ofdft_norm.labelling.checks import CheckReport as CheckReport
from ofdft_norm.labelling.checks import CheckTolerances as CheckTolerances
from ofdft_norm.labelling.checks import check_labels as check_labels
from ofdft_norm.labelling.checks import report_table as report_table
from ofdft_norm.labelling.generate import GenerationResult as GenerationResult
from ofdft_norm.labelling.generate import generate_labels as generate_labels
from ofdft_norm.labelling.geometries import Geometry as Geometry
from ofdft_norm.labelling.geometries import LabellingError as LabellingError
from ofdft_norm.labelling.geometries import read_geometries as read_geometries
from ofdft_norm.labelling.kohn_sham import KohnShamSettings as KohnShamSettings
from ofdft_norm.labelling.kohn_sham import run_kohn_sham as run_kohn_sham
from ofdft_norm.labelling.labels import KohnShamLabels as KohnShamLabels
from ofdft_norm.labelling.labels import LabelSettings as LabelSettings
from ofdft_norm.labelling.labels import make_labels as make_labels
