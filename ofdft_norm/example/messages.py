"""What a run says: Lightning's messages once and where all else is said, our own warnings in one line."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import ofdft_norm

# how messages of Lightning begin that say nothing of the run
CHATTER = ("GPU available", "TPU available", "\N{ELECTRIC LIGHT BULB}", "Loading `train", "Restoring", "Loaded model")

_PACKAGE = Path(ofdft_norm.__file__).parent
_format_others = warnings.formatwarning


def say_once() -> None:
    """Sends Lightning's messages where all others go, once, and drops those that say nothing of the run.

    Warnings of this package are shown without the line of code that gave them.
    """
    warnings.formatwarning = _format_warning
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        if logging.root.handlers:
            logger.handlers.clear()
            logger.propagate = True
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _says_something not in chatter.filters:
        chatter.addFilter(_says_something)
    # Lightning asks torch a question that torch 2.13 has another way to ask: nobody who trains can do anything about it
    warnings.filterwarnings(
        "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning, r"lightning\.pytorch\.utilities"
    )


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(CHATTER)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats a warning of this package like its errors, on a line of its own where a progress bar stands."""
    if Path(filename).is_relative_to(_PACKAGE):
        return f"\nwarning: {message}\n"
    return _format_others(message, category, filename, lineno, line)
