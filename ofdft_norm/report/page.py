"""The page of a report: sections with text, tables and pictures, as one file of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from ofdft_norm.report.figures import Picture
from ofdft_norm.tables import explained
from ofdft_norm.version import package_version


@dataclass(frozen=True)
class Table:
    """A table of the page; cells are text.

    Attributes:
        caption: What it shows.
        header: Headings.
        rows: Cells of each row.
        meanings: What headings and row labels mean, by name; those that are in it stand under it.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    meanings: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What stands under it."""
        return explained(self.header, self.rows, self.meanings)


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    listing: str = ""
    pictures_first: bool = False


def render(title: str, sections: Sequence[Section]) -> str:
    """Returns the page.

    Args:
        title: Heading of the page.
        sections: Content, in this order.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    subtitle = f"made with ofdft_norm {package_version()}; units stand beside the numbers"
    return environment.get_template("page.html").render(title=title, subtitle=subtitle, sections=sections)
