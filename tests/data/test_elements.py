from __future__ import annotations

import pytest

from ofdft_norm.data.elements import SYMBOLS, atomic_number, formula, symbol
from ofdft_norm.errors import ConfigError


def test_symbols_and_numbers_are_inverse() -> None:
    assert [atomic_number(symbol(z)) for z in range(1, 119)] == list(range(1, 119))
    assert len(set(SYMBOLS)) == 118
    assert [symbol(z) for z in (1, 6, 17, 26, 79, 118)] == ["H", "C", "Cl", "Fe", "Au", "Og"]


@pytest.mark.parametrize(("given", "words"), [("CL", "'CL'.*Cl"), ("", "''"), (0, "0"), (-1, "-1"), (119, "119")])
def test_unknown_elements_are_refused(given: str | int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        atomic_number(given) if isinstance(given, str) else symbol(given)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([8, 1, 1], "H2O"), ([6, 8, 1, 1, 1, 1], "CH4O"), ([9, 6, 17], "CClF"), ([17, 9, 1], "ClFH"), ([], "")],
)
def test_formulas_are_in_hills_order(numbers: list[int], expected: str) -> None:
    assert formula(numbers) == expected
