"""The configuration: its schema, where labels come from, and messages for what is wrong with it."""

from ofdft_norm.config.schema import (
    AtomicReference,
    LinearReference,
    Loader,
    Rescaling,
    Statistics,
    nothing,
)
from ofdft_norm.config.sources import EmbeddedLabels, LabelFiles, Split, WrappedData

__all__ = [
    "AtomicReference",
    "EmbeddedLabels",
    "LabelFiles",
    "LinearReference",
    "Loader",
    "Rescaling",
    "Split",
    "Statistics",
    "WrappedData",
    "nothing",
]
