from __future__ import annotations

import pytest

from ofdft_norm.data.elements import SYMBOLS, atomic_number, formula, hill_order, symbol
from ofdft_norm.errors import ConfigError


def test_symbols_and_numbers_are_inverse() -> None:
    assert [atomic_number(symbol(z)) for z in range(1, 119)] == list(range(1, 119))
    assert len(set(SYMBOLS)) == 118
    assert [symbol(z) for z in (1, 6, 17, 26, 79, 118)] == ["H", "C", "Cl", "Fe", "Au", "Og"]


@pytest.mark.parametrize(("given", "hint"), [("CL", "Cl"), ("Xx", None), ("", None), ("h", "H")])
def test_unknown_symbols_name_the_closest(given: str, hint: str | None) -> None:
    with pytest.raises(ConfigError, match=f"{given!r}.*{hint or ''}"):
        atomic_number(given)


@pytest.mark.parametrize("number", [0, -1, 119])
def test_numbers_without_an_element_are_refused(number: int) -> None:
    with pytest.raises(ConfigError, match=str(number)):
        symbol(number)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([8, 1, 1], "H2O"), ([6, 8, 1, 1, 1, 1], "CH4O"), ([9, 6, 17], "CClF"), ([17, 9, 1], "ClFH"), ([], "")],
)
def test_formulas_are_in_hills_order(numbers: list[int], expected: str) -> None:
    assert formula(numbers) == expected
    assert "".join(symbol(z) for z in hill_order(numbers)) == "".join(c for c in expected if not c.isdigit())
