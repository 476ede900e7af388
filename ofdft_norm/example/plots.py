"""Pictures: gradients, coefficients and energies before and after normalisation, and errors of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ofdft_norm.data.basis import SHELL_LETTERS, BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.data.files import written_whole
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import counted
from ofdft_norm.example.results import ErrorsByMolecule
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.statistics.references import REFERENCES
from ofdft_norm.tables import shorten
from ofdft_norm.units import shown

Array = npt.NDArray[np.float64]

NAME_LENGTH = 32  # longest name of a molecule
BEFORE, AFTER, LINE, GRID = "#9a9a9a", "#0072b2", "#d55e00", "#bbbbbb"
_SPLIT_STYLES = {"val": (AFTER, "o"), "test": (LINE, "^")}
_SIZES = dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "font.size"), 8)
_STYLE: Any = {
    **_SIZES,
    **{"axes.titlesize": 10, "axes.titlelocation": "left", "axes.labelsize": 9, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False},
}


def gradient_ranges(datamodule: OFDFTDataModule) -> tuple[Array, Array]:
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
    before, after = gradient_ranges(datamodule)
    elements = _seen(before, basis_info)
    figure, panels = _new_figure([1] * len(elements), 1.45 * max(len(elements), 1) + 0.9)
    positive = np.concatenate([before[before > 0], after[after > 0], [1e-3]])
    limits = (max(positive.min() / 2, 1e-6), positive.max() * 20)
    unit, scale = shown(datamodule.unit).symbol, float(datamodule.normalizer.energy_scale)
    handles = [
        _marker(BEFORE, f"before: labels after data.pre_transforms [{unit}]"),
        _marker(AFTER, f"after: normalised [{unit}{'' if scale == 1 else f' / {scale:.4g} {unit}'}]"),
    ]
    for axes, (name, index) in zip(panels, elements.items(), strict=False):
        dimension, momenta = np.arange(len(index)), basis_info.l_per_basis_func[index]
        largest, smallest = np.maximum(before[index], after[index]), np.minimum(before[index], after[index])
        axes.vlines(dimension, np.maximum(smallest, limits[0]), largest, color="#dddddd", lw=0.8, zorder=0)
        _draw_points(axes, dimension, before[index], after[index], size=7)
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
    """Draws coefficients and energies before and after normalisation.

    Above: the standard deviation of every coefficient, element by element; not for data without density coefficients.
    Below: the standard deviation of the energies, minus nothing and minus each fitted reference.
    """
    no_basis = datamodule.basis_info is None
    figure, panels = _new_figure([1] if no_basis else [3, 2], 2.3 if no_basis else 5.6)
    if datamodule.basis_info is not None:
        _draw_coefficients(panels[0], datamodule, datamodule.basis_info)
    _draw_residuals(panels[-1], datamodule)
    return figure


def _draw_coefficients(axes: Axes, datamodule: OFDFTDataModule, basis_info: BasisInfo) -> None:
    before, rescaling = datamodule.statistics[datamodule.weigher_key].coeffs.std, datamodule.normalizer.rescaling
    after = before if rescaling is None else before * rescaling.lambda_z.cpu().numpy()
    positive = np.concatenate([before[before > 0], after[after > 0], [1.0]])
    ticks, position = {}, 0
    for name, index in _seen(before, basis_info).items():
        x = position + np.arange(len(index))
        _draw_points(axes, x, before[index], after[index], size=6)
        ticks[float(x.mean())] = name
        if position > 0:
            axes.axvline(position - 0.5, color=GRID, linewidth=0.6)
        position += len(index)
    axes.set(yscale="log", ylim=(positive.min() / 2, positive.max() * 2), xlim=(-1, max(position, 1)))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel="dimensions, element by element", ylabel="standard deviation (no unit)")
    axes.set_title("density coefficients of the training split")
    handles = [_marker(BEFORE, "before"), _marker(AFTER, "after: times lambda" if rescaling else "after: not rescaled")]
    # above the panel: points may be anywhere in it
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)


def _draw_residuals(axes: Axes, datamodule: OFDFTDataModule) -> None:
    unit, found = shown(datamodule.unit), datamodule.statistics[datamodule.weigher_key]
    used = getattr(datamodule.settings.reference, "statistics_name", None)
    residuals = {"as labelled": found.energy}
    for name in dict.fromkeys((*REFERENCES, *filter(None, [used]))):
        residuals[f"minus {name}" + (" (in use)" if name == used else "")] = found.residual(name)
    stds = {name: unit.factor * float(residual.std) for name, residual in residuals.items() if residual is not None}
    for row, std in enumerate(stds.values()):
        axes.barh(row, std, height=0.6, color=AFTER if row else BEFORE)
        text = f"{std:.3g}" if std < 100 else f"{std:,.0f}"
        axes.annotate(text, (std, row), (4, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    positive = [std for std in stds.values() if std > 0]
    if positive:  # the axis begins a decade below the shortest bar, and leaves room for the numbers
        axes.set_xlim(min(positive) / 10, 2 * max(positive) * (max(positive) / min(positive)) ** 0.15)
    axes.set_yticks(range(len(stds)), list(stds))
    axes.invert_yaxis()
    axes.set_xlabel(f"standard deviation [{unit.small}]")
    axes.set_title("energies of the training split, minus each reference")


@rc_context(_STYLE)
def plot_energies(errors: Mapping[str, ErrorsByMolecule], unit: str = "hartree", energy: str = "energy") -> Figure:
    """Draws the errors of predicted energies: a panel for each split, a point for each sample, by molecule.

    Molecules are in the order of their mean error; the three worst are named. `energy` is the name of the energy.
    """
    figure, panels = _new_figure([1] * len(errors), 2.7 * max(len(errors), 1), sharey=False)
    factor, small = shown(unit).factor, shown(unit).small
    for axes, (split, of_molecule) in zip(panels, errors.items(), strict=False):
        means = {name: float(np.mean(of_molecule[name])) for name in of_molecule}
        order = sorted(means, key=lambda name: means[name])
        points = np.array([(x, factor * e) for x, name in enumerate(order) for e in of_molecule[name]]).reshape(-1, 2)
        color, marker = _SPLIT_STYLES[split]
        axes.scatter(points[:, 0], points[:, 1], s=14, color=color, marker=marker, alpha=0.6, linewidths=0)
        worst = sorted(order, key=lambda name: -abs(means[name]))[:3]
        for number, name in enumerate(worst, start=1):
            place = (order.index(name), factor * max(of_molecule[name]))
            axes.annotate(str(number), place, (0, 4), textcoords="offset points", ha="center")
        mae = f"{np.abs(points[:, 1]).mean():,.1f} {small}" if len(points) else "no labelled sample"
        in_order = f"{counted(len(order), 'molecule')} in the order of their mean error"
        named = ", ".join(f"{i} {shorten(name, NAME_LENGTH)}" for i, name in enumerate(worst, start=1))
        # names are below the panel, where they hide no points, and are no formulas, such as "$x$"
        axes.set_xlabel(f"{in_order}; the worst:\n{named}" if worst else in_order, fontsize=8, parse_math=False)
        axes.set_title(f"{split}: error of {energy}, MAE {mae}", parse_math=False)
        axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
        axes.margins(y=0.15)
        axes.set(xlim=(-1, max(len(order), 1)), xticks=[], ylabel=f"predicted - label [{small}]")
        axes.yaxis.set_major_formatter("{x:,.0f}" if np.ptp(axes.get_ylim()) > 10 else "{x:g}")
    figure.align_ylabels()
    return figure


def _seen(values: Array, basis_info: BasisInfo) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the basis functions of each element in the data, by its symbol."""
    names = (symbol(int(number)) for number in basis_info.atomic_numbers)
    functions = zip(names, basis_info.atom_ind_to_basis_function_ind, strict=True)
    return {name: index for name, index in functions if values[index].any()}


def _draw_points(axes: Axes, x: npt.NDArray[np.int64], before: Array, after: Array, size: int) -> None:
    axes.scatter(x, before, s=size, color=BEFORE, zorder=2)
    axes.scatter(x, after, s=size, color=AFTER, zorder=3)


def _new_figure(heights: Sequence[int], height: float, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Returns a figure with panels of these relative heights below one another, at least one."""
    figure, heights = Figure(figsize=(7.2, height), layout="constrained"), heights or [1]
    FigureCanvasAgg(figure)
    share = sharey and len(set(heights)) == 1
    return figure, list(figure.subplots(len(heights), 1, squeeze=False, sharey=share, height_ratios=heights)[:, 0])


def _marker(color: str, label: str) -> Line2D:
    return Line2D([], [], color=color, marker="o", markersize=4, linestyle="", label=label)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure with 200 dots per inch in the format of the file name's ending; replaces an existing file."""
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=200, format=Path(path).suffix[1:])
