"""Two things timed side by side, and the table of what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of the table: what was compared, the medians of both times [s], of their ratio, and what is wanted."""

    what: str
    measured: float
    reference: float
    ratio: float
    wanted: str
    unit: str = "s"


def compare(measured: Callable[[], Any], reference: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Times two functions in turn; returns the medians of both times and of their ratio."""
    times = []
    for _ in range(repeats + 1):
        pair = []
        for function in (measured, reference):
            begin = time.perf_counter()
            function()
            pair.append(time.perf_counter() - begin)
        times.append(pair)
    times = times[1:]  # the first round warms caches up
    return median(m for m, _ in times), median(r for _, r in times), median(m / r for m, r in times)


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows as a table."""
    width = max(len(row.what) for row in rows)
    print(f"{'':{width}}  {'measured':>13}  {'reference':>13}  {'ratio':>7}  wanted")
    for row in rows:
        times = f"{row.measured:9.3f} {row.unit:<3}  {row.reference:9.3f} {row.unit:<3}"
        print(f"{row.what:{width}}  {times}  {row.ratio:7.3f}  {row.wanted}")
