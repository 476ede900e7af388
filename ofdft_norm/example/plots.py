"""Pictures: what normalisation does to gradients, coefficients and energies, and how wrong predictions are."""

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
from ofdft_norm.errors import counted
from ofdft_norm.example.results import SplitEnergies
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.references import OTHER_REFERENCES, REFERENCES
from ofdft_norm.tables import shorten
from ofdft_norm.units import shown

Array = npt.NDArray[np.float64]

NAME_LENGTH = 32  # to which names of molecules are cut
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
    limits = (max(positive.min() / 2, 1e-6), positive.max() * 20)
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
    figure.supylabel("largest |gradient component| over the training split", fontsize=9)
    scale = "" if float(normalizer.energy_scale) == 1 else f" / {float(normalizer.energy_scale):.4g} {unit}"
    handles = [
        _marker(BEFORE, f"before: labels after data.pre_transforms [{unit}]"),
        _marker(AFTER, f"after: normalised [{unit}{scale}]"),
    ]
    if normalizer.rescaling is not None:
        line = Line2D([], [], color=LINE, linestyle="--", label=f"s_grad = {normalizer.rescaling.s_grad:.4g} {unit}")
        handles.append(line)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8, columnspacing=1.2)
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


def plot_normalization(
    statistics: DatasetStatistics,
    normalizer: Normalizer,
    basis_info: BasisInfo | None,
    weigher_key: str = "has_energy_label",
    reference_name: str | None = None,
) -> Figure:
    """Draws coefficients and energies before and after normalisation.

    Args:
        statistics: Of the training split.
        normalizer: Its normaliser.
        basis_info: The basis; None for data without density coefficients, of which the energies alone are drawn.
        weigher_key: Whose statistics to use.
        reference_name: Which of the references is the normaliser's; None: none.

    Returns:
        The figure. Above, the standard deviation of every coefficient, element by element; below, that of the energies,
        and what each of the references that were fitted leaves of it.
    """
    figure = Figure(figsize=(7.2, 2.3 if basis_info is None else 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    if basis_info is None:
        energies = figure.subplots()
    else:
        coefficients, energies = figure.subplots(2, 1, height_ratios=(3, 2))
        _draw_coefficients(coefficients, statistics, normalizer, basis_info, weigher_key)
    _draw_residuals(energies, statistics, weigher_key, reference_name)
    return figure


def _draw_coefficients(
    axes: Axes, statistics: DatasetStatistics, normalizer: Normalizer, basis_info: BasisInfo, weigher_key: str
) -> None:
    before: Array = statistics.load_statistic(weigher_key, "coeffs/std")
    rescaling = normalizer.rescaling
    after = before if rescaling is None else before * rescaling.lambda_z.cpu().numpy()
    positive = np.concatenate([before[before > 0], after[after > 0], [1.0]])
    ticks, position = [], 0
    for element, index in enumerate(basis_info.atom_ind_to_basis_function_ind):
        if not before[index].any():
            continue  # no atom of this element was seen
        x = position + np.arange(len(index))
        axes.scatter(x, before[index], s=6, color=BEFORE, zorder=2)
        axes.scatter(x, after[index], s=6, color=AFTER, zorder=3)
        ticks.append((float(x.mean()), symbol(int(basis_info.atomic_numbers[element]))))
        if position > 0:
            axes.axvline(position - 0.5, color="#bbbbbb", linewidth=0.6)
        position += len(index)
    axes.set_yscale("log")
    axes.set_ylim(positive.min() / 2, positive.max() * 2)
    axes.set_xlim(-1, max(position, 1))
    axes.set_xticks([x for x, _ in ticks], [name for _, name in ticks])
    axes.set_xlabel("dimensions, element by element", fontsize=9)
    axes.set_ylabel("standard deviation (no unit)", fontsize=9)
    axes.set_title("density coefficients of the training split", fontsize=10, loc="left")
    after_label = "after: times lambda" if rescaling else "after: not rescaled"
    handles = [_marker(BEFORE, "before"), _marker(AFTER, after_label)]
    # above the panel: points may be anywhere in it
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, frameon=False, fontsize=8)
    _plain(axes)


def _draw_residuals(axes: Axes, statistics: DatasetStatistics, weigher_key: str, used: str | None) -> None:
    """Draws the standard deviation of the energies, as labelled and minus each reference."""
    unit = shown(str(statistics.attributes.get("unit", "hartree")))
    folders = {"as labelled": "energy"}
    for name in (*REFERENCES, *OTHER_REFERENCES):
        folders[f"minus {name}" + (" (in use)" if name == used else "")] = f"energy_minus_{name}"
    names = [name for name, folder in folders.items() if f"{weigher_key}/{folder}/std" in statistics]
    stds = [unit.factor * float(statistics.load_statistic(weigher_key, f"{folders[name]}/std")) for name in names]
    for row, std in enumerate(stds):
        axes.barh(row, std, height=0.6, color=AFTER if row else BEFORE)
        text = f"{std:.3g}" if std < 100 else f"{std:,.0f}"
        axes.annotate(text, (std, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log")
    positive = [std for std in stds if std > 0]
    if positive:  # a decade below the shortest bar, so that it does not look like nothing, and room for the numbers
        axes.set_xlim(min(positive) / 10, 2 * max(positive) * (max(positive) / min(positive)) ** 0.15)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"standard deviation [{unit.small}]", fontsize=9)
    axes.set_title("energies of the training split, and what each reference leaves of them", fontsize=10, loc="left")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def plot_energies(energies: Mapping[str, SplitEnergies], energy: str = "energy") -> Figure:
    """Draws the errors of predicted energies, molecule by molecule; the three worst are named.

    Args:
        energies: By split.
        energy: What the labels call the energy that is predicted.

    Returns:
        The figure, a panel for each split: a point for each sample, molecules in the order of their mean error.
    """
    figure = Figure(figsize=(7.2, 2.7 * max(len(energies), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(max(len(energies), 1), 1, squeeze=False)[:, 0]
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
            axes.annotate(str(number), place, (0, 4), textcoords="offset points", ha="center", fontsize=8)
        mae = f"{np.abs(errors).mean():,.1f} {unit.small}" if len(errors) else "no labelled sample"
        axes.set_title(f"{split}: error of {energy}, MAE {mae}", fontsize=10, loc="left")
        axes.set_ylabel(f"predicted - label [{unit.small}]", fontsize=9)
        axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
        axes.set_xlim(-1, max(len(order), 1))
        axes.margins(y=0.15)
        named = ", ".join(f"{i} {shorten(name, NAME_LENGTH)}" for i, name in enumerate(worst, start=1))
        # below the panel: beside their points, names would hide others
        in_order = f"{counted(len(order), 'molecule')} in the order of their mean error"
        axes.set_xlabel(f"{in_order}; the worst:\n{named}" if worst else in_order, fontsize=8)
        axes.yaxis.set_major_formatter("{x:,.0f}" if np.ptp(axes.get_ylim()) > 10 else "{x:g}")
        _plain(axes)
        axes.set_xticks([])
    figure.align_ylabels()
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure, 200 dots per inch, in the format of the file name's ending; whole or not at all.

    Args:
        figure: A figure of matplotlib.
        path: Where to; what was there is replaced.
    """
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=200, format=Path(path).suffix[1:])
