"""Streaming least squares of targets on compositions: what stays of 1e7 molecules is one small triangle.

Rows sqrt(w) [counts | targets] are reduced to the R factor of their QR decomposition. Its first block solves the
fit, its last one holds the residuals' norm, so that rank, references, standard errors, RMSE and R2 follow without
a second look at the data, and without normal equations, which would square the condition number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from ofdft_norm.errors import ConfigError
from ofdft_norm.statistics.least_squares import RCOND, solve_r_factor

Array = npt.NDArray[np.int64]

DRIVERS = ("gels", "gelsy", "gelsd", "gelss")

# A total sum of squares below this fraction (squared) of the targets' own is rounding: the targets are all equal.
_CONSTANT = 1e-13


def composition_counts(numbers: Array, molecule: Array, n_molecules: int) -> Array:
    """Counts the atoms of each element in each molecule.

    Args:
        numbers: (n_atom,) int64 atomic numbers >= 0.
        molecule: (n_atom,) int64 molecule of each atom.
        n_molecules: Number of molecules.

    Returns:
        (n_molecules, largest atomic number + 1) int64.

    Example:
        >>> composition_counts(np.array([1, 1, 2]), np.array([0, 0, 1]), 2).tolist()
        [[0, 2, 0], [0, 0, 1]]
    """
    width = int(numbers.max()) + 1 if len(numbers) else 1
    return np.bincount(molecule * width + numbers, minlength=n_molecules * width).reshape(n_molecules, width)


def merge_factors(states: Tensor) -> Tensor:
    """Merges R factors (or plain rows) of n columns into one; columns that are zero throughout cost nothing.

    Args:
        states: (..., n), any number of leading axes.

    Returns:
        (n, n): the factor's rows first, then rows of zeros.
    """
    n = states.shape[-1]
    rows = states.reshape(-1, n)
    used = rows.any(0)
    triangle = torch.linalg.qr(rows[:, used], mode="r").R
    merged = rows.new_zeros(n, n)
    merged[: len(triangle), used] = triangle
    return merged


class CompositionFit(Metric):
    """Accumulates compositions and targets for a linear fit.

    Args:
        n_targets: T, number of targets.
        max_num_elements: Largest atomic number.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    factor: Tensor
    centred: Tensor
    n_atoms: Tensor
    n_molecules: Tensor
    n_samples: Tensor
    total_weight: Tensor

    def __init__(self, n_targets: int, max_num_elements: int = 118, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_targets = n_targets
        self.width = max_num_elements + 1
        columns = self.width + n_targets
        self.add_state("factor", torch.zeros(columns, columns, dtype=torch.float64), dist_reduce_fx=merge_factors)
        centred = torch.zeros(1 + n_targets, 1 + n_targets, dtype=torch.float64)
        self.add_state("centred", centred, dist_reduce_fx=merge_factors)
        self.add_state("n_atoms", torch.zeros(self.width, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_molecules", torch.zeros(self.width, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_samples", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total_weight", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, counts: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Takes in molecules; groups of thousands cost least.

        Args:
            counts: (S, n) atoms of each element by atomic number, n <= max_num_elements + 1.
            targets: (S, T).
            weights: (S,) positive; by default 1 each.
        """
        # numpy: torch would start its threads for each of these small steps, which costs more than the steps
        n_atoms = np.zeros((len(counts), self.width))
        n_atoms[:, : counts.shape[1]] = counts.numpy()
        y = targets.to(torch.float64).numpy()
        w = np.ones(len(y)) if weights is None else weights.numpy()
        self.n_atoms = self.n_atoms + torch.from_numpy(n_atoms.sum(0).astype(np.int64))
        self.n_molecules = self.n_molecules + torch.from_numpy((n_atoms > 0).sum(0))
        self.n_samples = self.n_samples + len(y)
        self.total_weight = self.total_weight + float(w.sum())
        # only the columns of elements met so far take part in the factorisation
        met = np.flatnonzero(self.n_atoms.numpy())
        columns = np.append(met, np.arange(self.width, self.width + self.n_targets))
        scale = np.sqrt(w)[:, None]
        rows = np.concatenate([n_atoms[:, met], y], axis=1) * scale
        old = self.factor.numpy()[: len(columns), columns]
        factor = np.zeros(self.factor.shape)
        factor[: len(columns), columns] = np.linalg.qr(np.concatenate([old, rows]), mode="r")
        self.factor = torch.from_numpy(factor)
        centred = np.concatenate([self.centred.numpy(), np.concatenate([scale, y * scale], axis=1)])
        self.centred = torch.from_numpy(np.linalg.qr(centred, mode="r"))

    def compute(self) -> CompositionFactor:
        """Returns the reduced problem."""
        return CompositionFactor(
            self.factor, self.centred, self.n_atoms, self.n_molecules, int(self.n_samples), float(self.total_weight)
        )


class CompositionFactor:
    """The reduced problem of a fit to compositions.

    Attributes:
        numbers: (k,) atomic numbers of the elements that occur.
        r: (k, k) R factor of their weighted counts.
        qty: (k, T) Q^T Y.
        beyond: (T,) squared norm of Y outside the range of Q.
        total: (T,) weighted sum of squares of the targets around their weighted mean; 0 where all are equal.
        n_atoms: (k,) atoms of each element.
        n_molecules: (k,) molecules with each element.
        n_samples: Number of samples of positive weight.
        total_weight: Sum of their weights.
    """

    def __init__(
        self,
        factor: Tensor,
        centred: Tensor,
        n_atoms: Tensor,
        n_molecules: Tensor,
        n_samples: int,
        total_weight: float,
    ) -> None:
        # a plain class: torchmetrics rewrites the fields of dataclasses that a metric returns
        seen = n_atoms > 0
        k, width = int(seen.sum()), len(n_atoms)
        self.numbers = seen.nonzero().squeeze(1)
        self.r = factor[:k, :width][:, seen]
        self.qty = factor[:k, width:]
        self.beyond = factor[k:, width:].square().sum(0)
        total, own = centred[1:, 1:].square().sum(0), centred[:, 1:].square().sum(0)
        self.total = torch.where(total > _CONSTANT**2 * own, total, 0.0)
        self.n_atoms, self.n_molecules = n_atoms[seen], n_molecules[seen]
        self.n_samples = n_samples
        self.total_weight = total_weight


@dataclass(frozen=True)
class CompositionSolution:
    """References of the k elements that occur, for T targets.

    Attributes:
        x: (k, T) references, of minimum norm where the data do not determine them.
        rank: Rank of the compositions.
        condition_number: Largest over smallest singular value that counts.
        null_space: (k - rank, k) combinations of references that no molecule determines.
        residual: (T,) weighted sum of squared residuals.
        standard_errors: (k, T), NaN without degrees of freedom.
    """

    x: Tensor
    rank: int
    condition_number: float
    null_space: Tensor
    residual: Tensor
    standard_errors: Tensor


def solve_composition(
    factor: CompositionFactor, use_numpy: bool = True, driver: str | None = None, ridge: float = 0.0
) -> CompositionSolution:
    """Solves a fit to compositions.

    Args:
        factor: The reduced problem.
        use_numpy: Solve with `numpy.linalg.lstsq`, else with `torch.linalg.lstsq`; a ridge is solved from the
            singular value decomposition in either case.
        driver: LAPACK driver of `torch.linalg.lstsq`: gels, gelsy (its default), gelsd or gelss.
        ridge: Adds (ridge s_max)^2 |x|^2, s_max the largest singular value of the compositions.

    Raises:
        ConfigError: If the driver is unknown.
    """
    solution = solve_r_factor(factor.r, factor.qty, ridge)
    if ridge > 0:
        x = solution.x
    elif use_numpy:
        x = torch.from_numpy(np.linalg.lstsq(factor.r.numpy(), factor.qty.numpy(), rcond=RCOND)[0])
    else:
        check_driver(driver)
        # within the row space every driver has full column rank to solve: torch's gelsy misjudges the rank of singular
        # triangles, and gels takes full rank for granted
        row_space = torch.linalg.svd(factor.r).Vh[: solution.rank].T
        x = row_space @ torch.linalg.lstsq(factor.r @ row_space, factor.qty, driver=driver or "gelsy").solution
    residual = (factor.r @ x - factor.qty).square().sum(0) + factor.beyond
    freedom = factor.n_samples - solution.rank
    variance = residual / freedom if freedom > 0 else torch.full_like(residual, torch.nan)
    errors = (solution.covariance.diagonal().clamp(min=0)[:, None] * variance).sqrt()
    return CompositionSolution(x, solution.rank, solution.condition_number, solution.null_space, residual, errors)


def check_driver(driver: str | None) -> None:
    """Refuses a LAPACK driver that `torch.linalg.lstsq` does not know."""
    if driver is not None and driver not in DRIVERS:
        raise ConfigError(
            f"driver = {driver!r}: expected one of {list(DRIVERS)} or null (config: data.reference.fit.driver)"
        )
