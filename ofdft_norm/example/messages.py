"""What Lightning says while it trains and predicts: once, where all else is said, and without what says nothing."""

from __future__ import annotations

import logging
import warnings

# how messages of Lightning begin that say nothing of the run
CHATTER = ("GPU available", "TPU available", "\N{ELECTRIC LIGHT BULB}", "Loading `train", "Restoring", "Loaded model")


def say_once() -> None:
    """Sends Lightning's messages where all others go, once, and drops those that say nothing of the run."""
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
