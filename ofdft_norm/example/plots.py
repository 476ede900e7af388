"""Pictures: what normalisation does to gradients, and how predicted energies compare with the labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.data.files import written_whole
from ofdft_norm.data.irreps import SHELL_LETTERS
from ofdft_norm.example.results import SplitEnergies
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.units import shown

Array = npt.NDArray[np.float64]

BEFORE, AFTER, LINE = "#9a9a9a", "#0072b2", "#d55e00"
_SPLIT_STYLES = {"val": ("#0072b2", "o"), "test": ("#d55e00", "^")}


def gradient_ranges(
    statistics: DatasetStatistics, normalizer: Normalizer, weigher_key: str = "has_energy_label"
) -> tuple[Array, Array]:
    """Returns the largest gradient of each dimension, before and after normalisation.

    Args:
        statistics: Of the training split; with ``gradient_label/minimum`` and ``maximum``, or at least ``abs_max``.
        normalizer: Its normaliser.
        weigher_key: Whose statistics to use.

    Returns:
        Two (n_basis,) arrays: max |g|, in the normaliser's unit, and max |g'|.
    """
    key = "gradient_label"
    before: Array = statistics.load_statistic(weigher_key, f"{key}/abs_max")
    reference_gradient = np.zeros_like(before)
    if isinstance(normalizer.reference, AtomRef):
        reference_gradient = normalizer.reference.g_z.cpu().numpy()
    if f"{weigher_key}/{key}/maximum" in statistics:
        high = statistics.load_statistic(weigher_key, f"{key}/maximum")
        low = statistics.load_statistic(weigher_key, f"{key}/minimum")
        after = np.maximum(np.abs(high - reference_gradient), np.abs(low - reference_gradient))
    elif reference_gradient.any():  # statistics of STRUCTURES25 have the maximum after the reference instead
        after = statistics.load_statistic(weigher_key, "gradient_max_after_atom_ref")
    else:
        after = before
    scale = np.full_like(before, float(normalizer.energy_scale))
    if normalizer.rescaling is not None:
        scale = scale * (normalizer.rescaling.lambda_z.cpu().numpy() + normalizer.rescaling.epsilon)
    return before, np.asarray(after / scale, dtype=np.float64)


def plot_gradient_ranges(
    statistics: DatasetStatistics,
    normalizer: Normalizer,
    basis_info: BasisInfo,
    weigher_key: str = "has_energy_label",
) -> Figure:
    """Draws the largest gradient of every dimension before and after normalisation, a panel for each element.

    Args:
        statistics: Of the training split.
        normalizer: Its normaliser.
        basis_info: The basis.
        weigher_key: Whose statistics to use.

    Returns:
        The figure; elements that were not seen have no panel.
    """
    before, after = gradient_ranges(statistics, normalizer, weigher_key)
    elements = [i for i, index in enumerate(basis_info.atom_ind_to_basis_function_ind) if before[index].any()]
    figure = Figure(figsize=(7.2, 1.45 * max(len(elements), 1) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    positive = np.concatenate([before[before > 0], after[after > 0], [1e-3]])
    limits = (max(positive.min() / 2, 1e-6), positive.max() * 4)
    grid = figure.subplots(max(len(elements), 1), 1, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid[:, 0])[: len(elements)]
    for axes, element in zip(panels, elements, strict=True):
        index = basis_info.atom_ind_to_basis_function_ind[element]
        draw_gradient_range(axes, before[index], after[index], basis_info.l_per_basis_func[index], limits)
        axes.set_title(symbol(int(basis_info.atomic_numbers[element])), loc="left", fontsize=10, pad=3)
        if normalizer.rescaling is not None:
            target = normalizer.rescaling.s_grad / float(normalizer.energy_scale)
            axes.axhline(target, color=LINE, linewidth=1, linestyle="--", zorder=1)
    if panels:
        panels[-1].set_xlabel("dimension (basis functions of an atom, by angular momentum)")
    unit = shown(normalizer.unit).symbol
    figure.supylabel(f"largest gradient component [{unit}; after: normalised units]", fontsize=9)
    handles = [_marker(BEFORE, "before"), _marker(AFTER, "after")]
    if normalizer.rescaling is not None:
        line = Line2D([], [], color=LINE, linestyle="--", label=f"s_grad = {normalizer.rescaling.s_grad:g} {unit}")
        handles.append(line)
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_gradient_range(
    axes: Axes, before: Array, after: Array, momenta: npt.NDArray[np.int64], limits: tuple[float, float]
) -> None:
    """Draws the largest gradient of each of an element's functions, before and after.

    Args:
        axes: Where to.
        before: (n,) largest gradients.
        after: (n,) those after normalisation.
        momenta: (n,) angular momenta.
        limits: Of the gradients' axis.
    """
    dimension = np.arange(len(before))
    axes.vlines(
        dimension,
        np.maximum(np.minimum(before, after), limits[0]),
        np.maximum(before, after),
        color="#dddddd",
        lw=0.8,
        zorder=0,
    )
    axes.scatter(dimension, before, s=7, color=BEFORE, zorder=2)
    axes.scatter(dimension, after, s=7, color=AFTER, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.set_xlim(-1, len(before))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for l in np.unique(momenta):
        first, last = np.flatnonzero(momenta == l)[[0, -1]]
        if first > 0:
            axes.axvline(first - 0.5, color="#bbbbbb", linewidth=0.6)
        name = SHELL_LETTERS[l]
        axes.text(
            (first + last) / 2, 0.97, name, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8
        )
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _marker(color: str, label: str) -> Line2D:
    return Line2D([], [], color=color, marker="o", markersize=4, linestyle="", label=label)


def plot_energies(energies: Mapping[str, SplitEnergies]) -> Figure:
    """Draws predicted against true energies, and the same after the reference is subtracted.

    Args:
        energies: By split.

    Returns:
        The figure, in the energies' unit. Total energies span hundreds of hartree, where any model looks right; the
        second panel shows the part that the model has to learn, with the mean absolute error.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    total, residual = figure.subplots(1, 2)
    unit = shown(next((values.unit for values in energies.values()), "hartree"))
    for split, values in energies.items():
        color, marker = _SPLIT_STYLES.get(split, ("#444444", "s"))
        style = {"s": 12, "color": color, "marker": marker, "alpha": 0.7, "linewidths": 0}
        predicted, true = values.predicted.numpy(), values.true.numpy()
        reference = values.reference.numpy()
        error = unit.factor * float(np.abs(predicted - true).mean()) if len(true) else float("nan")
        total.scatter(true, predicted, label=split, **style)
        left = unit.factor * (true - reference), unit.factor * (predicted - reference)
        residual.scatter(*left, label=f"{split}: MAE {error:.1f} {unit.small}", **style)
    for axes, name, title in ((total, unit.symbol, "energy"), (residual, unit.small, "energy after reference")):
        _diagonal(axes)
        axes.set_xlabel(f"true [{name}]", fontsize=9)
        axes.set_ylabel(f"predicted [{name}]", fontsize=9)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if energies:
            axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _diagonal(axes: Axes) -> None:
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color="#888888", linewidth=0.8, zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure, 200 dots per inch, in the format of the file name's ending; whole or not at all."""
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=200, format=Path(path).suffix[1:])
