"""Samples that all tests of statistics share."""

from typing import Any

import numpy as np
import pytest

from ofdft_norm import BasisInfo, OFData


@pytest.fixture
def samples(basis_info: BasisInfo, scf_samples: Any) -> list[OFData]:
    """Two labelled samples of each of five molecules of H, C and O that determine all references."""
    molecules = [[1, 6, 8], [1, 6, 8, 1], [1], [1, 6, 8, 1, 6, 8, 8], [8] * 3]
    samples: list[OFData] = scf_samples(basis_info, np.random.default_rng(0), molecules, n_scf=2)
    for sample in samples:
        sample.has_energy_label[:] = True
    return samples
