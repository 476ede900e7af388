"""What vectors and dual vectors are given in: the density basis as it is, or what changes of basis made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ofdft_norm.errors import LabelFileError

# The density basis as it is. Other coordinates are named by the changes of basis that lead to them, joined by "+".
RAW = "raw"


def stated_coordinates(attributes: Mapping[str, Any], where: str) -> str:
    """Reads out of the attributes of a label file what its vectors are given in.

    Args:
        attributes: Of the file's root.
        where: The file, for the message.

    Raises:
        LabelFileError: If the attribute is not a name.
    """
    settings = attributes.get("settings")
    # the generator of version 0.1.0 wrote its settings only
    natural = isinstance(settings, Mapping) and settings.get("natural_reparametrization") is True
    coordinates = attributes.get("coordinates", "natural_symmetric" if natural else RAW)
    if not isinstance(coordinates, str):
        raise LabelFileError(
            f"{where}: attribute 'coordinates' is {coordinates!r}, expected a name such as {RAW!r}: make the label "
            "again, or leave the molecule out (config: data.source.exclude)"
        )
    return coordinates
