"""Small least-squares problems, against NumPy; factors of parts."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm.statistics.references import (
    Array,
    Driver,
    linear_problem,
    linear_residual,
    row_factor,
    solve_least_squares,
)


def rank_three() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, (500, 4)).astype(float)
    a[:, 3] = a[:, 0] + a[:, 1]
    return a, a @ [1e5, 2e5, -3e5, 0] + rng.normal(size=500) * 1e-6


@pytest.mark.parametrize("driver", [None, *get_args(Driver)])
def test_factors_of_parts_solve_the_whole_problem(driver: Driver | None) -> None:
    a, y = rank_three()
    parts = np.split(np.column_stack([a, y]), [1, 3, 100, 400])
    factor = row_factor(np.concatenate([row_factor(part) for part in parts]))
    problem = linear_problem(factor[:, :4], factor[:, 4])
    expected, _, rank, singular = np.linalg.lstsq(a, y, rcond=1e-12)
    damping = (0.1 * singular[0]) ** 2 * np.eye(4)
    for left, right in ((factor[:, :4], factor[:, 4]), (problem[:-1, :-1], problem[:-1, -1])):
        solution = solve_least_squares(left, right, driver=driver)
        assert solution.rank == rank == 3
        assert solution.condition_number == pytest.approx(singular[0] / singular[2], rel=1e-12)
        np.testing.assert_allclose(solution.x, expected, atol=1e-8)
        np.testing.assert_allclose(np.abs(solution.null_space[0]), np.array([1, 1, 0, 1]) / 3**0.5, atol=1e-12)
        np.testing.assert_allclose(solution.covariance, np.linalg.pinv(a.T @ a), atol=1e-12)
        ridged = solve_least_squares(left, right, ridge=0.1, driver=driver)
        np.testing.assert_allclose(ridged.x, np.linalg.solve(a.T @ a + damping, a.T @ y), rtol=1e-9)
    residual = np.linalg.norm(y - a @ expected)
    assert problem[-1, -1] == pytest.approx(residual, rel=1e-3)


def test_fewer_rows_than_columns_and_none() -> None:
    solution = solve_least_squares(np.array([[2.0, 1.0, 1.0]]), np.array([6.0]))
    np.testing.assert_allclose(solution.x, [2, 1, 1])
    assert (solution.rank, solution.null_space.shape) == (1, (2, 3))
    assert not row_factor(np.zeros((0, 3))).any()  # a rank without samples


def random_rows(rng: np.random.Generator, n: int) -> Array:
    """Rows [1 | composition of three elements, one without atoms | energy]."""
    composition = np.column_stack([rng.integers(0, 4, (n, 2)), np.zeros(n)])
    return np.column_stack([np.ones(n), composition, rng.normal(size=n) * 5 - 100])


@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_factors_of_parts_have_the_sums_of_squares_of_all_rows(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [random_rows(rng, n) for n in sizes]
    rows = np.concatenate(parts)
    whole = row_factor(np.concatenate([row_factor(part) for part in parts]))
    np.testing.assert_allclose(whole.T @ whole, rows.T @ rows, rtol=1e-12, atol=1e-9)
    assert (whole.diagonal() >= 0).all()
    assert not whole[:, 3].any()


def test_mean_and_spread_of_a_residual() -> None:
    rng = np.random.default_rng(1)
    rows, weights, values = random_rows(rng, 200), rng.uniform(0.1, 3, size=200), np.array([-1e4, -4e4, 0.0])
    rows[:, -1] = rows[:, 1:-1] @ values + 1e-6 * rng.normal(size=200)
    residual = rows[:, -1] - rows[:, 1:-1] @ values
    mean = np.average(residual, weights=weights)
    std = np.sqrt(np.average((residual - mean) ** 2, weights=weights))
    factor = row_factor(rows * np.sqrt(weights)[:, None])
    np.testing.assert_allclose(linear_residual(factor, values), (mean, std), rtol=1e-9, atol=1e-10)
