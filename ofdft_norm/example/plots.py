"""Pictures: gradients, coefficients and energies before and after normalisation, and errors of predictions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ofdft_norm.data.basis import SHELL_LETTERS, BasisInfo
from ofdft_norm.data.elements import find_symbol
from ofdft_norm.data.files import write_whole
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.example.results import CHEMICAL_ACCURACY
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.build_normalizer import find_residual
from ofdft_norm.normalization.summary import REFERENCE_NAMES
from ofdft_norm.statistics.references import REFERENCES
from ofdft_norm.statistics.store import ResidualStatistics
from ofdft_norm.units import find_factor, find_unit

Array = npt.NDArray[np.float64]

BEFORE, AFTER, LINE, GRID, JOIN = "#9a9a9a", "#0072b2", "#d55e00", "#bbbbbb", "#dddddd"
_CURVE_COLORS = (AFTER, LINE, BEFORE, "#009e73")
MAX_POINTS = 10_000  # points of a split in a panel
_SPLIT_STYLES = {"val": (BEFORE, "o"), "test": (AFTER, "o"), "test_molecules": (LINE, "^")}
_STYLE: Any = {
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "font.size"), 8),
    **{"axes.titlesize": 10, "axes.titlelocation": "left", "axes.labelsize": 9, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False},
}


def compute_gradient_ranges(datamodule: OFDFTDataModule) -> tuple[Array, Array]:
    """Returns max |g|, in the normaliser's unit, and max |g'| of each dimension, (n_basis,) each."""
    found, normalizer = datamodule.statistics[datamodule.weigher_key], datamodule.normalizer
    labels, reference, scale = found.gradient_label, normalizer.reference, float(normalizer.energy_scale)
    before, low, high = labels.abs_max, labels.minimum, labels.maximum
    slope = reference.g_z.cpu().numpy() if isinstance(reference, AtomRef) else np.zeros_like(before)
    if low is not None and high is not None:
        after = np.maximum(np.abs(high - slope), np.abs(low - slope))
    else:  # statistics of STRUCTURES25 have the maximum after the reference instead
        after = found.load("gradient_max_after_atom_ref") if slope.any() else before
    if normalizer.rescaling is not None:
        after = after / (normalizer.rescaling.lambda_z.cpu().numpy() + normalizer.rescaling.epsilon)
    return before, np.asarray(after / scale, dtype=np.float64)


@rc_context(_STYLE)
def plot_gradient_ranges(datamodule: OFDFTDataModule) -> Figure:
    """Draws the largest gradient of every dimension before and after normalisation, a panel for each element seen.

    The data need a density basis.
    """
    basis_info, rescaling = cast(BasisInfo, datamodule.basis_info), datamodule.normalizer.rescaling
    before, after = compute_gradient_ranges(datamodule)
    elements = _find_seen(before, basis_info)
    figure, panels = _make_figure([1] * len(elements), 1.45 * max(len(elements), 1) + 0.9)
    positive = np.concatenate([before[before > 0], after[after > 0], [1e-3]])
    limits = (max(positive.min() / 2, 1e-6), positive.max() * 20)
    unit, scale = find_unit(datamodule.unit).symbol, float(datamodule.normalizer.energy_scale)
    handles = [
        _mark(BEFORE, f"before: labels after data.pre_transforms [{unit}]"),
        _mark(AFTER, f"after: normalised [{unit}{'' if scale == 1 else f' / {scale:.4g} {unit}'}]"),
    ]
    for axes, (name, index) in zip(panels, elements.items(), strict=False):
        dimension, momenta = np.arange(len(index)), basis_info.l_per_basis_func[index]
        _draw_changes(axes, dimension, before[index], after[index], limits[0], size=7)
        axes.set(yscale="log", ylim=limits, xlim=(-1, len(index)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(name, pad=3)
        if rescaling is not None:
            axes.axhline(rescaling.s_grad / scale, color=LINE, linewidth=1, linestyle="--", zorder=1)
        for l in np.unique(momenta):
            first, last = np.flatnonzero(momenta == l)[[0, -1]]
            if first > 0:
                axes.axvline(first - 0.5, color=GRID, linewidth=0.6)
            place: Any = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
            axes.text((first + last) / 2, 0.97, SHELL_LETTERS[l], **place)
    if rescaling is not None:
        handles.append(Line2D([], [], color=LINE, linestyle="--", label=f"s_grad = {rescaling.s_grad:.4g} {unit}"))
    panels[-1].set_xlabel("dimension (basis functions of an atom, by angular momentum)")
    figure.supylabel("largest |gradient component| over the training split", fontsize=9)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.2)
    return figure


@rc_context(_STYLE)
def plot_normalization(datamodule: OFDFTDataModule) -> Figure:
    """Draws coefficients and energies before and after normalisation, joined by lines.

    Above: the standard deviation of every coefficient, element by element; not for data without density coefficients.
    Below: the standard deviation of the energies, minus each fitted reference, from chemical accuracy on.
    """
    no_basis = datamodule.basis_info is None
    figure, panels = _make_figure([1] if no_basis else [3, 2], 2.3 if no_basis else 5.6)
    if datamodule.basis_info is not None:
        _draw_coefficients(panels[0], datamodule, datamodule.basis_info)
    _draw_residuals(panels[-1], datamodule)
    return figure


def _draw_coefficients(axes: Axes, datamodule: OFDFTDataModule, basis_info: BasisInfo) -> None:
    before, rescaling = datamodule.statistics[datamodule.weigher_key].coeffs.std, datamodule.normalizer.rescaling
    after = before if rescaling is None else before * rescaling.lambda_z.cpu().numpy()
    limit = 1.0 if rescaling is None else rescaling.s_coeff
    positive = np.concatenate([before[before > 0], after[after > 0], [limit]])
    low, ticks, position = max(positive.min() / 2, 1e-6), dict[float, str](), 0
    for name, index in _find_seen(before, basis_info).items():
        x = position + np.arange(len(index))
        _draw_changes(axes, x, before[index], after[index], low, size=6)
        ticks[float(x.mean())] = name
        if position > 0:
            axes.axvline(position - 0.5, color=GRID, linewidth=0.6)
        position += len(index)
    axes.set(yscale="log", ylim=(low, positive.max() * 2), xlim=(-1, max(position, 1)))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel="dimensions, element by element", ylabel="standard deviation (no unit)")
    axes.set_title("density coefficients")
    handles = [_mark(BEFORE, "before"), _mark(AFTER, "after: times lambda" if rescaling else "after: not rescaled")]
    if rescaling is not None:
        label = f"limit s_coeff = {limit:.4g}"
        handles.append(axes.axhline(limit, color=LINE, linewidth=1, linestyle="--", zorder=1, label=label))
    # above the panel: points may be anywhere in it
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3)


def _draw_residuals(axes: Axes, datamodule: OFDFTDataModule) -> None:
    unit, found = find_unit(datamodule.unit), datamodule.statistics[datamodule.weigher_key]
    reference, basis_info = datamodule.normalizer.reference, datamodule.basis_info
    used, residual = find_residual(datamodule.statistics, datamodule.weigher_key, reference, basis_info)
    residuals = {**{name: found.residual(name) for name in REFERENCES}, used: residual}
    stds = {name: unit.factor * float(r.std) for name, r in residuals.items() if r is not None and name != "none"}
    accuracy = CHEMICAL_ACCURACY * find_factor("hartree", datamodule.unit) * unit.factor
    before = unit.factor * float(cast(ResidualStatistics, found.energy).std)
    for row, std in enumerate(stds.values()):
        axes.plot([max(std, accuracy), before], [row, row], color=JOIN, linewidth=2, zorder=0)
        axes.scatter([before], [row], s=30, color=BEFORE, zorder=2)
        axes.scatter([std], [row], s=30, color=AFTER, zorder=3)
        text = f"{std:.3g}" if std < 100 else f"{std:,.0f}"
        axes.annotate(text, (max(std, accuracy), row), (0, 6), textcoords="offset points", ha="center")
    axes.set(xscale="log", xlim=(accuracy, 2 * max([before, 10 * accuracy])), ylim=(len(stds) - 0.5, -0.7))
    labels = [REFERENCE_NAMES.get(name, name) + (" (in use)" if name == used else "") for name in stds]
    axes.set_yticks(range(len(stds)), labels)
    axes.set_xlabel(f"standard deviation [{unit.small}]; the axis begins at chemical accuracy, {accuracy:.1f}")
    axes.set_title(f"energies of the training split, {before:,.0f} {unit.small} as labelled, minus each reference")


@rc_context(_STYLE)
def plot_parity(panels: Mapping[str, Mapping[str, tuple[Array, Array]]]) -> Figure:
    """Draws predictions against labels: a panel for each quantity, a colour for each split.

    Args:
        panels: Labels and predictions by name of the quantity, with its unit, and by split. Of more than `MAX_POINTS`
            points, evenly spaced ones are drawn.
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.7), layout="constrained")
    for axes, (quantity, splits) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for split, (labels, predictions) in splits.items():
            step = max(1, math.ceil(len(labels) / MAX_POINTS))
            color, marker = _SPLIT_STYLES.get(split, (BEFORE, "s"))
            mae = np.abs(predictions - labels).mean() if len(labels) else np.nan
            style: Any = {"s": 8, "color": color, "marker": marker, "alpha": 0.5, "linewidths": 0}
            axes.scatter(labels[::step], predictions[::step], label=f"{split}: MAE {mae:.2g}", **style)
        ends = np.concatenate([*(values for pair in splits.values() for values in pair), np.zeros(1)])
        limits = ends.min() - 0.05 * np.ptp(ends), ends.max() + 0.05 * np.ptp(ends)
        axes.plot(limits, limits, color="#888888", linewidth=0.8, zorder=0)
        axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="label", ylabel="prediction")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        axes.set_title(quantity, parse_math=False)
        axes.legend(loc="upper left", handletextpad=0.2, borderpad=0.2)
    return figure


@rc_context(_STYLE)
def plot_learning_curves(panels: Mapping[str, Mapping[str, tuple[Array, Array]]], x: str = "epoch") -> Figure:
    """Draws curves of (x, values): a panel for each quantity with its unit, a line for each name."""
    figure, axes_of_panels = _make_figure([1] * len(panels), 2.2 * len(panels) + 0.3, sharey=False)
    for axes, (quantity, curves) in zip(axes_of_panels, panels.items(), strict=True):
        for (name, (at, values)), color in zip(curves.items(), _CURVE_COLORS, strict=False):
            axes.plot(at, values, color=color, linewidth=1.2, label=name, marker="." if len(at) == 1 else "")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.25)  # room for the legend
        subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)  # labels of many decades would overlap
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axes.yaxis.set_major_formatter("{x:,.10g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(quantity, parse_math=False)
        axes.legend(loc="upper right", ncols=len(curves))
    axes_of_panels[-1].set_xlabel(x)
    figure.align_ylabels()
    return figure


def _find_seen(values: Array, basis_info: BasisInfo) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the basis functions of each element in the data, by its symbol."""
    functions = zip(basis_info.atomic_numbers, basis_info.atom_ind_to_basis_function_ind, strict=True)
    return {find_symbol(int(number)): index for number, index in functions if values[index].any()}


def _draw_changes(axes: Axes, x: Any, before: Array, after: Array, low: float, size: float) -> None:
    """Draws points before and after normalisation, and a line between them down to the axis limit `low`."""
    axes.vlines(x, np.maximum(before, low), np.maximum(after, low), color=JOIN, lw=size / 10, zorder=0)
    axes.scatter(x, before, s=size, color=BEFORE, zorder=2)
    axes.scatter(x, after, s=size, color=AFTER, zorder=3)


def _make_figure(heights: Sequence[int], height: float, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Returns a figure with panels of these relative heights below one another, at least one."""
    figure, heights = Figure(figsize=(7.2, height), layout="constrained"), heights or [1]
    share = sharey and len(set(heights)) == 1
    return figure, list(figure.subplots(len(heights), 1, squeeze=False, sharey=share, height_ratios=heights)[:, 0])


def _mark(color: str, label: str) -> Line2D:
    return Line2D([], [], color=color, marker="o", markersize=4, linestyle="", label=label)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure with 200 dots per inch in the format of the file name's ending; replaces an existing file."""
    with write_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=200, format=Path(path).suffix[1:])
