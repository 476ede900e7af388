"""The page of a report: sections with text, tables and pictures, as one file of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from ofdft_norm.report.figures import Picture
from ofdft_norm.version import package_version


@dataclass(frozen=True)
class Table:
    """A table of the page; cells are text."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


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
