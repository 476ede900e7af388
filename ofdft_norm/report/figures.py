"""Figures of a report: small SVGs that take their colours from the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.example.plots import AFTER, BEFORE, LINE, draw_gradient_range, gradient_ranges
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics

Array = npt.NDArray[np.float64]

# what colours of the figures become in the page
_COLORS = {
    "#000000": "currentColor",
    "#dddddd": "var(--grid)",
    "#bbbbbb": "var(--grid)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    LINE: "var(--accent)",
}
_EDGES = np.arange(-12.0, 5.01, 0.25)  # of log10 |x|


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        svg: An ``<svg>`` element.
        caption: What it shows.
    """

    svg: str
    caption: str


class LogHistogram:
    """Counts absolute values in bins of equal width of their logarithm; zeros are left out."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(_EDGES) - 1)

    def add(self, values: Array) -> None:
        """Takes in values.

        Args:
            values: Values of any shape and sign.
        """
        sizes = np.abs(values[values != 0])
        self.counts += np.histogram(np.log10(sizes).clip(_EDGES[0], _EDGES[-1]), _EDGES)[0]


def picture(figure: Figure, caption: str, number: int) -> Picture:
    """Turns a figure into an element that can stand in a page beside others.

    Args:
        figure: The figure.
        caption: What it shows.
        number: Which figure of the page it is: names inside of it are made its own.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ofdft_norm"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = re.sub(r'id="([^"]+)"', rf'id="f{number}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#f{number}-", text)
    for color, value in _COLORS.items():
        text = text.replace(color, value)
    return Picture(text, caption)


def new_figure(height: float = 2.3, left: float = 0.62) -> tuple[Figure, Axes]:
    """Returns a figure with one panel; height and left margin in inches.

    Args:
        height: Height of the figure [inch].
        left: Left margin [inch].
    """
    width = 3.7
    figure = Figure(figsize=(width, height))  # fixed margins: a layout engine takes longer than all else
    figure.subplots_adjust(left / width, 0.44 / height, 0.98, 1 - 0.1 / height)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def gradient_figures(
    statistics: DatasetStatistics, normalizer: Normalizer, basis_info: BasisInfo, weigher_key: str
) -> list[tuple[Figure, str]]:
    """Draws the largest gradient of each dimension before and after normalisation, a figure for each element.

    Args:
        statistics: Statistics of the training split.
        normalizer: What normalises.
        basis_info: The density basis.
        weigher_key: The weigher whose statistics are shown.
    """
    before, after = gradient_ranges(statistics, normalizer, weigher_key)
    positive = np.concatenate([before[before > 0], after[after > 0], [1e-3]])
    limits = (max(positive.min() / 2, 1e-6), positive.max() * 4)
    figures = []
    for number, index in zip(basis_info.atomic_numbers, basis_info.atom_ind_to_basis_function_ind, strict=True):
        if not before[index].any():
            continue
        figure, axes = new_figure()
        draw_gradient_range(axes, before[index], after[index], basis_info.l_per_basis_func[index], limits)
        if normalizer.rescaling is not None:
            target = normalizer.rescaling.s_grad / float(normalizer.energy_scale)
            axes.axhline(target, color=LINE, linewidth=1, linestyle="--", zorder=1)
        axes.set_xlabel("function of an atom", fontsize=8)
        axes.set_ylabel("largest |gradient|", fontsize=8)
        figures.append(
            (figure, f"{symbol(int(number))}: before (grey, {normalizer.unit}) and after (blue, normalised units)")
        )
    return figures


def log_histogram_figure(before: LogHistogram, after: LogHistogram, quantity: str) -> Figure:
    """Draws the distribution of absolute values before and after normalisation.

    Args:
        before: Absolute values of raw samples.
        after: Absolute values of normalised samples.
        quantity: Label of the axis.
    """
    figure, axes = new_figure()
    for histogram, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        axes.stairs(histogram.counts / max(histogram.counts.sum(), 1), _EDGES, color=color, label=label, linewidth=1.3)
    filled = np.flatnonzero(before.counts + after.counts)
    if len(filled):
        axes.set_xlim(_EDGES[filled[0]] - 0.25, _EDGES[filled[-1] + 1] + 0.25)
    axes.set_xlabel(f"log10 |{quantity}|", fontsize=8)
    axes.set_ylabel("share", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    return figure


def energy_histogram_figure(energies: Sequence[float], color: str, label: str) -> Figure:
    """Draws the distribution of energies.

    Args:
        energies: Energies, in the unit of the label.
        color: Color of the bars.
        label: Label of the axis.
    """
    figure, axes = new_figure()
    axes.hist(np.asarray(energies, dtype=np.float64), bins=30, histtype="stepfilled", color=color, alpha=0.8)
    axes.set_xlabel(label, fontsize=8)
    axes.set_ylabel("samples", fontsize=8)
    return figure


def error_figure(names: Sequence[str], errors: Sequence[Array], unit: str = "mHa") -> Figure:
    """Draws each molecule's mean error with a bar from its smallest to its largest, the molecules from top to bottom.

    Args:
        names: Of the molecules.
        errors: For each of them, the errors of its samples.
        unit: What they are in.
    """
    figure, axes = new_figure(0.6 + 0.19 * len(names), left=1.45)
    places = np.arange(len(names))[::-1]
    axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.hlines(places, [e.min() for e in errors], [e.max() for e in errors], color=BEFORE, linewidth=2)
    axes.scatter([e.mean() for e in errors], places, s=14, color=AFTER, zorder=3)
    axes.set_yticks(places, names, fontsize=7)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlabel(f"energy error [{unit}]", fontsize=8)
    return figure
