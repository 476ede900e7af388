"""Pictures: gradients, coefficients and energies before and after normalisation, and errors of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from ofdft_norm.errors import counted
from ofdft_norm.example.results import SplitEnergies
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.references import REFERENCES
from ofdft_norm.statistics.store import DatasetStatistics
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


def gradient_ranges(statistics: DatasetStatistics, normalizer: Normalizer, weigher_key: str) -> tuple[Array, Array]:
    """Returns max |g|, in the normaliser's unit, and max |g'| of each dimension, (n_basis,) each."""
    found = statistics[weigher_key]
    before, low, high = (getattr(found.gradient_label, name) for name in ("abs_max", "minimum", "maximum"))
    reference = normalizer.reference
    slope = reference.g_z.cpu().numpy() if isinstance(reference, AtomRef) else np.zeros_like(before)
    if low is not None and high is not None:
        after = np.maximum(np.abs(high - slope), np.abs(low - slope))
    else:  # statistics of STRUCTURES25 have the maximum after the reference instead
        after = found.load("gradient_max_after_atom_ref") if slope.any() else before
    scale = np.full_like(before, float(normalizer.energy_scale))
    if normalizer.rescaling is not None:
        scale = scale * (normalizer.rescaling.lambda_z.cpu().numpy() + normalizer.rescaling.epsilon)
    return before, np.asarray(after / scale, dtype=np.float64)


@rc_context(_STYLE)
def plot_gradient_ranges(
    statistics: DatasetStatistics, normalizer: Normalizer, basis_info: BasisInfo, weigher_key: str
) -> Figure:
    """Draws the largest gradient of every dimension before and after normalisation, a panel for each element seen."""
    before, after = gradient_ranges(statistics, normalizer, weigher_key)
    elements = [i for i, index in enumerate(basis_info.atom_ind_to_basis_function_ind) if before[index].any()]
    figure, panels = _new_figure([1] * len(elements), 1.45 * max(len(elements), 1) + 0.9)
    positive = np.concatenate([before[before > 0], after[after > 0], [1e-3]])
    limits = (max(positive.min() / 2, 1e-6), positive.max() * 20)
    unit, scale = shown(normalizer.unit).symbol, float(normalizer.energy_scale)
    handles = [
        _marker(BEFORE, f"before: labels after data.pre_transforms [{unit}]"),
        _marker(AFTER, f"after: normalised [{unit}{'' if scale == 1 else f' / {scale:.4g} {unit}'}]"),
    ]
    for axes, element in zip(panels, elements, strict=False):
        index = basis_info.atom_ind_to_basis_function_ind[element]
        _draw_gradient_range(axes, before[index], after[index], basis_info.l_per_basis_func[index], limits)
        axes.set_title(symbol(int(basis_info.atomic_numbers[element])), pad=3)
        if normalizer.rescaling is not None:
            axes.axhline(normalizer.rescaling.s_grad / scale, color=LINE, linewidth=1, linestyle="--", zorder=1)
    if normalizer.rescaling is not None:
        label = f"s_grad = {normalizer.rescaling.s_grad:.4g} {unit}"
        handles.append(Line2D([], [], color=LINE, linestyle="--", label=label))
    panels[-1].set_xlabel("dimension (basis functions of an atom, by angular momentum)")
    figure.supylabel("largest |gradient component| over the training split", fontsize=9)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.2)
    return figure


def _draw_gradient_range(
    axes: Axes, before: Array, after: Array, momenta: npt.NDArray[np.int64], limits: tuple[float, float]
) -> None:
    """Draws the largest gradient of each function of an element."""
    dimension, low = np.arange(len(before)), np.maximum(np.minimum(before, after), limits[0])
    axes.vlines(dimension, low, np.maximum(before, after), color="#dddddd", lw=0.8, zorder=0)
    axes.scatter(dimension, before, s=7, color=BEFORE, zorder=2)
    axes.scatter(dimension, after, s=7, color=AFTER, zorder=3)
    axes.set(yscale="log", ylim=limits, xlim=(-1, len(before)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for l in np.unique(momenta):
        first, last = np.flatnonzero(momenta == l)[[0, -1]]
        if first > 0:
            axes.axvline(first - 0.5, color=GRID, linewidth=0.6)
        place: Any = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text((first + last) / 2, 0.97, SHELL_LETTERS[l], **place)


@rc_context(_STYLE)
def plot_normalization(
    statistics: DatasetStatistics,
    normalizer: Normalizer,
    basis_info: BasisInfo | None,
    weigher_key: str,
    reference_name: str | None = None,
) -> Figure:
    """Draws coefficients and energies before and after normalisation.

    Above: the standard deviation of every coefficient, element by element; not for data without density coefficients.
    Below: the standard deviation of the energies, minus nothing and minus each fitted reference; `reference_name` is
    the reference in use.
    """
    figure, panels = _new_figure([1] if basis_info is None else [3, 2], 2.3 if basis_info is None else 5.6)
    if basis_info is not None:
        _draw_coefficients(panels[0], statistics[weigher_key].coeffs.std, normalizer, basis_info)
    _draw_residuals(panels[-1], statistics, weigher_key, reference_name)
    return figure


def _draw_coefficients(axes: Axes, before: Array, normalizer: Normalizer, basis_info: BasisInfo) -> None:
    rescaling = normalizer.rescaling
    after = before if rescaling is None else before * rescaling.lambda_z.cpu().numpy()
    positive = np.concatenate([before[before > 0], after[after > 0], [1.0]])
    ticks, position = {}, 0
    for element, index in enumerate(basis_info.atom_ind_to_basis_function_ind):
        if not before[index].any():
            continue  # no atom of this element was seen
        x = position + np.arange(len(index))
        axes.scatter(x, before[index], s=6, color=BEFORE, zorder=2)
        axes.scatter(x, after[index], s=6, color=AFTER, zorder=3)
        ticks[float(x.mean())] = symbol(int(basis_info.atomic_numbers[element]))
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


def _draw_residuals(axes: Axes, statistics: DatasetStatistics, weigher_key: str, used: str | None) -> None:
    unit, found = shown(str(statistics.attributes.get("unit", "hartree"))), statistics[weigher_key]
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
def plot_energies(energies: Mapping[str, SplitEnergies], energy: str = "energy") -> Figure:
    """Draws the errors of predicted energies: a panel for each split, a point for each sample, by molecule.

    Molecules are in the order of their mean error; the three worst are named. `energy` is the name of the energy.
    """
    figure, panels = _new_figure([1] * len(energies), 2.7 * max(len(energies), 1), sharey=False)
    for axes, (split, values) in zip(panels, energies.items(), strict=False):
        unit = shown(values.unit)
        errors = unit.factor * (values.predicted - values.true).numpy()
        names = np.array(values.molecules, dtype=object)
        of_molecule = {name: errors[names == name] for name in dict.fromkeys(values.molecules)}
        order = sorted(of_molecule, key=lambda name: float(of_molecule[name].mean()))
        color, marker = _SPLIT_STYLES.get(split, ("#444444", "s"))
        x = np.array([order.index(name) for name in values.molecules])
        axes.scatter(x, errors, s=14, color=color, marker=marker, alpha=0.6, linewidths=0)
        worst = sorted(order, key=lambda name: -abs(float(of_molecule[name].mean())))[:3]
        for number, name in enumerate(worst, start=1):
            place = (order.index(name), float(of_molecule[name].max()))
            axes.annotate(str(number), place, (0, 4), textcoords="offset points", ha="center")
        mae = f"{np.abs(errors).mean():,.1f} {unit.small}" if len(errors) else "no labelled sample"
        in_order = f"{counted(len(order), 'molecule')} in the order of their mean error"
        named = ", ".join(f"{i} {shorten(name, NAME_LENGTH)}" for i, name in enumerate(worst, start=1))
        # names are below the panel, where they hide no points, and are no formulas, such as "$x$"
        axes.set_xlabel(f"{in_order}; the worst:\n{named}" if worst else in_order, fontsize=8, parse_math=False)
        axes.set_title(f"{split}: error of {energy}, MAE {mae}", parse_math=False)
        axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
        axes.margins(y=0.15)
        axes.set(xlim=(-1, max(len(order), 1)), xticks=[], ylabel=f"predicted - label [{unit.small}]")
        axes.yaxis.set_major_formatter("{x:,.0f}" if np.ptp(axes.get_ylim()) > 10 else "{x:g}")
    figure.align_ylabels()
    return figure


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
