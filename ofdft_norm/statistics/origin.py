"""What statistics were taken of: kept among their attributes, and compared where statistics are given by path."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ofdft_norm.data.pre_transforms import described
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics

# What must agree, and which keys of the configuration choose it.
_CHOSEN_BY = {
    "pre_transforms": "data.pre_transforms",
    "energy_key": "data.source.energy_key",
    "gradient_key": "data.source.gradient_key",
    "unit": "data.unit",
}


def origin_of(
    pre_transforms: Sequence[Callable[..., Any]],
    energy_key: str | None,
    gradient_key: str | None,
    unit: str = "hartree",
) -> dict[str, Any]:
    """Returns what statistics of a data set depend on besides its samples; what cannot be told is left out.

    Args:
        pre_transforms: Applied before statistics are taken; those that do not print what they do cannot be compared.
        energy_key: The energy that is learned.
        gradient_key: Its gradient.
        unit: Unit of the energies.
    """
    origin: dict[str, Any] = {"energy_key": energy_key, "gradient_key": gradient_key, "unit": unit}
    with contextlib.suppress(ConfigError):
        origin["pre_transforms"] = described(pre_transforms)
    return {name: value for name, value in origin.items() if value is not None}


def refuse_other_origin(statistics: DatasetStatistics, origin: Mapping[str, Any]) -> None:
    """Refuses statistics that say they were taken after other pre-transforms, or of another target.

    Args:
        statistics: Given by path. Those that do not say, as STRUCTURES25's, are believed.
        origin: What they are to be used for, from `origin_of`.

    Raises:
        StatisticsError: With what they were taken of and what was expected.
    """
    for name, expected in origin.items():
        # in former versions and in STRUCTURES25 all is in hartree
        found = statistics.attributes.get(name, "hartree" if name == "unit" else None)
        if found is not None and found != expected:
            raise StatisticsError(
                f"{statistics.path}: taken with {name} = {found}, but the configuration has {expected}: give "
                "statistics that were taken alike (config: data.statistics.path), or change the configuration (config: "
                f"{_CHOSEN_BY[name]})"
            )


def coordinates_attribute(dataset: Any) -> dict[str, str]:
    """Returns what the vectors of a data set's samples are given in, as an attribute; nothing if they do not say.

    Args:
        dataset: Data set of raw samples.
    """
    coordinates = getattr(dataset[0], "coordinates", None) if len(dataset) else None
    return {"coordinates": coordinates} if isinstance(coordinates, str) else {}
