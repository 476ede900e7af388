"""Two things timed side by side, and the table of what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from ofdft_norm.tables import text_table

MEANINGS = {
    "measured / reference": "what was compared with what, behind the colon on what",
    "measured": "the first of the two, the median over the rounds",
    "reference": "the second, the median over the rounds",
    "ratio": "median of the rounds' ratios: what a busy machine does to both cancels",
    "wanted": "of the ratio",
}


class Row(NamedTuple):
    """One line of the table: what was compared, the medians of both times [s], of their ratio, and what is wanted."""

    what: str
    measured: float
    reference: float
    ratio: float
    wanted: str
    unit: str = "s"


def compare(
    measured: Callable[[], Any],
    reference: Callable[[], Any],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Times two functions in turn; returns the medians of both times and of their ratio.

    Args:
        measured: What is compared.
        reference: What it is compared with.
        repeats: Rounds.
        clock: `time.process_time` for what one thread computes: other work on the machine matters little then.
    """
    times = []
    for _ in range(repeats + 1):
        pair = []
        for function in (measured, reference):
            begin = clock()
            function()
            pair.append(clock() - begin)
        times.append(pair)
    times = times[1:]  # the first round warms caches up
    return median(m for m, _ in times), median(r for _, r in times), median(m / r for m, r in times)


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows, a table for each unit.

    Args:
        rows: Ratios with what they compare.
    """
    for unit in dict.fromkeys(row.unit for row in rows):
        header = ["measured / reference", f"measured [{unit}]", f"reference [{unit}]", "ratio", "wanted"]
        cells = [
            [row.what, f"{row.measured:.3f}", f"{row.reference:.3f}", f"{row.ratio:.3f}", row.wanted]
            for row in rows
            if row.unit == unit
        ]
        print(text_table(header, cells, meanings=MEANINGS))
