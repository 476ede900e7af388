import pytest
from scipy import constants

from ofdft_norm.errors import ConfigError
from ofdft_norm.units import ENERGY_UNITS, find_angstrom_per_bohr, find_factor, find_unit


def test_units_agree_with_another_library_s_constants():
    joule = {"hartree": constants.value("Hartree energy"), "eV": constants.eV}
    joule["kcal/mol"] = 1000 * constants.calorie / constants.Avogadro
    assert set(joule) == set(ENERGY_UNITS)
    for unit, value in joule.items():
        # ASE's constants are of another year
        assert find_factor(unit, "hartree") == pytest.approx(value / joule["hartree"], rel=3e-8)


def test_an_unknown_unit_names_the_setting():
    with pytest.raises(ConfigError, match=r"unit = 'ev': expected one of .*did you mean 'eV'\? \(config: data.unit\)"):
        find_factor("ev", "hartree")


def test_units_convert_into_each_other_and_into_themselves_exactly():
    for unit in ENERGY_UNITS:
        assert find_factor(unit, unit) == 1.0
        for other in ENERGY_UNITS:
            assert find_factor(unit, other) * find_factor(other, unit) == pytest.approx(1, rel=1e-15)
    assert find_angstrom_per_bohr() == pytest.approx(constants.value("Bohr radius") / constants.angstrom, rel=1e-8)
    assert [find_unit(unit).suffix for unit in ENERGY_UNITS] == ["mHa", "meV", "kcal_per_mol"]
