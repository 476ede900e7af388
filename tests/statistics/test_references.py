"""Mean and spread of the residual of given values, from a factor of all rows."""

import numpy as np

from ofdft_norm.statistics.references import compute_linear_residual, reduce_rows


def test_mean_and_spread_of_a_residual() -> None:
    rng, values = np.random.default_rng(1), np.array([-1e4, -4e4, 0.0])
    composition = np.column_stack([rng.integers(0, 4, (200, 2)), np.zeros(200)])
    residual, weights = 1e-6 * rng.normal(size=200) + 1e-5, rng.uniform(0.1, 3, size=200)
    rows = np.column_stack([np.ones(200), composition, composition @ values + residual])
    residual = rows[:, -1] - composition @ values
    mean = np.average(residual, weights=weights)
    std = np.sqrt(np.average((residual - mean) ** 2, weights=weights))
    factor = reduce_rows(rows * np.sqrt(weights)[:, None])
    np.testing.assert_allclose(compute_linear_residual(factor, values), (mean, std), rtol=0, atol=1e-10)
