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
from ofdft_norm.errors import counted
from ofdft_norm.example.ablation import CURVES, AblationResult, RunResult
from ofdft_norm.example.arms import MEANINGS
from ofdft_norm.example.label_errors import LabelErrors, error_name
from ofdft_norm.example.plots import save_figure
from ofdft_norm.example.results import HEADINGS, WITHOUT_NETWORK
from ofdft_norm.example.results import MEANINGS as RESULT_MEANINGS
from ofdft_norm.tables import text_table
from ofdft_norm.units import shown

Array = npt.NDArray[np.float64]

_PANELS = {
    "energy_mae": "energy MAE",
    "energy_mae_within_molecule": "energy MAE within a molecule",
    "gradient_mae": "gradient MAE",
}
# the others are in the file alone: side by side, mean and spread of five errors are wider than a screen
_SHOWN = {quantity: HEADINGS[quantity] for quantity in _PANELS}
_MEANINGS = {
    **RESULT_MEANINGS,
    **WITHOUT_NETWORK,
    **MEANINGS,
    "epochs (E)": "training epochs until the validation energy error is what the best arm has half-way",
    "epochs (gradient)": "the same of the gradient error; never: not in half of the runs",
    "learning rate": "largest learning rate, which the search on one fold chose",
    "input scale": "inputs of the network are divided by it; chosen by the search, too",
}
_ARM, _BASELINE = "#0072b2", "#9a9a9a"


def errors_by_fold(result: AblationResult, name: str) -> dict[str, Array]:
    """Returns the test errors of each baseline and arm, one for each fold: means over its seeds.

    Args:
        result: The ablation.
        name: Which of `LabelErrors`.

    Returns:
        (n_folds,) in the small unit, such as mHa, by baseline and arm.
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
        name: Which validation error, by its name in `LabelErrors`.

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
    """Returns mean and standard deviation over folds, and what each arm was trained with, as two text tables.

    Args:
        result: What the ablation found.
    """
    errors = {quantity: errors_by_fold(result, error_name(quantity, result.unit)) for quantity in _SHOWN}
    speeds = [epochs_to_half_way(result, error_name(quantity, result.unit)) for quantity in CURVES]
    n_folds, seeds = _sizes(result.runs)
    rows = [
        [predictor, *(_mean_and_spread(values[predictor]) for values in errors.values())]
        for predictor in (*result.baselines, *result.chosen)
    ]
    header = [f"test errors in {shown(result.unit).small}", *_SHOWN.values()]
    about = (
        f"mean (standard deviation) over {counted(n_folds, 'fold')} of molecules, {counted(len(seeds), 'seed')} in each"
    )
    learned = [
        [arm, *(_epochs(speed[arm]) for speed in speeds), f"{rate:g}", f"{scale:g}"]
        for arm, (rate, scale) in result.chosen.items()
    ]
    how = ["how each arm learned", "epochs (E)", "epochs (gradient)", "learning rate", "input scale"]
    of_arms = {name: text for name, text in _MEANINGS.items() if name not in MEANINGS}  # the first table has the others
    tables = text_table(header, rows, meanings=_MEANINGS), text_table(how, learned, meanings=of_arms)
    return "\n\n".join([f"{about}\n{tables[0]}", tables[1]])


def _mean_and_spread(errors: Array) -> str:
    if np.isnan(errors).any():
        return "-"
    digits = 1 if errors.mean() < 1e4 else 0
    return f"{errors.mean():.{digits}f} ({errors.std(ddof=1):.{digits}f})"


def _sizes(runs: Sequence[RunResult]) -> tuple[int, set[int]]:
    return len({r.run.fold for r in runs}), {r.run.seed for r in runs}


def _epochs(value: float) -> str:
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
    for axes, (quantity, label) in zip(panels, _PANELS.items(), strict=True):
        of_all = errors_by_fold(result, error_name(quantity, result.unit))
        for row, (predictor, errors) in enumerate(of_all.items()):
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
        axes.set_xlabel(f"{label} [{shown(result.unit).small}]", fontsize=8)
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
        for name in LabelErrors.names(result.unit):
            for predictor, errors in errors_by_fold(result, name).items():
                folds = " ".join(map(repr, errors.tolist()))
                writer.writerow([predictor, name, float(errors.mean()), float(errors.std(ddof=1)), folds])
    save_figure(plot_ablation(result), folder / "ablation.png")
    return table
