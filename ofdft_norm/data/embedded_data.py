"""Where the labels that come with the package lie; `provenance.yaml` beside them says how they were made."""

import re
from pathlib import Path

EMBEDDED_DATA = Path(__file__).parent / "embedded"
# up to a quotation mark or the end of a line: lists of paths are searched, too
_EMBEDDED_ANYWHERE = re.compile(r"[^'\"\n]*/ofdft_norm/data/embedded(?=/)")


def embedded_here(text: str) -> str:
    """Returns a text in which the embedded labels of any installation are those of this one.

    A checkpoint that was written elsewhere, or before the package moved, names files of the embedded labels by their
    path there.

    Args:
        text: A path, or several between quotation marks or in lines of their own; other paths stay as they are.

    Example:
        >>> embedded_here("/old/venv/ofdft_norm/data/embedded/labels/water.zarr.zip") == str(
        ...     EMBEDDED_DATA / "labels" / "water.zarr.zip"
        ... )
        True
        >>> embedded_here("/data/labels/water.zarr.zip")
        '/data/labels/water.zarr.zip'
    """
    return _EMBEDDED_ANYWHERE.sub(lambda _: str(EMBEDDED_DATA), text)
