"""The reference energies: their names, their gradients, and how each is fitted to an `EnergyFitResult`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.statistics.least_squares import RCOND, LeastSquaresSolution, solve_least_squares
from ofdft_norm.statistics.row_factor import RowLayout, row_factor

# Every fit makes them all, for each weigher; statistics carry their names. `linear_ref` counts every molecule once,
# with the mean of its samples, `linear_ref_by_sample` every sample.
LINEAR_REFERENCES = ("linear_ref", "linear_ref_by_sample")
REFERENCES = ("atom_ref", "scalar_atom_ref", *LINEAR_REFERENCES)

# What references that the fit does not make leave of the energies: given ones, those of each value of a field, those of
# a fit with a ridge.
GIVEN_REFERENCE = "given_ref"
REFERENCE_BY_FIELD = "linear_ref_by_field"
REFERENCE_WITH_RIDGE = "linear_ref_with_ridge"
OTHER_REFERENCES = (GIVEN_REFERENCE, REFERENCE_BY_FIELD, REFERENCE_WITH_RIDGE)

# The mean energy, from which `std` without a reference is measured.
NO_REFERENCE = "none"

CountBy = Literal["molecule", "sample"]


def linear_reference_name(count_by: CountBy) -> str:
    """Returns under which name statistics hold the linear references that count molecules, or samples.

    Args:
        count_by: ``molecule`` or ``sample``.
    """
    return LINEAR_REFERENCES[0] if count_by == "molecule" else LINEAR_REFERENCES[1]


def count_by_of(name: str) -> CountBy:
    """Returns what the linear references of a name count; inverse of `linear_reference_name`.

    Args:
        name: What `linear_reference_name` returned.
    """
    return "molecule" if name == LINEAR_REFERENCES[0] else "sample"


def reference_gradient(name: str, gbar: Tensor, basis_info: BasisInfo) -> Tensor:
    """Returns a reference's (n_basis,) gradient with respect to the coefficients [hartree].

    Args:
        name: One of `REFERENCES`.
        gbar: (n_basis,) mean gradient.
        basis_info: The basis.
    """
    if name == "atom_ref":
        return gbar
    scalar = torch.as_tensor(basis_info.l_per_basis_func == 0)
    return torch.where(scalar, gbar, 0.0) if name == "scalar_atom_ref" else torch.zeros_like(gbar)


@dataclass(frozen=True)
class FittedReference:
    """A reference E_ref = gradient.p + sum_atoms t_Z + t_global, and what it leaves of the energies, over samples.

    Attributes:
        gradient: (n_basis,) [hartree].
        t_z: (n_types,) energies of the elements [hartree].
        t_global: The constant [hartree].
        mean: Mean of the residuals over samples [hartree].
        std: Population standard deviation of the residuals over samples [hartree].
        solution: Of the least squares; None for values that were not fitted.
    """

    gradient: Tensor
    t_z: Tensor
    t_global: float
    mean: float
    std: float
    solution: LeastSquaresSolution | None = None

    def direction(self, layout: RowLayout, target: int = 0) -> Tensor:
        """Returns the (width,) vector v for which a row's residual is row.v, see `RowLayout`.

        Args:
            layout: Columns of the rows.
            target: Which energy.
        """
        direction = torch.zeros(layout.width, dtype=torch.float64)
        direction[0] = -self.t_global
        direction[layout.composition] = -self.t_z
        direction[layout.energies.start + target] = 1
        direction[layout.sums] = -self.gradient
        return direction


def linear_problem(compositions: Tensor, energy: Tensor) -> Tensor:
    """Returns (n_types + 1, n_types + 1): the fit of an energy to the composition alone, reduced.

    Its first n_types rows are [H | h] with the symmetric H = (N^T N)^(1/2) of the compositions N: solving min |H x - h|
    is solving min |N x - E|, and unlike a triangular factor H is unique, whatever the rank. The last row holds the norm
    of what no reference reaches.

    Args:
        compositions: (m, n_types) N, or those columns of a `row_factor`.
        energy: (m,) E [hartree].
    """
    n = compositions.shape[1]
    u, s, vt = torch.linalg.svd(compositions, full_matrices=False)
    kept = s > RCOND * s[0]
    reached = u[:, kept].T @ energy
    reduced = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    reduced[:n, :n] = vt.T @ (s[:, None] * vt)
    reduced[:n, n] = vt[kept].T @ reached
    reduced[n, n] = (energy - u[:, kept] @ reached).norm()
    return reduced


class EnergyFitResult:
    """One weigher's energies, reduced to triangles; fits references of any gradient.

    Args:
        layout: Columns of the triangles.
        samples: See the attribute.
        molecules: See the attribute.
        n_molecules: See the attribute.

    Attributes:
        layout: Columns of the triangles.
        samples: (width, width) `row_factor` of all samples, by weight.
        molecules: (n_types + n_targets + 1, width) that of one row for each molecule, the mean over its samples.
        n_molecules: Number of molecules with at least one labelled sample of positive weight.
        n_molecules_per_element: (n_types,) of these, the number that have each element.
    """

    def __init__(self, layout: RowLayout, samples: Tensor, molecules: Tensor, n_molecules: Tensor) -> None:
        # a plain class: torchmetrics rewrites the fields of dataclasses that a metric returns
        self.layout = layout
        self.samples = samples
        self.molecules = molecules
        self.n_molecules = int(n_molecules[0])
        self.n_molecules_per_element = n_molecules[1:]

    @property
    def total_weight(self) -> float:
        """Sum of the samples' weights."""
        return float(self.samples[0, 0]) ** 2

    def residual(self, direction: Tensor) -> tuple[float, float]:
        """Returns mean and population standard deviation over samples of row.direction [hartree].

        Args:
            direction: (width,) vector v.
        """
        turned = self.samples @ direction
        root = self.samples[0, 0]
        return float(turned[0] / root), float(turned[1:].norm() / root)

    def spread(self, target: int = 0) -> tuple[float, float]:
        """Returns mean and population standard deviation of the energies themselves, over samples [hartree].

        Args:
            target: Which energy.
        """
        return self.residual(torch.eye(self.layout.width, dtype=torch.float64)[self.layout.energies.start + target])

    def reference(self, gradient: Tensor, with_bias: bool = True) -> FittedReference:
        """Fits mean energies of molecules, less gradient.p, to their composition: the solution of minimum norm.

        Args:
            gradient: (n_basis,) gradient of the reference [hartree].
            with_bias: Whether a constant is fitted beside the elements' energies.
        """
        layout = self.layout
        left = self.molecules[:, layout.composition]
        if with_bias:
            left = torch.cat([left, self.molecules[:, :1]], dim=1)
        right = self.molecules[:, layout.energies.start] - self.molecules[:, layout.sums] @ gradient
        solution = solve_least_squares(left, right)
        t_z, t_global = solution.x[: layout.n_types], float(solution.x[-1]) if with_bias else 0.0
        return self._measured(FittedReference(gradient, t_z, t_global, 0.0, 0.0, solution))

    def _measured(self, fitted: FittedReference, target: int = 0) -> FittedReference:
        mean, std = self.residual(fitted.direction(self.layout, target))
        return FittedReference(fitted.gradient, fitted.t_z, fitted.t_global, mean, std, fitted.solution)

    def linear_problem(self, count_by: CountBy, target: int = 0) -> Tensor:
        """Returns the `linear_problem` of an energy over molecules, or over samples.

        Args:
            count_by: ``molecule`` or ``sample``.
            target: Which energy.
        """
        factor = self.molecules if count_by == "molecule" else self.samples
        return linear_problem(factor[:, self.layout.composition], factor[:, self.layout.energies.start + target])

    def energy_factor(self, seen: Tensor, target: int = 0) -> Tensor:
        """Returns the `row_factor` of rows [1 | composition | energy], over samples.

        Args:
            seen: (n_types,) bool, the n elements of these compositions.
            target: Which energy.

        Returns:
            (n + 2, n + 2).
        """
        elements = (1 + seen.nonzero().squeeze(1)).tolist()
        return row_factor(self.samples[:, [0, *elements, self.layout.energies.start + target]])

    def linear_reference(
        self, count_by: CountBy, target: int = 0, ridge: float = 0.0, solver: str | None = None
    ) -> FittedReference:
        """Fits an energy to the composition alone.

        Args:
            count_by: Whether every molecule counts once, or every sample.
            target: Which energy.
            ridge: See `solve_least_squares`.
            solver: See `solve_least_squares`.
        """
        problem = self.linear_problem(count_by, target)
        solution = solve_least_squares(problem[:-1, :-1], problem[:-1, -1], ridge, solver)
        gradient = torch.zeros(self.layout.n_basis, dtype=torch.float64)
        return self._measured(FittedReference(gradient, solution.x, 0.0, 0.0, 0.0, solution), target)


def fit_references(
    energies: EnergyFitResult, gbar: Tensor | None, basis_info: BasisInfo | None, with_bias: bool
) -> dict[str, FittedReference]:
    """Fits all references of one weigher.

    Args:
        energies: What the fit kept of the energies.
        gbar: (n_basis,) mean gradient; None without a basis: linear references alone.
        basis_info: The basis.
        with_bias: Whether the atomic references have a constant.

    Returns:
        References by name; `NO_REFERENCE` is the mean energy.
    """
    mean, std = energies.spread()
    layout = energies.layout
    nothing = torch.zeros(layout.n_basis, dtype=torch.float64)
    zero = torch.zeros(layout.n_types, dtype=torch.float64)
    fitted = {NO_REFERENCE: FittedReference(nothing, zero, mean, 0.0, std)}
    if gbar is not None and basis_info is not None:
        for name in ("atom_ref", "scalar_atom_ref"):
            fitted[name] = energies.reference(reference_gradient(name, gbar, basis_info), with_bias)
    for name in LINEAR_REFERENCES:
        fitted[name] = energies.linear_reference(count_by_of(name))
    return fitted
