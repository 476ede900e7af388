"""Text tables, all laid out alike: at most 100 columns wide, and under each what its headings and rows mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

from tabulate import tabulate

WIDTH = 100  # columns of a screen
_SPACE = 2  # between columns
_SHORTEST_NAME = 12  # to which names are cut


def text_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    n_left: int = 1,
    meanings: Mapping[str, str] | None = None,
) -> str:
    """Returns rows under a header, in columns two spaces apart, without trailing spaces.

    Cells of the first column that make the table wider than `WIDTH` are cut in their middle.

    Args:
        header: Heading of each column.
        rows: Cells of each row, formatted as they are to appear.
        n_left: The first so many columns are aligned to the left, the others to the right.
        meanings: What headings and row labels mean, see `explained`.

    Example:
        >>> meanings = {"element": "its symbol", "energy": "of one atom", "force": "in no table"}
        >>> print(text_table(["element", "energy [Ha]"], [["H", "-0.5"], ["He", "-2.9"]], meanings=meanings))
        element  energy [Ha]
        H               -0.5
        He              -2.9
          element: its symbol
          energy: of one atom
    """
    cells = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in [header, *cells]) for column in range(len(header))]
    room = max(_SHORTEST_NAME, WIDTH - sum(widths[1:]) - _SPACE * (len(widths) - 1))
    shown = [[shorten(row[0], room), *row[1:]] for row in [header, *cells]]
    align = ["left" if column < n_left else "right" for column in range(len(header))]
    # the header as a row: as a header, tabulate makes every column two wider than its content
    table = tabulate(shown, tablefmt="plain", disable_numparse=True, colalign=align)
    notes = [
        part
        for note in explained(header, cells, meanings or {})
        for part in wrap(note, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    ]
    return "\n".join([table, *notes])


def explained(header: Sequence[str], rows: Iterable[Sequence[str]], meanings: Mapping[str, str]) -> list[str]:
    """Returns sentences that say what the headings and the row labels of a table mean, as far as they are known.

    Args:
        header: Headings; a unit in brackets at their end is no part of their name.
        rows: Rows, whose first cell is their label; a colon divides it into two names.
        meanings: A sentence for each name, or for its last word: "atoms" stands for "H atoms" and "C atoms".
    """
    names = [
        *(re.sub(r" \[[^]]*\]$", "", heading) for heading in header),
        *(part for row in rows for part in row[0].split(": ")),
    ]
    known = dict.fromkeys(name if name in meanings else name.rpartition(" ")[2] for name in names)
    return [f"{name}: {meanings[name]}" for name in known if name in meanings]


def shorten(name: str, length: int) -> str:
    """Returns a name of at most so many characters, cut in its middle.

    Args:
        name: The name.
        length: Characters, more than three.

    Example:
        >>> shorten("dioxygen_difluoride", 12), shorten("water", 12)
        ('dioxy...ride', 'water')
    """
    if len(name) <= length:
        return name
    end = (length - 3) // 2
    return f"{name[: length - 3 - end]}...{name[len(name) - end :]}"
