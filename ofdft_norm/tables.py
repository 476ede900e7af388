"""Text tables of one layout, at most 80 columns wide."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

WIDTH = 80  # columns of a screen
_SPACE = 2  # between columns
_SHORTEST_NAME = 12  # names are never cut to fewer characters


def format_rows(header: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 1) -> str:
    """Returns rows under a header; the first `n_left` columns are aligned to the left, the others to the right.

    Cells of the first column are shortened if the table would be wider than `WIDTH`.

    Examples:
        >>> print(format_rows(["element", "energy [Ha]"], [["H", "-0.5"], ["He", "-2.9"]]))
        element  energy [Ha]
        H               -0.5
        He              -2.9
    """
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    room = max(_SHORTEST_NAME, WIDTH - sum(widths[1:]) - _SPACE * (len(widths) - 1))
    shown = [[shorten(row[0], room), *row[1:]] for row in cells]
    align = ["left" if column < n_left else "right" for column in range(len(header))]
    # the header is passed as a row: tabulate pads headers by two columns
    return tabulate(shown, tablefmt="plain", disable_numparse=True, colalign=align)


def shorten(name: str, length: int) -> str:
    """Returns a name of at most `length` characters, cut in its middle.

    Examples:
        >>> shorten("dioxygen_difluoride", 12), shorten("water", 12)
        ('dioxy...ride', 'water')
    """
    if len(name) <= length:
        return name
    end = (length - 3) // 2
    return f"{name[: length - 3 - end]}...{name[len(name) - end :]}"
