"""Pulay's extrapolation: weights that are optimal, and the weights that were used."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ofdft_norm.labelling.diis import RecordingDIIS, pulay_weights

Array = npt.NDArray[Any]


def test_pulay_weights_minimise_the_error() -> None:
    generator = np.random.default_rng(0)
    errors = [generator.normal(size=(4, 4)) * 10.0**-k for k in range(4)]
    weights = pulay_weights(errors)

    def norm(candidate: Array) -> float:
        return float(np.linalg.norm(np.tensordot(candidate, np.stack(errors), axes=1)))

    assert weights.sum() == pytest.approx(1.0)
    for _ in range(50):
        step = generator.normal(size=4) * 1e-3
        assert norm(weights) <= norm(weights + step - step.mean())


def test_diis_mixes_with_the_weights_it_reports() -> None:
    generator = np.random.default_rng(1)
    diis = RecordingDIIS(space=3, damping=0.7, damping_threshold=0.0)
    focks = [generator.normal(size=(3, 3)) for _ in range(6)]
    for k, fock in enumerate(focks):
        mixed, weights = diis.extrapolate(fock, generator.normal(size=(3, 3)))
        assert weights.shape == (k + 1,)
        assert weights.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(mixed, np.tensordot(weights, np.stack(focks[: k + 1]), axes=1), atol=1e-12)
