import sys

import pytest
from scipy import constants

from ofdft_norm.errors import ConfigError
from ofdft_norm.units import ENERGY_UNITS, energy_in_hartree


def test_units_agree_with_another_library_s_constants():
    joule = {"hartree": constants.value("Hartree energy"), "eV": constants.eV}
    joule["kcal/mol"] = 1000 * constants.calorie / constants.Avogadro
    assert set(joule) == set(ENERGY_UNITS)
    for unit, value in joule.items():
        # ASE's constants are of another year
        assert energy_in_hartree(unit) == pytest.approx(value / joule["hartree"], rel=3e-8)
    assert energy_in_hartree("hartree") == 1.0


def test_an_unknown_unit_names_the_setting():
    with pytest.raises(ConfigError, match=r"unit = 'ev': expected one of .*did you mean 'eV'\? \(config: data.unit\)"):
        energy_in_hartree("ev")


def test_without_ase_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ase.units", None)
    with pytest.raises(ImportError, match=r"pip install 'ofdft-norm\[ase\]'"):
        energy_in_hartree("eV")
    assert energy_in_hartree("hartree") == 1.0
