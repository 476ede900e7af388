"""Density optimisation: minimises the total energy of a learned kinetic energy, from the initial guess."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ofdft_norm.data.sample import RAW, OFData
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.density_module import DensityModule
from ofdft_norm.example.exact_terms import ExactTerms
from ofdft_norm.example.plots import plot_learning_curves
from ofdft_norm.statistics.weighers import GroundStateOnlySampleWeigher
from ofdft_norm.tables import format_rows
from ofdft_norm.transforms.coordinates import change_coordinates, read_coordinates

SMALL_GRADIENT = 5e-3  # hartree, norm of the projected gradient of a converged density
STAYS_WITHIN, N_STAYS = 5e-3, 50  # hartree, steps: the energy of a converged density stays near its minimum


@dataclass(frozen=True)
class Path:
    """Densities of a minimisation: (n_steps + 1,) energies and norms of projected gradients, and the last density."""

    energies: list[float]
    gradient_norms: list[float]
    coeffs: Tensor

    @property
    def steps_to_converge(self) -> int | None:
        """Steps until the gradient is small, if the energy stays near its minimum for the next `N_STAYS` steps."""
        energies, small = np.array(self.energies), np.array(self.gradient_norms) < SMALL_GRADIENT
        if not small.any():
            return None
        first = int(small.argmax())
        after = energies[first : first + N_STAYS + 1]
        stays = len(after) > N_STAYS and np.abs(after - energies.min()).max() < STAYS_WITHIN
        return first if stays else None


def minimize(energy: Callable[[Tensor], Tensor], start: Tensor, integrals: Tensor, max_steps: int = 200) -> Path:
    """Minimises an energy of (n_basis,) coefficients p by L-BFGS, at constant w.p.

    It ends `N_STAYS` steps after the gradient has become small, after `max_steps`, or where the energy is not finite.

    Args:
        energy: Returns the energy of coefficients [hartree], differentiable.
        start: The first coefficients.
        integrals: w, (n_basis,).
        max_steps: Most steps.
    """
    coeffs = start.detach().clone().requires_grad_()
    # gradients are projected, and all steps are combinations of gradients: w.p stays the same
    optimizer = torch.optim.LBFGS([coeffs], max_iter=1, max_eval=10, history_size=30, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        value = energy(coeffs)
        (gradient,) = torch.autograd.grad(value, coeffs)
        projected = gradient - integrals * (integrals @ gradient) / (integrals @ integrals)
        coeffs.grad = projected
        return value.detach()

    energies, norms, first_small = [], [], max_steps
    for step in range(max_steps + 1):
        value, norm = float(evaluate()), float(cast(Tensor, coeffs.grad).norm())
        energies.append(value)
        norms.append(norm)
        first_small = min(first_small, step) if norm < SMALL_GRADIENT else first_small
        if step == min(first_small + N_STAYS, max_steps) or not np.isfinite(value):
            break
        optimizer.step(evaluate)
    return Path(energies, norms, coeffs.detach())


@dataclass(frozen=True)
class Optimized:
    """A density optimisation and its errors: of total energies [hartree], and L2 norms in the sample's coordinates."""

    mol_id: str
    path: Path
    true_energy: float
    density_error: float
    initial_density_error: float

    @property
    def energy_error(self) -> float:
        """Last energy minus that of the label at the ground state."""
        return self.path.energies[-1] - self.true_energy


def optimize_density(
    model: DensityModule, samples: Sequence[OFData], grid_level: int = 1, max_steps: int = 200
) -> Optimized:
    """Minimises E[p] = T(p) + exact terms of one geometry from its initial guess.

    Args:
        model: A model of the kinetic energy, float64, in hartree.
        samples: All samples of the geometry, before they are normalised: the first is the initial guess.
        grid_level: PySCF's level of the quadrature grid.
        max_steps: Most steps of the minimisation.

    Raises:
        ConfigError: If no sample is a labelled ground state, or the unit is not hartree.
    """
    first, normalizer, weigher = samples[0], model.normalizer, GroundStateOnlySampleWeigher()
    converged = [s for s in samples if s.has_energy_label.item() and weigher.get_weights(s).item()]
    if not converged or normalizer.unit != "hartree":
        raise ConfigError(
            f"molecule {first.mol_id!r}: density optimisation needs a labelled ground state and energies in hartree, "
            f"got {len(converged)} ground states and {normalizer.unit} (config: data.unit, data.source)"
        )
    exact, coordinates = ExactTerms(first, grid_level=grid_level), read_coordinates(first)

    def energy_of_exact_terms(coeffs: Tensor) -> Tensor:
        return exact(change_coordinates(coeffs, first, False, coordinates, RAW))

    def energy(coeffs: Tensor) -> Tensor:
        moved = first.__copy__()
        moved.coeffs = coeffs
        batch = normalizer.normalize(moved, check=False)
        kinetic = normalizer.denormalize_energy(network(batch, batch.coeffs), batch)
        return kinetic.sum() + energy_of_exact_terms(coeffs)

    network: Any = model.network
    path = minimize(energy, first.coeffs, first.dual_basis_integrals, max_steps)
    truth = converged[-1].coeffs
    true_energy = float(converged[-1].energy_label) + float(energy_of_exact_terms(truth))
    errors = (float((coeffs - truth).norm()) for coeffs in (path.coeffs, first.coeffs))
    return Optimized(first.mol_id, path, true_energy, *errors)


def group_samples(samples: Iterable[OFData]) -> list[list[OFData]]:
    """Returns the samples of each geometry, in their order."""
    groups: dict[str, list[OFData]] = {}
    for sample in samples:
        groups.setdefault(sample.mol_id, []).append(sample)
    return list(groups.values())


def format_optimizations(found: Mapping[str, Sequence[Optimized]]) -> str:
    """Returns a table with a row for each split: how many converge; medians of steps and errors of those."""
    rows = []
    for name, optimized in found.items():
        converged = [o for o in optimized if o.path.steps_to_converge is not None]
        columns = [[o.path.steps_to_converge, 1e3 * abs(o.energy_error), o.density_error] for o in converged]
        values = np.median(np.array(columns, dtype=float), axis=0) if columns else [np.nan] * 3
        texts = ["-" if np.isnan(v) else f"{v:.{d}f}" for v, d in zip(values, (0, 1, 3), strict=True)]
        start = np.median([o.initial_density_error for o in optimized])
        rows.append([name, f"{len(converged)} of {len(optimized)}", *texts, f"{start:.3f}"])
    header = ["", "converged", "steps", "energy error [mHa]", "density error", "of initial guess"]
    return format_rows(header, rows)


def plot_optimizations(found: Mapping[str, Sequence[Optimized]]) -> Figure:
    """Draws energies above that of the label, and gradients, against steps: medians of each split, and its extremes."""
    of_energy: dict[str, Any] = {}
    of_gradient: dict[str, Any] = {}
    for name, optimized in found.items():
        longest = max(len(o.path.energies) for o in optimized)
        for curves, rows in (
            (of_energy, [np.abs(np.array(o.path.energies) - o.true_energy) * 1e3 for o in optimized]),
            (of_gradient, [np.array(o.path.gradient_norms) for o in optimized]),
        ):
            filled = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
            curves[f"{name}: median"] = np.arange(longest), np.median(filled, axis=0)
            curves[f"{name}: largest"] = np.arange(longest), filled.max(axis=0)
    energy, gradient = "|energy - energy of the label| [mHa]", "norm of the projected gradient [Ha]"
    return plot_learning_curves({energy: of_energy, gradient: of_gradient}, "step")
