"""Units of energy: conversion, and their names in tables and metrics.

All energies are in `data.unit`. Label files are in hartree and ASE's files in eV; both are converted when read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ofdft_norm.errors import ConfigError, did_you_mean

EnergyUnit = Literal["hartree", "eV", "kcal/mol"]
ENERGY_UNITS: tuple[EnergyUnit, ...] = get_args(EnergyUnit)


def check_unit(unit: str, where: str = "config: data.unit") -> str:
    """Returns a unit's name; raises ConfigError for an unknown one, with the setting `where`."""
    if unit not in ENERGY_UNITS:
        hint = did_you_mean(str(unit), ENERGY_UNITS)
        raise ConfigError(f"unit = {unit!r}: expected one of {list(ENERGY_UNITS)}{hint} ({where})")
    return unit


def energy_in_hartree(unit: str, where: str = "config: data.unit") -> float:
    """Returns the value of one `unit` in hartree, by the constants of `ase.units`; hartree itself needs no ASE.

    Examples:
        >>> round(1 / energy_in_hartree("eV"), 5)
        27.21139
    """
    if check_unit(unit, where) == "hartree":
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


def conversion(unit: str, to: str, where: str = "config: data.unit") -> float:
    """Returns the factor that converts energies from one unit to another.

    Examples:
        >>> conversion("hartree", "hartree"), round(conversion("hartree", "kcal/mol"), 3)
        (1.0, 627.509)
    """
    return 1.0 if unit == to else energy_in_hartree(unit, where) / energy_in_hartree(to, where)


def angstrom_per_bohr() -> float:
    """Returns ASE's constant."""
    import ase.units

    return float(ase.units.Bohr / ase.units.Angstrom)


@dataclass(frozen=True)
class ShownUnit:
    """How energies of a unit are displayed.

    Attributes:
        symbol: Unit of an energy.
        small: Unit of an error.
        factor: Number of small units in one unit.
        suffix: End of an error's name in logs; it has no slash, which separates names there.
        decimals: Decimals of an energy in a table: a hundredth of chemical accuracy, or less.
    """

    symbol: str
    small: str
    factor: float
    suffix: str
    decimals: int

    def energy(self, value: float | None) -> str:
        """Returns an energy as text without its unit; ``-`` for None."""
        return "-" if value is None else f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"


_SHOWN: dict[str, ShownUnit] = {
    "hartree": ShownUnit("Ha", "mHa", 1e3, "mHa", 5),
    "eV": ShownUnit("eV", "meV", 1e3, "meV", 4),
    "kcal/mol": ShownUnit("kcal/mol", "kcal/mol", 1.0, "kcal_per_mol", 2),
}


def shown(unit: str) -> ShownUnit:
    """Returns how energies of a unit are displayed."""
    return _SHOWN[check_unit(unit)]


def error_suffix(unit: str) -> str:
    """Returns the end of the names of errors in logs.

    Examples:
        >>> error_suffix("kcal/mol")
        'kcal_per_mol'
    """
    return shown(unit).suffix
