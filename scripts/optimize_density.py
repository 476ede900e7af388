"""Density optimisation with the models of runs: python scripts/optimize_density.py outputs/<date>/<time> [...].

From the initial guess of every held-out geometry; prints a table, and writes density_optimization.txt and .png into
the folder of each run. Needs the extra ``labels`` (PySCF).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from ofdft_norm.checkpoint import read_checkpoint
from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.example import DensityModule
from ofdft_norm.example.density_optimization import Optimized, group_samples, optimize_density
from ofdft_norm.example.plots import plot_learning_curves, save_figure
from ofdft_norm.example.predict import load_model
from ofdft_norm.hydra_app.readable_errors import run_readably
from ofdft_norm.tables import format_rows


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
    """Draws energies above that of the label, and gradients, against steps: medians of each split, and its extremes."""
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
    parser.add_argument("--splits", nargs="+", default=["test", "test_molecules"], help="geometries of which parts")
    parser.add_argument("--geometries", type=int, help="at most, of each part")
    parser.add_argument("--steps", type=int, default=1000, help="at most, of each minimisation")
    parser.add_argument("--grid-level", type=int, default=1, help="PySCF's level of the quadrature grid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for run in options.runs:
        run_readably(partial(optimize_run, run, options))


if __name__ == "__main__":
    main()
