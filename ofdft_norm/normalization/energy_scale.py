"""The energy scale s of the normaliser: one number that divides energies and gradients alike."""

from __future__ import annotations

import math

from ofdft_norm.errors import ConfigError, StatisticsError, did_you_mean
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.references import OTHER_REFERENCES

# What each word reads: after a reference, and (where there is none) around the mean energy.
_STATISTICS = {"std": ("std", "std"), "rmsd": ("rms", "std"), "mae": ("mae", "mae")}

# Scales below this are what rounding leaves of energies that a reference explains entirely.
SMALLEST_SCALE = 1e-10


def resolve_energy_scale(
    spec: float | str,
    statistics: DatasetStatistics,
    weigher_key: str = "has_energy_label",
    reference_name: str | None = "atom_ref",
    per_atom: bool = False,
) -> float:
    """Turns the configured energy scale into a number.

    With r = E - E_ref the referenced energy of a sample, over the training split's labelled samples, by weight:

        std   sqrt(<(r - <r>)^2>)    from energy_minus_<reference>/std
        rmsd  sqrt(<r^2>)            from energy_minus_<reference>/rms
        mae   <|r|>                  from energy_minus_<reference>/mae

    Without a reference r is the deviation from the mean energy: ``std`` and ``rmsd`` are both energy/std, ``mae`` is
    energy/mae. With `per_atom` the scale is divided by the mean number of atoms of a sample,
    n_atoms.sum() / n_samples. A number is used as it is, whatever `per_atom`.

    Args:
        spec: A positive number, in the unit of the statistics' energies, or ``"std"``, ``"rmsd"``, ``"mae"``.
        statistics: Statistics of the training split.
        weigher_key: Whose statistics to use.
        reference_name: ``"atom_ref"``, ``"scalar_atom_ref"``, ``"linear_ref"``, or None.
        per_atom: Whether to divide by the mean number of atoms.

    Returns:
        s > 0, in the same unit.

    Raises:
        ConfigError: If `spec` is neither a positive number nor one of the words.
        StatisticsError: If the statistics lack what is needed, or the reference explains the energies entirely.

    Example:
        >>> import numpy as np
        >>> statistics = DatasetStatistics.from_arrays({"constant/energy/std": np.array(0.02)})
        >>> resolve_energy_scale("std", statistics, "constant", reference_name=None)
        0.02
    """
    if isinstance(spec, bool) or not isinstance(spec, int | float | str):
        raise ConfigError(f"energy_scale = {spec!r}: {_expected()}")
    if not isinstance(spec, str):
        if not 0 < spec < math.inf:
            raise ConfigError(f"energy_scale = {spec}: {_expected()}")
        return float(spec)
    if spec not in _STATISTICS:
        raise ConfigError(f"energy_scale = {spec!r}: {_expected()}{did_you_mean(spec, _STATISTICS)}")
    key = _key(spec, reference_name)
    scale = _load(statistics, weigher_key, key, spec)
    if not scale >= SMALLEST_SCALE:
        raise StatisticsError(
            f"energy_scale = {spec!r}: '{weigher_key}/{key}' is {scale:.3g}: the reference leaves nothing of "
            "the training energies to scale (one molecule, or as many elements as molecules); give a number "
            "(config: data.energy_scale=1.0)"
        )
    if not per_atom:
        return scale
    n_samples = float(statistics.load_statistic(weigher_key, "n_samples"))
    return scale * n_samples / float(statistics.load_statistic(weigher_key, "n_atoms").sum())


def _expected() -> str:
    return f"expected a positive number (in data.unit) or one of {sorted(_STATISTICS)} (config: data.energy_scale)"


def _key(spec: str, reference_name: str | None) -> str:
    after_reference, without = _STATISTICS[spec]
    return f"energy/{without}" if reference_name is None else f"energy_minus_{reference_name}/{after_reference}"


def _load(statistics: DatasetStatistics, weigher_key: str, key: str, spec: str) -> float:
    if f"{weigher_key}/{key}" not in statistics and key.endswith("/mae"):
        if any(f"energy_minus_{name}/" in key for name in OTHER_REFERENCES):
            raise StatisticsError(
                f"energy_scale = {spec!r}: what references leave that are given, or fitted with data.reference.ridge, "
                "has a mean and a standard deviation, no mean absolute value: choose std or rmsd (config: "
                "data.energy_scale=std)"
            )
        raise StatisticsError(
            f"{statistics.path or 'these statistics'}: energy_scale = {spec!r} needs '{weigher_key}/{key}', which a "
            "second pass measures; fit with data.statistics.residuals=true, or use data.energy_scale=std"
        )
    return float(statistics.load_statistic(weigher_key, key))
