"""Units of energy; everything inside the package is in hartree."""

from __future__ import annotations

from typing import Literal, get_args

from ofdft_norm.errors import ConfigError, did_you_mean

EnergyUnit = Literal["hartree", "eV", "kcal/mol"]
ENERGY_UNITS: tuple[EnergyUnit, ...] = get_args(EnergyUnit)


def energy_in_hartree(unit: str, where: str = "config: data.unit") -> float:
    """Returns how many hartree one of a unit is, by the constants of `ase.units`, which are not loaded for hartree.

    Args:
        unit: One of `ENERGY_UNITS`.
        where: What sets it, for the message.

    Raises:
        ConfigError: If the unit is unknown.
        ImportError: If ASE is needed and not installed.

    Example:
        >>> round(1 / energy_in_hartree("eV"), 5)
        27.21139
    """
    if unit not in ENERGY_UNITS:
        hint = did_you_mean(str(unit), ENERGY_UNITS)
        raise ConfigError(f"unit = {unit!r}: expected one of {list(ENERGY_UNITS)}{hint} ({where})")
    if unit == "hartree":
        return 1.0
    try:
        import ase.units
    except ImportError as error:
        raise ImportError(
            f"energies in {unit} need ASE's constants ({error}); install it with: pip install 'ofdft-norm[ase]', or "
            f"give energies in hartree ({where})"
        ) from error
    in_ev = {"eV": ase.units.eV, "kcal/mol": ase.units.kcal / ase.units.mol}
    return float(in_ev[unit] / ase.units.Hartree)
