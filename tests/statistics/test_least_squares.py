"""Small least-squares problems, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ofdft_norm.errors import ConfigError
from ofdft_norm.statistics.least_squares import DRIVERS, solve_least_squares
from ofdft_norm.statistics.row_factor import row_factor


def rank_three() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, (500, 4)).astype(float)
    a[:, 3] = a[:, 0] + a[:, 1]
    return a, a @ [1e5, 2e5, -3e5, 0] + rng.normal(size=500) * 1e-6


@pytest.mark.parametrize("solver", [None, "numpy", *DRIVERS])
def test_factors_of_parts_solve_the_whole_problem(solver: str | None) -> None:
    a, y = rank_three()
    parts = torch.as_tensor(np.column_stack([a, y])).split([1, 2, 97, 300, 100])
    factor = row_factor(torch.cat([row_factor(part) for part in parts]))
    solution = solve_least_squares(factor[:, :4], factor[:, 4], solver=solver)
    expected, _, rank, singular = np.linalg.lstsq(a, y, rcond=1e-12)
    assert solution.rank == rank == 3
    assert solution.condition_number == pytest.approx(singular[0] / singular[2], rel=1e-12)
    np.testing.assert_allclose(solution.x, expected, atol=1e-8)
    np.testing.assert_allclose(solution.null_space.abs()[0], np.array([1, 1, 0, 1]) / 3**0.5, atol=1e-12)
    np.testing.assert_allclose(solution.covariance, np.linalg.pinv(a.T @ a), atol=1e-12)
    ridged = solve_least_squares(factor[:, :4], factor[:, 4], ridge=0.1, solver=solver)
    damping = (0.1 * singular[0]) ** 2 * np.eye(4)
    np.testing.assert_allclose(ridged.x, np.linalg.solve(a.T @ a + damping, a.T @ y), rtol=1e-9)


def test_fewer_rows_than_columns() -> None:
    solution = solve_least_squares(torch.tensor([[2.0, 1.0, 1.0]]).double(), torch.tensor([6.0]).double())
    torch.testing.assert_close(solution.x, torch.tensor([2.0, 1.0, 1.0]).double())
    assert (solution.rank, tuple(solution.null_space.shape)) == (1, (2, 3))


def test_unknown_drivers() -> None:
    with pytest.raises(ConfigError, match="driver = 'nonsense': expected one of"):
        solve_least_squares(torch.eye(2).double(), torch.ones(2).double(), solver="nonsense")
