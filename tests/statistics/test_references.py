"""Small least-squares problems, against NumPy; factors of parts."""

from typing import get_args

import numpy as np
import pytest

from ofdft_norm.statistics.references import (
    Array,
    Driver,
    linear_problem,
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
    assert (factor.diagonal() >= 0).all()
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
