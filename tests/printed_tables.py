"""What every table that is printed or saved has to be: narrow enough for a screen, and explained row by row."""

from __future__ import annotations

import re

WIDTH = 100
UNITS = ("Ha", "mHa", "eV", "meV", "hartree", "kcal/mol")


def check_printed(text: str, data: str = r"(?!)") -> None:
    """Checks the width of all lines, and that each heading and row label has its sentence under the table.

    Args:
        text: Tables, titles and sentences.
        data: Regular expression of the first cells of rows that are data, such as names of molecules.
    """
    assert max(map(len, text.splitlines())) <= WIDTH, max(text.splitlines(), key=len)
    found = tables(text)
    assert found
    for block in found:
        for heading in block[0][1:]:  # the corner says what the table is of
            assert explained(re.sub(r" \[[^]]*\]$", "", heading), text), f"{heading!r} is not explained"
        for label in (row[0] for row in block[1:]):
            parts = label.split(": ")
            assert re.fullmatch(data, label) or all(explained(part, text) for part in parts), f"{label!r} is not"
        units = {unit for row in block[1:] for cell in row[1:] for unit in cell.split() if unit in UNITS}
        assert not units, f"{units} stand in cells: one unit a column, in its heading"


def tables(text: str) -> list[list[list[str]]]:
    """Cells of each table's lines; a table ends at an empty or an indented line."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.rstrip())
        if line.startswith("  ") or not line:
            found.append([])
        elif len(cells) > 1:
            found[-1].append(cells)
    return [block for block in found if block]


def explained(name: str, text: str) -> bool:
    """Whether a sentence under some table says what a name, or its last word, means."""
    names = {name, name.rpartition(" ")[2]}
    return not name or any(re.search(rf"^  {re.escape(n)}: \S", text, flags=re.MULTILINE) for n in names)
