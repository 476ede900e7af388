"""Compares normalisations: python scripts/ablation.py --output ablation.

Every arm gets the same search over learning rate and input scale, on the validation part of the first fold; then it
trains with the chosen values on every fold with every seed. Each run writes a JSON file and is not repeated. After
--overrides follow Hydra overrides of configs/train.yaml for every run. Takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from omegaconf import DictConfig

from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, counted
from ofdft_norm.example.callbacks import quiet_lightning
from ofdft_norm.example.metrics import LabelErrors, error_name
from ofdft_norm.example.plots import save_figure
from ofdft_norm.example.results import HEADINGS, MODEL, REFERENCE_ONLY, baselines, evaluate, split_batches
from ofdft_norm.hydra_app.readable_errors import config_dir, run_readably
from ofdft_norm.statistics.store import DatasetStatistics
from ofdft_norm.tables import text_table
from ofdft_norm.units import shown

log = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]

NO_NORMALIZATION = ("data/reference=none", "data/rescaling=none")
GLOBAL_SCALE = "one global scale"
ARMS: dict[str, tuple[str, ...]] = {
    "none": NO_NORMALIZATION,
    GLOBAL_SCALE: (*NO_NORMALIZATION, "data.energy_scale=std"),
    "reference only": ("data/reference=atom_ref", "data/rescaling=none"),
    "rescaling only": ("data/reference=none", "data/rescaling=dimension_wise"),
    "both": ("data/reference=atom_ref", "data/rescaling=dimension_wise"),
    "equivariant both": ("data/reference=scalar_atom_ref", "data/rescaling=equivariant"),
}
SEARCHED = ("energy_mae", "gradient_mae")  # the search minimises the product of these validation errors
SHOWN = ("energy_mae", "energy_mae_within_molecule", "gradient_mae")


@dataclass(frozen=True)
class AblationSettings:
    """What an ablation compares; defaults of the command line."""

    output: Path
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] = tuple(ARMS)
    epochs: int = 20
    search_epochs: int = 8
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    input_scales: tuple[float, ...] = (0.5, 2.0, 5.0, 20.0)  # divide the inputs of the network
    folds: int = 5
    seeds: tuple[int, ...] = (0, 1)
    workers: int = 2

    def __post_init__(self) -> None:
        """Refuses values that no ablation can be made with."""
        positive = [self.epochs, self.search_epochs, *self.learning_rates, *self.input_scales, self.workers]
        if self.folds < 3:
            raise ConfigError(f"--folds {self.folds}: expected at least 3, one each to train, validate and test on")
        if not all(math.isfinite(value) and value > 0 for value in positive):
            raise ConfigError("epochs, learning rates, input scales and workers: expected positive numbers")
        if not self.seeds or min(self.seeds) < 0:
            raise ConfigError(f"--seeds {list(self.seeds)}: expected numbers >= 0")


@dataclass(frozen=True)
class Run:
    """One training of an arm."""

    arm: str
    fold: int
    seed: int
    epochs: int
    learning_rate: float
    input_scale: float

    @property
    def name(self) -> str:
        """Name of the run's file, without its ending."""
        numbers = f"fold{self.fold}_seed{self.seed}_epochs{self.epochs}_rate{self.learning_rate:g}"
        return f"{self.arm.replace(' ', '_')}_{numbers}_scale{self.input_scale:g}"


@dataclass(frozen=True)
class Ablation:
    """All results of an ablation.

    Attributes:
        chosen: Learning rate and input scale of each arm.
        errors: Test errors by predictor (baselines and arms) and name, (n_folds,) each: means over seeds.
        n_seeds: Number of seeds.
        unit: Unit of the energies.
    """

    chosen: dict[str, tuple[float, float]]
    errors: dict[str, dict[str, Array]]
    n_seeds: int
    unit: str


def ablate(settings: AblationSettings) -> Ablation:
    """Runs the missing part of an ablation, and returns all of it."""
    unit = _claim_folder(settings)
    tried = product(settings.arms, settings.learning_rates, settings.input_scales)
    search = [Run(arm, 0, settings.seeds[0], settings.search_epochs, rate, scale) for arm, rate, scale in tried]
    found = _results(settings, search)
    chosen = {
        arm: choose({run: errors for run, errors in found.items() if run.arm == arm}, unit) for arm in settings.arms
    }
    wanted = product(range(settings.folds), settings.arms, settings.seeds)
    runs = [Run(arm, fold, seed, settings.epochs, *chosen[arm]) for fold, arm, seed in wanted]
    results, names = _results(settings, runs), LabelErrors.names(unit)
    by_fold = [_baseline_errors(settings, fold) for fold in range(settings.folds)]
    errors = {p: {name: np.array([fold[p][name] for fold in by_fold]) for name in names} for p in by_fold[0]}
    for arm in settings.arms:
        of_arm = [
            [errors["test"] for run, errors in results.items() if (run.arm, run.fold) == (arm, fold)]
            for fold in range(settings.folds)
        ]
        errors[arm] = {name: np.array([np.mean([e[name] for e in fold]) for fold in of_arm]) for name in names}
    return Ablation(chosen, errors, len(settings.seeds), unit)


def choose(search: dict[Run, Any], unit: str) -> tuple[float, float]:
    """Returns the learning rate and input scale with the smallest product of the validation errors `SEARCHED`."""

    def score(run: Run) -> float:
        product = math.prod(search[run]["val"][error_name(quantity, unit)] for quantity in SEARCHED)
        return product if math.isfinite(product) else math.inf

    best = min(search, key=score)
    if score(best) == math.inf:
        raise ConfigError(f"all runs of {best.arm!r} diverged: try smaller learning rates (--learning-rates)")
    return best.learning_rate, best.input_scale


def divide(names: Sequence[str], n_folds: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Divides molecules into folds: each is tested once; half of the next fold's test molecules validate."""
    if len(names) < 2 * n_folds:
        raise ConfigError(f"{counted(len(names), 'molecule')} for {n_folds} folds: expected 2 in each (--folds)")
    shuffled = np.random.default_rng(seed).permutation(sorted(names))
    groups = [group.tolist() for group in np.array_split(shuffled, n_folds)]
    folds = []
    for i, test in enumerate(groups):
        val = groups[(i + 1) % n_folds][: len(groups[(i + 1) % n_folds]) // 2]
        folds.append({"train": sorted(set(names) - set(test) - set(val)), "val": sorted(val), "test": sorted(test)})
    return folds


# --- runs -------------------------------------------------------------------------------------------------------------


def train_run(settings: AblationSettings, run: Run) -> dict[str, dict[str, float]]:
    """Trains one run; returns the errors of its last weights by split."""
    quiet_lightning()
    torch.set_num_threads(1)
    seed_everything(run.seed, verbose=False)
    cfg = _compose(settings, run.arm, run.fold)
    datamodule: OFDFTDataModule = instantiate(cfg.data)
    datamodule.setup("fit")
    model = instantiate(cfg.model, learning_rate=run.learning_rate, **_scales(cfg, run, datamodule))
    switches = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    folder = str(settings.output)
    trainer: Trainer = instantiate(cfg.trainer, max_epochs=run.epochs, default_root_dir=folder, **switches)
    trainer.fit(model, datamodule=datamodule)
    predict, normalizer = {MODEL: model.cpu().eval().compare}, datamodule.normalizer
    return {s: evaluate(predict, split_batches(datamodule, s), normalizer, s)[0].errors for s in ("val", "test")}


def _scales(cfg: DictConfig, run: Run, datamodule: OFDFTDataModule) -> dict[str, float]:
    """Returns the model's `coeff_scale`, and with one global scale its `gradient_weight`.

    With one global scale the network's input is p / std(p) and its output E / std(E); the loss divides gradients by
    std(g). The model's loss divides gradients by the energy scale, for which the weight compensates.
    """
    if run.arm != GLOBAL_SCALE or datamodule.basis_info is None:
        return {"coeff_scale": run.input_scale}
    statistics, key, dims = datamodule.statistics, datamodule.weigher_key, datamodule.basis_info.basis_dim_per_atom
    coeffs, gradient = (global_std(statistics, key, field, dims) for field in ("coeffs", "gradient_label"))
    weight = cfg.model.gradient_weight * float(datamodule.normalizer.energy_scale) / gradient
    return {"coeff_scale": run.input_scale * coeffs, "gradient_weight": weight}


def global_std(statistics: DatasetStatistics, weigher_key: str, field: str, dims: Any) -> float:
    """Returns the standard deviation of a field over all dimensions of all atoms."""
    of_weigher: Any = statistics[weigher_key]
    counts, found = np.repeat(of_weigher.n_atoms, dims), getattr(of_weigher, field)
    total_mean = np.average(found.mean, weights=counts)
    return float(np.sqrt(np.average(found.std**2 + (found.mean - total_mean) ** 2, weights=counts)))


def _claim_folder(settings: AblationSettings) -> str:
    """Writes the folds and overrides of the folder's runs; refuses a folder of other runs; returns the unit."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        data = compose("train", overrides=list(settings.overrides)).data
    source = instantiate(data.source)
    if source.energy_key is None:
        raise ConfigError(f"{type(source).__name__}: an ablation needs label files to divide (config: data/source)")
    folds = divide([Path(name).name for name in source.everything()], settings.folds)
    common, path = {"overrides": list(settings.overrides), "folds": folds}, settings.output / "ablation.json"
    if path.exists() and json.loads(path.read_text()) != common:
        raise ConfigError(f"{path}: its runs have other folds or overrides: give another folder (--output)")
    write_text(path, json.dumps(common, indent=1))
    for fold, split in enumerate(folds):
        write_text(settings.output / f"fold_{fold}.json", json.dumps(split, indent=1))
    return str(data.unit)


def _compose(settings: AblationSettings, arm: str, fold: int) -> DictConfig:
    file = settings.output.absolute() / f"fold_{fold}.json"
    split, quiet = ["data/split=file", f"data.split.file={file}"], "data.statistics.progress=false"
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*settings.overrides, *split, quiet, f"output_dir={file.parent}", *ARMS[arm]])


def _results(settings: AblationSettings, runs: Sequence[Run]) -> dict[Run, Any]:
    """Returns the errors of runs, after those without a file have run."""
    files = {run: settings.output / "runs" / f"{run.name}.json" for run in runs}
    missing = [run for run, file in files.items() if not file.exists()]
    if missing:
        with ProcessPoolExecutor(settings.workers, get_context("spawn"), _quiet_process) as pool:
            for run, errors in zip(missing, pool.map(train_run, [settings] * len(missing), missing), strict=True):
                write_text(files[run], json.dumps({**asdict(run), "errors": errors}, indent=1))
                log.info("%d of %d: %s", sum(file.exists() for file in files.values()), len(files), run.name)
    return {run: json.loads(file.read_text())["errors"] for run, file in files.items()}


def _quiet_process() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def _baseline_errors(settings: AblationSettings, fold: int) -> dict[str, dict[str, float]]:
    file = settings.output / "runs" / f"baselines_fold{fold}.json"
    if not file.exists():
        datamodule: OFDFTDataModule = instantiate(_compose(settings, "both", fold).data)
        datamodule.setup("fit")
        rows = evaluate(baselines(datamodule), split_batches(datamodule, "test"), datamodule.normalizer, "test")
        names = {REFERENCE_ONLY: "reference, no network"}  # "reference only" is an arm, too
        write_text(file, json.dumps({names.get(r.predictor, r.predictor): r.errors for r in rows}, indent=1))
    return json.loads(file.read_text())


# --- table and plot ---------------------------------------------------------------------------------------------------


def format_tables(ablation: Ablation) -> str:
    """Returns mean and standard deviation over folds, and the chosen values of each arm, as two text tables."""
    n_folds = len(next(iter(ablation.errors.values()))[error_name(SHOWN[0], ablation.unit)])
    headings = [HEADINGS[LabelErrors][quantity] for quantity in SHOWN]
    rows = [[f"test errors in {shown(ablation.unit).small}", *(second for _, second in headings)]]
    for predictor, errors in ablation.errors.items():
        rows.append([predictor, *(_mean_and_spread(errors[error_name(q, ablation.unit)]) for q in SHOWN)])
    first = text_table(["", *(first for first, _ in headings)], rows)
    chosen = [[arm, f"{rate:g}", f"{scale:g}"] for arm, (rate, scale) in ablation.chosen.items()]
    about = f"mean (standard deviation) over {counted(n_folds, 'fold')}, {counted(ablation.n_seeds, 'seed')} in each"
    return f"{about}\n{first}\n\n{text_table(['chosen by the search', 'learning rate', 'input scale'], chosen)}"


def _mean_and_spread(errors: Array) -> str:
    return "-" if np.isnan(errors).any() else f"{errors.mean():.1f} ({errors.std(ddof=1):.1f})"


def plot_ablation(ablation: Ablation) -> Figure:
    """Draws the errors of baselines and arms: a dot for each fold, and mean and standard deviation over folds."""
    names = list(ablation.errors)
    figure = Figure(figsize=(9.0, 0.32 * len(names) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    rng = np.random.default_rng(0)
    for axes, quantity in zip(panels, SHOWN, strict=True):
        for row, predictor in enumerate(names):
            errors = ablation.errors[predictor][error_name(quantity, ablation.unit)]
            color = "#0072b2" if predictor in ablation.chosen else "#9a9a9a"
            axes.scatter(errors, row + rng.uniform(-0.18, 0.18, len(errors)), s=9, color=color, alpha=0.5, linewidths=0)
            mean, spread = errors.mean(), errors.std(ddof=1)
            low = max(mean - spread, errors.min())  # mean - spread may be negative, the axis is logarithmic
            axes.plot([low, mean + spread], [row, row], color=color, linewidth=1.2)
            axes.scatter([mean], [row], s=34, color=color, marker="D", zorder=3)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{' '.join(HEADINGS[LabelErrors][quantity])} [{shown(ablation.unit).small}]", fontsize=8)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].invert_yaxis()
    return figure


def write_ablation(ablation: Ablation, folder: Path) -> str:
    """Writes ``ablation.txt``, ``ablation.csv`` and ``ablation.png``; returns the tables."""
    tables = format_tables(ablation)
    write_text(folder / "ablation.txt", tables + "\n")
    with (folder / "ablation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["predictor", "error", "mean", "std", "folds"])
        for predictor, errors in ablation.errors.items():
            for name, folds in errors.items():
                values = [float(folds.mean()), float(folds.std(ddof=1)), " ".join(map(repr, folds.tolist()))]
                writer.writerow([predictor, name, *values])
    save_figure(plot_ablation(ablation), folder / "ablation.png")
    return tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    defaults = AblationSettings(Path())
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--output", required=True, type=Path, help="folder of the runs' results, table and plot")
    add("--overrides", nargs="*", default=(), help="Hydra overrides for every run")
    add("--arms", nargs="+", default=defaults.arms, choices=list(ARMS), help="what to compare")
    add("--epochs", type=int, default=defaults.epochs, help="of each run")
    add("--search-epochs", type=int, default=defaults.search_epochs, help="of each run of the search")
    add("--learning-rates", nargs="+", type=float, default=defaults.learning_rates, help="to try")
    add("--input-scales", nargs="+", type=float, default=defaults.input_scales, help="to try")
    add("--folds", type=int, default=defaults.folds, help="test splits of the molecules")
    add("--seeds", nargs="+", type=int, default=defaults.seeds, help="each trains every fold")
    add("--workers", type=int, default=defaults.workers, help="processes, one thread each")
    options: Any = {
        key: tuple(v) if isinstance(v, list) else v for key, v in vars(parser.parse_args(arguments)).items()
    }
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    def run() -> None:
        settings = AblationSettings(**options)
        print(write_ablation(ablate(settings), settings.output))

    run_readably(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
