"""The table and the plot of an ablation: means over folds, with the spread that folds and seeds leave."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ofdft_norm.data.files import write_text, written_whole
from ofdft_norm.example.ablation import CURVES, AblationResult, RunResult
from ofdft_norm.example.label_errors import LabelErrors, error_name
from ofdft_norm.example.plots import save_figure
from ofdft_norm.example.results import HEADINGS
from ofdft_norm.tables import text_table

Array = npt.NDArray[np.float64]

_PANELS = {
    "energy_mae_mHa": "energy MAE [mHa]",
    "energy_mae_within_molecule_mHa": "energy MAE within a molecule [mHa]",
    "gradient_mae_mHa": "gradient MAE [mHa]",
}
_ARM, _BASELINE = "#0072b2", "#9a9a9a"


def errors_by_fold(result: AblationResult, name: str) -> dict[str, Array]:
    """Returns the test errors of each baseline and arm, one for each fold: means over its seeds.

    Args:
        result: The ablation.
        name: Which of `LabelErrors`.

    Returns:
        (n_folds,) [mHa], by baseline and arm.
    """
    errors = {predictor: np.array([fold[name] for fold in folds]) for predictor, folds in result.baselines.items()}
    for arm in result.chosen:
        runs = [r for r in result.runs if r.run.arm == arm]
        folds = sorted({r.run.fold for r in runs})
        errors[arm] = np.array([np.mean([r.errors["test"][name] for r in runs if r.run.fold == f]) for f in folds])
    return errors


def best_arm(result: AblationResult, name: str) -> str:
    """Returns the arm with the smallest mean test error.

    Args:
        result: What the ablation found.
        name: Name of the error.
    """
    errors = errors_by_fold(result, name)
    return min(result.chosen, key=lambda arm: float(errors[arm].mean()))


def epochs_to_half_way(result: AblationResult, name: str) -> dict[str, float]:
    """Returns how soon each arm is as good as the best arm is half-way through its training.

    In each fold and with each seed, the best arm's validation error after half of its epochs is the mark; counted are
    the epochs after which an arm first reaches it.

    Args:
        result: The ablation.
        name: Which of `CURVES`.

    Returns:
        The median over folds and seeds, by arm; infinite where an arm does not reach the mark in half of its runs.
    """
    curves = {(r.run.arm, r.run.fold, r.run.seed): r.curves[name] for r in result.runs}
    best = best_arm(result, name)
    epochs: dict[str, list[float]] = {arm: [] for arm in result.chosen}
    for (arm, fold, seed), curve in curves.items():
        marks = curves[best, fold, seed]
        mark = marks[(len(marks) - 1) // 2]
        reached = [epoch for epoch, error in enumerate(curve, start=1) if error <= mark]
        epochs[arm].append(float(reached[0]) if reached else np.inf)
    # the lower median: a mean of two would be infinite with the first infinite one
    return {arm: sorted(values)[(len(values) - 1) // 2] for arm, values in epochs.items()}


def ablation_table(result: AblationResult) -> str:
    """Returns mean and standard deviation over folds, and how fast each arm learns, as a text table.

    Args:
        result: What the ablation found.
    """
    errors = {quantity: errors_by_fold(result, error_name(quantity, "hartree")) for quantity in HEADINGS}
    speeds = {name: epochs_to_half_way(result, name) for name in CURVES}
    n_folds, seeds = _sizes(result.runs)
    rows = []
    for predictor in [*result.baselines, *result.chosen]:
        cells = [_mean_and_spread(values[predictor]) for values in errors.values()]
        epochs = [_epochs(speed.get(predictor)) for speed in speeds.values()]
        rows.append([predictor, *cells, *epochs, *_chosen(result.chosen.get(predictor))])
    header = ["", *HEADINGS.values(), "epochs (E)", "epochs (gradient)", "learning rate", "input scale"]
    about = (
        f"test errors [mHa], mean (standard deviation) over {n_folds} folds of molecules, "
        f"{len(seeds)} seeds in each; epochs until the best arm's half-way error"
    )
    return f"{about}\n{text_table(header, rows)}"


def _mean_and_spread(errors: Array) -> str:
    return "-" if np.isnan(errors).any() else f"{errors.mean():.1f} ({errors.std(ddof=1):.1f})"


def _sizes(runs: Sequence[RunResult]) -> tuple[int, set[int]]:
    return len({r.run.fold for r in runs}), {r.run.seed for r in runs}


def _chosen(values: tuple[float, float] | None) -> list[str]:
    return ["", ""] if values is None else [f"{value:g}" for value in values]


def _epochs(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if np.isfinite(value) else "never"


def plot_ablation(result: AblationResult) -> Figure:
    """Draws the errors of baselines and arms: a dot for each fold, and mean and standard deviation over them.

    Args:
        result: What the ablation found.
    """
    names = [*result.baselines, *result.chosen]
    figure = Figure(figsize=(9.0, 0.32 * len(names) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    rng = np.random.default_rng(0)
    for axes, (name, label) in zip(panels, _PANELS.items(), strict=True):
        for row, (predictor, errors) in enumerate(errors_by_fold(result, name).items()):
            color = _BASELINE if predictor in result.baselines else _ARM
            heights = row + rng.uniform(-0.18, 0.18, len(errors))
            axes.scatter(errors, heights, s=9, color=color, alpha=0.5, linewidths=0)
            mean, spread = errors.mean(), errors.std(ddof=1)
            low = max(mean - spread, errors.min())  # a logarithmic axis has no room for mean - spread < 0
            axes.plot([low, mean + spread], [row, row], color=color, linewidth=1.2)
            axes.scatter([mean], [row], s=34, color=color, marker="D", zorder=3)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label, fontsize=8)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].invert_yaxis()
    return figure


def write_ablation(result: AblationResult, folder: Path) -> str:
    """Writes ``ablation.txt``, ``ablation.csv`` and ``ablation.png``.

    Args:
        result: The ablation.
        folder: Where to.

    Returns:
        The table.
    """
    table = ablation_table(result)
    write_text(folder / "ablation.txt", table + "\n")
    with written_whole(folder / "ablation.csv") as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["predictor", "error", "mean", "std", "folds"])
        for name in LabelErrors.names("hartree"):
            for predictor, errors in errors_by_fold(result, name).items():
                folds = " ".join(map(repr, errors.tolist()))
                writer.writerow([predictor, name, float(errors.mean()), float(errors.std(ddof=1)), folds])
    save_figure(plot_ablation(result), folder / "ablation.png")
    return table
