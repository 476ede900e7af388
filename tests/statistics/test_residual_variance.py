"""The functional core of residual means and spreads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.statistics.least_squares import merge_r_factors, solve_r_factor
from ofdft_norm.statistics.residual_variance import ResidualVariance

N_TYPES, N_BASIS = 2, 4
CORE = ResidualVariance([0, 2, 4], torch.tensor([True, False, True, False]))


def rows(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    counts = torch.as_tensor(rng.integers(0, 4, (n, N_TYPES)), dtype=torch.float64)
    sums = torch.as_tensor(rng.normal(size=(n, N_BASIS))) * (counts > 0).repeat_interleave(2, dim=1)
    return counts, torch.as_tensor(rng.normal(size=n) * 5 - 100), sums


def state_of(rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], slope: torch.Tensor) -> torch.Tensor:
    counts, energy, sums = rows
    spare = torch.full((len(energy), 2), torch.nan, dtype=torch.float64)
    return CORE.of_rows(counts, torch.cat([spare, energy[:, None], sums], dim=1), slope)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8), m=st.integers(1, 8), weight=st.floats(1e-3, 1e3))
def test_two_weighted_parts(seed: int, n: int, m: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = rows(rng, n), rows(rng, m)
    slopes = torch.as_tensor(rng.normal(size=(2, N_BASIS)))
    state = state_of(first, slopes[0])
    CORE.add(state, state_of(second, slopes[1]), weight)
    slope, t, constant = torch.as_tensor(rng.normal(size=N_BASIS)), torch.as_tensor(rng.normal(size=N_TYPES)), 3.0
    counts, energy, sums = (torch.cat(pair) for pair in zip(first, second, strict=True))
    residual = (energy - counts @ t - constant - sums @ slope).numpy()
    weights = np.repeat([1.0, weight], [n, m])
    mean = np.average(residual, weights=weights)
    found = CORE.residual(state, slope, t, constant)
    assert found[0] == pytest.approx(mean, rel=1e-11, abs=1e-11)
    assert found[1] == pytest.approx(np.sqrt(np.average((residual - mean) ** 2, weights=weights)), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_merging_empty_states(seed: int) -> None:
    state = state_of(rows(np.random.default_rng(seed), 6), torch.zeros(N_BASIS, dtype=torch.float64))
    empty = torch.zeros_like(state)
    for stack in ([empty, state], [state, empty], [empty, state, empty]):
        assert torch.equal(CORE.merge(torch.stack(stack)), state)
    assert not CORE.merge(torch.stack([empty, empty])).any()


def test_r_factors_of_parts_solve_the_whole_problem() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, (500, 4)).astype(float)
    a[:, 3] = a[:, 0] + a[:, 1]  # rank 3
    y = a @ [1e5, 2e5, -3e5, 0] + rng.normal(size=500) * 1e-6
    stacked = torch.as_tensor(np.column_stack([a, y]))
    factors = [merge_r_factors(part, 4) for part in stacked.split([1, 2, 97, 300, 100])]
    factor = merge_r_factors(torch.stack(factors), 4)
    solution = solve_r_factor(factor[:, :4], factor[:, 4:])
    expected, _, rank, singular = np.linalg.lstsq(a, y, rcond=1e-12)
    assert solution.rank == rank == 3
    assert solution.condition_number == pytest.approx(singular[0] / singular[2], rel=1e-12)
    np.testing.assert_allclose(solution.x[:, 0], expected, atol=1e-8)
    np.testing.assert_allclose(solution.null_space.abs()[0], np.array([1, 1, 0, 1]) / 3**0.5, atol=1e-12)
    np.testing.assert_allclose(solution.covariance, np.linalg.pinv(a.T @ a), atol=1e-12)
    ridged = solve_r_factor(factor[:, :4], factor[:, 4:], ridge=0.1).x[:, 0].numpy()
    damping = (0.1 * singular[0]) ** 2 * np.eye(4)
    np.testing.assert_allclose(ridged, np.linalg.solve(a.T @ a + damping, a.T @ y), rtol=1e-9)
