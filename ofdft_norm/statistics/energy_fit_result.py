"""What the streaming fit of energies ends with: least squares for any gradient of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ofdft_norm.statistics.least_squares import RCOND, LeastSquaresSolution, solve_r_factor
from ofdft_norm.statistics.residual_variance import ResidualVariance


@dataclass(frozen=True)
class EnergyReferenceSolution:
    """Composition part of a reference, and what it leaves of the energies, over samples [hartree]."""

    t_z: Tensor
    t_global: float
    mean: float
    std: float
    solution: LeastSquaresSolution


class EnergyFitResult:
    """What one weigher's energies left behind; solves for any gradient gbar of the reference.

    Attributes:
        factor: (n_types + 2, n_types + 2 + n_basis) [R | Q^T Y] over molecules; the columns of R are the composition,
            the constant, and the energy.
        residuals: State of `ResidualVariance` over samples.
        variance: The functions that read `residuals`.
        n_types: Number of elements.
        n_molecules: Number of molecules with at least one labelled sample of positive weight.
        n_molecules_per_element: (n_types,) of these, the number that have each element.
    """

    def __init__(
        self, factor: Tensor, residuals: Tensor, variance: ResidualVariance, n_types: int, n_molecules: Tensor
    ) -> None:
        # a plain class: torchmetrics rewrites the fields of dataclasses that a metric returns
        self.factor = factor
        self.residuals = residuals
        self.variance = variance
        self.n_types = n_types
        self.n_molecules = int(n_molecules[0])
        self.n_molecules_per_element = n_molecules[1:]

    def reference(self, gbar: Tensor, with_bias: bool = True, ridge: float = 0.0) -> EnergyReferenceSolution:
        """Fits mean energies of molecules, less gbar.p, to their composition.

        Args:
            gbar: (n_basis,) gradient of the reference [hartree].
            with_bias: Whether a constant t_0 is fitted beside the elements' energies.
            ridge: Relative ridge, see `solve_r_factor`.

        Returns:
            (n_types,) energies of the elements, the constant, and the residual's mean and std over samples.
        """
        n = self.n_types + 1 if with_bias else self.n_types
        right = self.factor[:n, self.n_types + 1 :]
        solution = solve_r_factor(self.factor[:n, :n], right[:, :1] - right[:, 1:] @ gbar[:, None], ridge)
        t_z, t_global = solution.x[: self.n_types, 0], float(solution.x[-1, 0]) if with_bias else 0.0
        mean, std = self.variance.residual(self.residuals, gbar, t_z, t_global)
        return EnergyReferenceSolution(t_z, t_global, mean, std, solution)

    def composition_factor(self) -> Tensor:
        """Returns (n_types + 1, n_types + 1): the fit of energies to the composition without constant, reduced.

        Its first n_types rows are [H | h] with the symmetric H = (N^T N)^(1/2) of the compositions N: solving
        min |H x - h| is solving min |N x - E|, and unlike a triangular factor H is unique, whatever the rank. The last
        row holds the norm of what no reference reaches.
        """
        n = self.n_types
        energy = self.factor[:, n + 1]
        u, s, vt = torch.linalg.svd(self.factor[:n, :n])
        kept = s > RCOND * s[0]
        reached = u[:, kept].T @ energy[:n]
        beyond = (u[:, ~kept].T @ energy[:n]).square().sum() + energy[n:].square().sum()
        reduced = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        reduced[:n, :n] = vt.T @ (s[:, None] * vt)
        reduced[:n, n] = vt[kept].T @ reached
        reduced[n, n] = beyond.sqrt()
        return reduced

    def spread(self) -> tuple[float, float]:
        """Returns mean and population standard deviation of the energies themselves, over samples [hartree]."""
        zeros = torch.zeros(self.variance.n_basis, dtype=torch.float64)
        return self.variance.residual(self.residuals, zeros, zeros.new_zeros(self.n_types), 0.0)
