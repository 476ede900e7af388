"""Density optimisation with the models of runs: python scripts/optimize_density.py outputs/<date>/<time> [...].

From the initial guess of every held-out geometry; prints a table, and writes density_optimization.txt and .png into
the folder of each run. Needs the extra ``labels`` (PySCF).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import cast

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ofdft_norm.checkpoint import read_checkpoint
from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.example import DensityModule
from ofdft_norm.example.density_optimization import (
    format_optimizations,
    group_samples,
    optimize_density,
    plot_optimizations,
)
from ofdft_norm.example.plots import save_figure
from ofdft_norm.example.predict import load_model
from ofdft_norm.hydra_app.readable_errors import run_readably


def optimize_run(run: Path, options: argparse.Namespace) -> None:
    """Optimises densities with the best checkpoint of a run."""
    datamodule: OFDFTDataModule = instantiate(OmegaConf.load(run / "config.yaml").data)
    model = cast(DensityModule, load_model(read_checkpoint(run / "checkpoints" / "best.ckpt"), None)).double().eval()
    found = {}
    for split in (split for split in options.splits if split in datamodule.parts.names()):
        geometries = group_samples(datamodule.parts[split])[: options.geometries]
        found[split] = [optimize_density(model, own, options.grid_level, options.steps) for own in geometries]
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
    parser.add_argument("--steps", type=int, default=200, help="at most, of each minimisation")
    parser.add_argument("--grid-level", type=int, default=1, help="PySCF's level of the quadrature grid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for run in options.runs:
        run_readably(partial(optimize_run, run, options))


if __name__ == "__main__":
    main()
