"""Density optimisation with the models of runs: python scripts/optimize_density.py outputs/<date>/<time> [...].

Minimises the total energy (a learned energy plus exact terms) from the initial guess of every held-out geometry. Prints
a table, and writes density_optimization.txt and .png into the folder of each run. Needs the extra ``labels`` (PySCF).
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from ofdft_norm.checkpoint import read_checkpoint
from ofdft_norm.data.files import write_text
from ofdft_norm.data.sample import RAW, OFData
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import DensityModule, ExactTerms
from ofdft_norm.example.plots import plot_learning_curves, save_figure
from ofdft_norm.example.predict import load_model
from ofdft_norm.hydra_app.readable_errors import run_readably
from ofdft_norm.statistics.weighers import GroundStateOnlySampleWeigher
from ofdft_norm.tables import format_rows
from ofdft_norm.transforms.coordinates import change_coordinates, read_coordinates

Array = npt.NDArray[np.float64]

SMALL_GRADIENT = 1e-2  # hartree, norm of the projected gradient of a converged density
STAYS_WITHIN, N_STAYS = 5e-3, 50  # hartree, steps: the energy of a converged density stays near its minimum
RUNS_AWAY = 10.0  # hartree: change of the energy that ends a minimisation
RATE, MOMENTUM = 5e-2, 0.9  # of gradient descent

# learned energies, with the exchange-correlation functional of the embedded labels that the exact terms need beside it
FUNCTIONALS: dict[str, str | None] = {"e_kin": "PBE", "e_kin_plus_xc": None}


@dataclass(frozen=True)
class Minimization:
    """Densities of a minimisation: (n_steps + 1,) energies and norms of projected gradients, and the final density.

    The final density is the first with a small gradient, or the last one.
    """

    energies: list[float]
    gradient_norms: list[float]
    coeffs: Tensor

    @property
    def final_step(self) -> int:
        """The step of the final density."""
        small = np.array(self.gradient_norms) < SMALL_GRADIENT
        return int(small.argmax()) if small.any() else len(small) - 1

    @property
    def converged(self) -> bool:
        """Whether the final gradient is small, and the energy stays near its minimum for the next `N_STAYS` steps."""
        after = np.array(self.energies[self.final_step :])
        return len(after) > N_STAYS and bool(np.abs(after - min(self.energies)).max() < STAYS_WITHIN)


def minimize(
    energy: Callable[[Tensor], Tensor], start: Tensor, integrals: Tensor, max_steps: int = 1000
) -> Minimization:
    """Minimises an energy of (n_basis,) coefficients p by gradient descent with momentum, at constant w.p.

    It ends `N_STAYS` steps after the gradient is small, after `max_steps`, or when the energy diverges.

    Args:
        energy: Returns the energy of coefficients [hartree], differentiable.
        start: The first coefficients.
        integrals: w, (n_basis,).
        max_steps: Most steps.
    """
    coeffs, velocity, final = start.detach().clone(), torch.zeros_like(start), None
    energies, norms, last_step = list[float](), list[float](), max_steps
    for step in range(max_steps + 1):
        value = energy(coeffs.requires_grad_())
        (gradient,) = torch.autograd.grad(value, coeffs)
        projected = gradient - integrals * (integrals @ gradient) / (integrals @ integrals)
        energies.append(float(value.detach()))
        norms.append(float(projected.norm()))
        coeffs = coeffs.detach()
        if final is None and norms[-1] < SMALL_GRADIENT:
            final, last_step = coeffs, min(step + N_STAYS, max_steps)
        if step == last_step or not abs(energies[-1] - energies[0]) < RUNS_AWAY:
            break
        velocity = MOMENTUM * velocity - RATE * projected
        coeffs = coeffs + velocity
    return Minimization(energies, norms, coeffs if final is None else final)


@dataclass(frozen=True)
class Optimized:
    """A density optimisation: total energies [hartree], and density errors (L2 norm in the sample's coordinates)."""

    mol_id: str
    path: Minimization
    true_energy: float
    density_error: float
    initial_density_error: float

    @property
    def energy_error(self) -> float:
        """Energy of the final density minus that of the label at the ground state."""
        return self.path.energies[self.path.final_step] - self.true_energy


def optimize_density(
    model: DensityModule,
    samples: Sequence[OFData],
    energy_key: str,
    spread: Array,
    grid_level: int = 1,
    max_steps: int = 1000,
) -> Optimized:
    """Minimises E[p], a learned energy plus the exact terms, of one neutral geometry from its initial guess.

    The initial guess is moved along w to the exact number of electrons. Coefficients with a small standard deviation
    in the training split take small steps: gradient descent uses the coordinates q = p / r, with r the square root of
    `spread` divided by its largest value. Gradients are with respect to q.

    Args:
        model: A model of the energy, float64, in hartree.
        samples: All samples of the geometry, before they are normalised: the first is the initial guess.
        energy_key: Name of the learned energy, one of `FUNCTIONALS`.
        spread: Standard deviation of every coefficient in the training split, by basis function.
        grid_level: PySCF's level of the quadrature grid.
        max_steps: Most steps of the minimisation.

    Raises:
        ConfigError: If no sample is a labelled ground state, the energy is another, or the unit is not hartree.
    """
    first, normalizer, weigher = samples[0], model.normalizer, GroundStateOnlySampleWeigher()
    converged = [s for s in samples if s.has_energy_label.item() and weigher.get_weights(s).item()]
    if not converged or normalizer.unit != "hartree" or energy_key not in FUNCTIONALS:
        raise ConfigError(
            f"molecule {first.mol_id!r}: density optimisation needs a labelled ground state and one of "
            f"{[*FUNCTIONALS]} in hartree, got {len(converged)} ground states and {energy_key} in {normalizer.unit} "
            "(config: data.source, data.source.energy_key, data.unit)"
        )
    exact, coordinates = ExactTerms(first, FUNCTIONALS[energy_key], grid_level), read_coordinates(first)

    def energy_of_exact_terms(coeffs: Tensor) -> Tensor:
        return exact(change_coordinates(coeffs, first, False, coordinates, RAW))

    def energy(coeffs: Tensor) -> Tensor:
        moved = first.__copy__()
        moved.coeffs = coeffs
        batch = normalizer.normalize(moved, check=False)
        learned = normalizer.denormalize_energy(network(batch, batch.coeffs), batch)
        return learned.sum() + energy_of_exact_terms(coeffs)

    network: Any = model.network
    w, n_electrons = first.dual_basis_integrals, first.atomic_numbers.sum()
    start = first.coeffs + w * (n_electrons - w @ first.coeffs) / (w @ w)
    scale = torch.from_numpy((spread / spread.max()).clip(1e-4)).sqrt()[first.basis_function_ind]
    path = minimize(lambda q: energy(scale * q), start / scale, scale * w, max_steps)
    truth = converged[-1].coeffs
    true_energy = float(converged[-1].energy_label) + float(energy_of_exact_terms(truth))
    errors = (float((coeffs - truth).norm()) for coeffs in (scale * path.coeffs, first.coeffs))
    return Optimized(first.mol_id, path, true_energy, *errors)


def group_samples(samples: Iterable[OFData]) -> list[list[OFData]]:
    """Returns the samples of each geometry, in their order."""
    groups: dict[str, list[OFData]] = {}
    for sample in samples:
        groups.setdefault(sample.mol_id, []).append(sample)
    return list(groups.values())


def format_optimizations(found: Mapping[str, Sequence[Optimized]]) -> str:
    """Returns a table with two rows for each split: geometries that converge, and all initial guesses."""
    header = ["medians (largest)", "converged", "steps", "|energy error| [mHa]", "density error"]
    rows = []
    for split, optimized in found.items():
        final = [o for o in optimized if o.path.converged]
        errors = [(o.energy_error, o.density_error) for o in final]
        starts = [(o.path.energies[0] - o.true_energy, o.initial_density_error) for o in optimized]
        steps = f"{np.median([o.path.final_step for o in final]):.0f}" if final else "-"
        rows.append([split, f"{len(final)} of {len(optimized)}", steps, *_medians(errors)])
        rows.append(["initial guess", "", "", *_medians(starts)])
    return format_rows(header, rows)


def _medians(errors: Sequence[tuple[float, float]]) -> list[str]:
    if not errors:
        return ["-", "-"]
    sizes = np.abs(errors) * np.array([1e3, 1.0])
    pairs = zip(np.median(sizes, axis=0), sizes.max(axis=0), (1, 3), strict=True)
    return [f"{median:.{digits}f} ({largest:.{digits}f})" for median, largest, digits in pairs]


def plot_optimizations(found: Mapping[str, Sequence[Optimized]]) -> Figure:
    """Draws energy errors and gradient norms against steps: the median and the largest of each split."""
    of_energy, of_gradient = dict[str, Any](), dict[str, Any]()
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


def optimize_run(run: Path, options: argparse.Namespace) -> None:
    """Optimises densities with the best checkpoint of a run."""
    data = OmegaConf.load(run / "config.yaml").data
    datamodule: OFDFTDataModule = instantiate(data)
    spread = datamodule.statistics[datamodule.weigher_key].coeffs.std
    settings = str(data.source.get("energy_key")), spread, options.grid_level, options.steps
    model = cast(DensityModule, load_model(read_checkpoint(run / "checkpoints" / "best.ckpt"), None)).double().eval()
    found = {}
    for split in (split for split in options.splits if split in datamodule.parts.names()):
        geometries = group_samples(datamodule.parts[split])[: options.geometries]
        found[split] = [optimize_density(model, own, *settings) for own in geometries]
    table = format_optimizations(found)
    write_text(run / "density_optimization.txt", table + "\n")
    save_figure(plot_optimizations(found), run / "density_optimization.png")
    print(f"{run}\n{table}")


def main() -> None:
    """Runs the command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs of ofdft-norm train")
    parser.add_argument("--splits", nargs="+", default=["test", "test_molecules"], help="parts of the split")
    parser.add_argument("--geometries", type=int, help="largest number of geometries of each part")
    parser.add_argument("--steps", type=int, default=1000, help="largest number of steps")
    parser.add_argument("--grid-level", type=int, default=1, help="PySCF's level of the quadrature grid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for run in options.runs:
        run_readably(partial(optimize_run, run, options))


if __name__ == "__main__":
    main()
