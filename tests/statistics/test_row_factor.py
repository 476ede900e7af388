"""The streamed triangle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.statistics.references import EnergyFitResult, FittedReference
from ofdft_norm.statistics.row_factor import RowLayout, row_factor

LAYOUT = RowLayout(n_types=2, n_targets=1, n_basis=4)


def random_rows(rng: np.random.Generator, n: int) -> torch.Tensor:
    rows = torch.as_tensor(rng.normal(size=(n, LAYOUT.width)))
    rows[:, 0] = 1
    rows[:, LAYOUT.composition] = torch.as_tensor(rng.integers(0, 4, (n, 2)), dtype=torch.float64)
    rows[:, LAYOUT.energies] = rows[:, LAYOUT.energies] * 5 - 100
    return rows


@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_factors_of_parts_have_the_sums_of_squares_of_all_rows(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [random_rows(rng, n) for n in sizes]
    rows = torch.cat(parts)
    whole = row_factor(torch.cat([row_factor(part) for part in parts]))
    torch.testing.assert_close(whole.T @ whole, rows.T @ rows, rtol=1e-12, atol=1e-9)
    assert (whole.diagonal() >= 0).all()
    top = row_factor(torch.cat([row_factor(part, LAYOUT.energies.stop) for part in parts]), LAYOUT.energies.stop)
    left = rows[:, : LAYOUT.energies.stop]
    torch.testing.assert_close(top[:, : LAYOUT.energies.stop].T @ top, left.T @ rows, rtol=1e-12, atol=1e-9)


def test_columns_without_entries_take_no_part() -> None:
    rows = random_rows(np.random.default_rng(0), 20)
    rows[:, 2] = 0
    factor = row_factor(rows)
    assert not factor[:, 2].any()
    assert not factor[-1].any()
    torch.testing.assert_close(factor.T @ factor, rows.T @ rows, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("noise", [1.0, 1e-6])
def test_mean_and_spread_of_any_residual(noise: float) -> None:
    rng = np.random.default_rng(1)
    rows = random_rows(rng, 200)
    reference = FittedReference(torch.full((4,), 1e3).double(), torch.tensor([-1e4, -4e4]).double(), 3.0, 0, 0)
    direction = reference.direction(LAYOUT)
    explained = -(rows @ direction) + rows[:, LAYOUT.energies.start]
    rows[:, LAYOUT.energies.start] = explained + torch.as_tensor(noise * rng.normal(size=200))
    weights = torch.as_tensor(rng.uniform(0.1, 3, size=200))
    weighted = rows * weights.sqrt()[:, None]
    samples = row_factor(torch.cat([row_factor(part) for part in weighted.split(17)]))
    result = EnergyFitResult(LAYOUT, samples, samples[: LAYOUT.energies.stop], torch.zeros(3))
    residual = (rows @ direction).numpy()
    mean = np.average(residual, weights=weights)
    std = np.sqrt(np.average((residual - mean) ** 2, weights=weights))
    # energies of 1e5 hold 1.5e-11
    np.testing.assert_allclose(result.residual(direction), (mean, std), rtol=1e-9, atol=1e-10)
    assert result.total_weight == pytest.approx(float(weights.sum()))
