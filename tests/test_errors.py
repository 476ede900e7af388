"""Hints at what a wrong name could have meant."""

from __future__ import annotations

import pytest

from ofdft_norm.errors import closest, did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("batchsize", ["batch_size", "num_batches"], ["batch_size"]),
        (" STD ", ["std", "rmsd"], ["std"]),
        ("cl", ["Cl", "C"], ["Cl"]),
        ("nothing like it", ["std", "rmsd"], []),
        ("std", [], []),
    ],
)
def test_the_closest_name_is_found_whatever_its_capitals(name: str, known: list[str], expected: list[str]) -> None:
    assert closest(name, known) == expected


def test_the_hint_ends_a_message_or_is_empty() -> None:
    assert did_you_mean("mea", ["mean", "means", "std"], n=2) == "; did you mean 'mean' or 'means'?"
    assert did_you_mean("nothing like it", ["O"]) == ""
