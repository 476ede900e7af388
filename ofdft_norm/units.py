"""Units of energy: conversion, and their names in tables and metrics."""

from typing import Literal, NamedTuple, get_args

from ofdft_norm.errors import ConfigError, did_you_mean

EnergyUnit = Literal["hartree", "eV", "kcal/mol"]
ENERGY_UNITS: tuple[EnergyUnit, ...] = get_args(EnergyUnit)


def check_unit(unit: str, where: str = "config: data.unit") -> str:
    """Returns a unit's name; raises ConfigError for an unknown one, with the setting `where`."""
    if unit not in ENERGY_UNITS:
        hint = did_you_mean(str(unit), ENERGY_UNITS)
        raise ConfigError(f"unit = {unit!r}: expected one of {list(ENERGY_UNITS)}{hint} ({where})")
    return unit


def find_factor(unit: str, to: str, where: str = "config: data.unit") -> float:
    """Returns the factor that converts energies, by the constants of `ase.units`; equal units need no ASE.

    Examples:
        >>> find_factor("hartree", "hartree"), round(find_factor("hartree", "kcal/mol"), 3)
        (1.0, 627.509)
    """
    if check_unit(unit, where) == to:
        return 1.0
    try:
        import ase.units
    except ImportError as error:
        raise ImportError(
            f"a conversion of energies from {unit} to {to} needs ASE's constants ({error}); install it with: pip "
            f"install 'ofdft-norm[ase]', or give energies in {to} ({where})"
        ) from error
    in_ev = {"hartree": ase.units.Hartree, "eV": ase.units.eV, "kcal/mol": ase.units.kcal / ase.units.mol}
    return float(in_ev[unit] / ase.units.Hartree) / float(in_ev[to] / ase.units.Hartree)


def find_angstrom_per_bohr() -> float:
    """Returns ASE's constant."""
    import ase.units

    return float(ase.units.Bohr / ase.units.Angstrom)


class ShownUnit(NamedTuple):
    """How energies of a unit are displayed."""

    symbol: str  # unit of an energy
    small: str  # unit of an error
    factor: float  # number of small units in one unit
    suffix: str  # end of an error's name in logs, without a slash, which separates names there
    decimals: int  # digits of an energy in tables: the last one is at most a hundredth of chemical accuracy

    def format_energy(self, value: float | None) -> str:
        """Returns an energy as text without its unit; ``-`` for None."""
        return "-" if value is None else f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"


_SHOWN: dict[str, ShownUnit] = {
    "hartree": ShownUnit("Ha", "mHa", 1e3, "mHa", 5),
    "eV": ShownUnit("eV", "meV", 1e3, "meV", 4),
    "kcal/mol": ShownUnit("kcal/mol", "kcal/mol", 1.0, "kcal_per_mol", 2),
}


def find_unit(unit: str) -> ShownUnit:
    """Returns how energies of a unit are displayed."""
    return _SHOWN[check_unit(unit)]
