"""Units of energy: what they are in hartree, and what tables and metrics call them.

Energies are in `data.unit` wherever they are read from samples, normalised, and reported. Label files are in hartree by
their layout, ASE's files in eV: both are converted as they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ofdft_norm.errors import ConfigError, did_you_mean

EnergyUnit = Literal["hartree", "eV", "kcal/mol"]
ENERGY_UNITS: tuple[EnergyUnit, ...] = get_args(EnergyUnit)


def check_unit(unit: str, where: str = "config: data.unit") -> str:
    """Returns a unit's name.

    Args:
        unit: Name of a unit, as a setting has it.
        where: The setting, for the message.

    Raises:
        ConfigError: If there is no such unit.
    """
    if unit not in ENERGY_UNITS:
        hint = did_you_mean(str(unit), ENERGY_UNITS)
        raise ConfigError(f"unit = {unit!r}: expected one of {list(ENERGY_UNITS)}{hint} ({where})")
    return unit


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
    """Returns how many of another unit one of a unit is; raises as `energy_in_hartree`.

    Args:
        unit: The unit to convert from.
        to: The unit to convert to.
        where: The setting, for messages.

    Example:
        >>> conversion("hartree", "hartree"), round(conversion("hartree", "kcal/mol"), 3)
        (1.0, 627.509)
    """
    return 1.0 if unit == to else energy_in_hartree(unit, where) / energy_in_hartree(to, where)


def angstrom_per_bohr() -> float:
    """Returns ASE's constant.

    Raises:
        ImportError: If ASE is not installed.
    """
    import ase.units

    return float(ase.units.Bohr / ase.units.Angstrom)


@dataclass(frozen=True)
class ShownUnit:
    """How energies of a unit are shown.

    Attributes:
        symbol: Behind an energy.
        small: Behind an error.
        factor: How many of the small ones one is.
        suffix: Of an error's name: without a slash, at which loggers divide names.
        decimals: Of an energy in a table: a hundredth of what is called chemical accuracy, or less.
    """

    symbol: str
    small: str
    factor: float
    suffix: str
    decimals: int

    def energy(self, value: float | None) -> str:
        """Returns an energy as tables show it, without its unit.

        Args:
            value: The energy in this unit; None: it is not known, ``-``.
        """
        return "-" if value is None else f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"


_SHOWN: dict[str, ShownUnit] = {
    "hartree": ShownUnit("Ha", "mHa", 1e3, "mHa", 5),
    "eV": ShownUnit("eV", "meV", 1e3, "meV", 4),
    "kcal/mol": ShownUnit("kcal/mol", "kcal/mol", 1.0, "kcal_per_mol", 2),
}


def error_suffix(unit: str) -> str:
    """Returns what the names of errors end in; raises as `check_unit`.

    Args:
        unit: A unit of `ENERGY_UNITS`.

    Example:
        >>> error_suffix("kcal/mol")
        'kcal_per_mol'
    """
    return shown(check_unit(unit)).suffix


def shown(unit: str) -> ShownUnit:
    """Returns how energies of a unit are shown.

    Args:
        unit: A unit of `ENERGY_UNITS`.

    Example:
        >>> shown("eV").small
        'meV'
    """
    return _SHOWN[unit]
