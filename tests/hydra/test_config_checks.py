"""Values are checked against annotations where they enter the configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ofdft_norm import OFDFTDataModule
from ofdft_norm.config import LabelFiles, LinearReference, Loader, Rescaling, Split, Statistics
from ofdft_norm.config.checks import (
    AtomicNumber,
    CheckedConfig,
    NonNegative,
    Positive,
    PositiveInt,
    Share,
    check_arguments,
    check_value,
)
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import DensityModule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rescaling(s_grad=-0.05), "data.rescaling.s_grad = -0.05: expected a number > 0"),
        (lambda: Rescaling(s_grad=0), "data.rescaling.s_grad = 0: expected a number > 0"),
        (lambda: Rescaling(s_coeff="abc"), "data.rescaling.s_coeff = 'abc': expected a number > 0"),  # type: ignore
        (lambda: Rescaling(epsilon=float("nan")), "data.rescaling.epsilon = nan: expected a number >= 0"),
        (lambda: Split(train=1.5), "data.split.train = 1.5: expected a number in 0 ... 1"),
        (lambda: Loader(batch_size=True), "data.loader.batch_size = True: expected an integer >= 1"),
        (lambda: Loader(batch_size=2.0), "data.loader.batch_size = 2.0: expected an integer >= 1"),  # type: ignore
        (lambda: Statistics(n_batches=0), "data.statistics.n_batches = 0: expected an integer >= 1 or null"),
        (
            lambda: Statistics(fingerprint="size"),  # type: ignore[arg-type]
            "data.statistics.fingerprint = 'size': expected 'mtime' or 'contents'",
        ),
        (
            lambda: LinearReference(values={"H": "half"}),  # type: ignore[dict-item]
            "data.reference.values = {'H': 'half'}: expected a mapping of strings or integers to numbers or null",
        ),
        (
            lambda: LabelFiles(paths=["a", 3], basis_info="b"),  # type: ignore[list-item]
            "data.source.paths = ['a', 3]: expected a string or a list of strings",
        ),
        (lambda: OFDFTDataModule(loader=3), "data.loader = 3: expected a Loader"),  # type: ignore[arg-type]
        (
            lambda: OFDFTDataModule(pre_transforms=[3]),
            "data.pre_transforms = [3]: expected a list of callables or null",
        ),
        (lambda: DensityModule(width="wide"), "model.width = 'wide': expected an integer >= 1"),  # type: ignore
    ],
)
def test_messages_name_key_value_and_expectation(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_what_python_and_hydra_callers_give_is_accepted() -> None:
    assert Rescaling(s_grad=np.float64(0.1), s_coeff=np.int64(3)).s_grad == 0.1
    assert LabelFiles(Path("labels"), Path("basis.json"), limit_scf_iterations=OmegaConf.create([1, 2])).paths
    assert LinearReference(values=OmegaConf.create({"H": -0.5, 6: -37})).values
    assert Split(train=1, val=0, test=0).train == 1


@given(st.floats(allow_nan=True) | st.integers(-3, 3) | st.booleans() | st.text(max_size=3) | st.none())
def test_ranges_hold_exactly_for_the_numbers_within(value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    expected = {
        Positive: number and value > 0,
        NonNegative: number and value >= 0,
        Share: number and 0 <= value <= 1,
        PositiveInt: number and isinstance(value, int) and value >= 1,
        AtomicNumber: number and isinstance(value, int) and 1 <= value <= 118,
    }
    assert {hint: accepts(value, hint) for hint in expected} == expected


@pytest.mark.parametrize(
    ("value", "hint", "accepted"),
    [
        (None, int | None, True),
        (None, int, False),
        ("text", Sequence[str], False),
        ([], Sequence[str], True),
        ({"a": 1}, Mapping[str, int], True),
        ({1: 1}, Mapping[str, int], False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (len, Callable[..., Any], True),
        (3, Callable[..., Any], False),
        (3, Any, True),
    ],
)
def test_hints_of_every_kind(value: Any, hint: Any, accepted: bool) -> None:
    assert accepts(value, hint) is accepted


def test_subclasses_check_their_own_fields_under_their_own_key() -> None:
    @dataclass(frozen=True)
    class Child(Rescaling):
        sizes: Sequence[PositiveInt] = (1,)
        config_key = "data.child"

    assert issubclass(Child, CheckedConfig)
    with pytest.raises(ConfigError, match=r"data\.child\.sizes = \(1, 0\)"):
        Child(sizes=(1, 0))
    with pytest.raises(ConfigError, match=r"data\.child\.s_grad"):
        Child(s_grad=-1)


def test_arguments_are_checked_and_locals_passed_over() -> None:
    def function(size: PositiveInt, other: str = "x") -> None:
        unrelated = object()
        check_arguments(function, {**locals()}, "part")
        del unrelated

    function(3)
    with pytest.raises(ConfigError, match=r"part\.size = 0"):
        function(0)


def accepts(value: Any, hint: Any) -> bool:
    try:
        check_value(value, hint, "key")
    except ConfigError:
        return False
    return True
