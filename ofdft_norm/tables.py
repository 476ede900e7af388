"""Text tables, all laid out alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 1) -> str:
    """Returns rows under a header, in columns two spaces apart, without trailing spaces.

    Args:
        header: Heading of each column.
        rows: Cells of each row, formatted as they are to appear.
        n_left: The first so many columns are aligned to the left, the others to the right.

    Example:
        >>> print(text_table(["element", "energy [Ha]"], [["H", "-0.5"], ["He", "-2.9"]]))
        element  energy [Ha]
        H               -0.5
        He              -2.9
    """
    align = ["left" if column < n_left else "right" for column in range(len(header))]
    # the header as a row: as a header, tabulate makes every column two wider than its content
    return tabulate([header, *rows], tablefmt="plain", disable_numparse=True, colalign=align)
