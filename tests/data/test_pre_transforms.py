from __future__ import annotations

from typing import Any

import pytest
from torch_geometric.transforms import Compose

from ofdft_norm import ProjectGradient
from ofdft_norm.data.pre_transforms import composed, described, not_yet_applied, single_transforms
from ofdft_norm.errors import ConfigError


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, number: float) -> float:
        return number * self.factor


def plus_one(number: float) -> float:
    return number + 1


def test_transforms_are_described_by_class_and_settings() -> None:
    transforms = [ProjectGradient(), Compose([Scaled(2.0), Scaled(3.0)]), plus_one]
    assert described(transforms) == [
        "ProjectGradient()",
        "Scaled(factor=2.0)",
        "Scaled(factor=3.0)",
        f"{__name__}.plus_one",
    ]
    with pytest.raises(ConfigError, match=r"lambda.*data\.pre_transforms"):
        described([lambda sample: sample])
    with pytest.raises(ConfigError, match=r"cannot be recognised"):
        described([Scaled(object())])


def test_one_transform_stands_for_several_and_back() -> None:
    transforms = [Scaled(2.0), plus_one, Scaled(3.0)]
    both: Any = composed(transforms)
    assert both(5.0) == 33.0
    assert single_transforms(Compose([both])) == transforms
    assert composed([]) is None
    assert single_transforms(None) == []
    assert composed(transforms[:1]) is transforms[0]


@pytest.mark.parametrize("n_applied", range(4))
def test_what_was_applied_is_not_applied_again(n_applied: int) -> None:
    transforms = [Scaled(2.0), plus_one, Scaled(3.0)]
    number = 5.0
    for transform in transforms[:n_applied]:
        number = transform(number)
    rest = not_yet_applied(Compose(transforms), described(transforms[:n_applied]), "a set")
    assert (number if rest is None else rest(number)) == 33.0


@pytest.mark.parametrize("wanted", [None, plus_one, Scaled(3.0), Compose([plus_one, Scaled(2.0)])])
def test_other_transforms_than_were_applied_are_refused(wanted: Any) -> None:
    with pytest.raises(ConfigError, match=r"a set: was packed after .*Scaled\(factor=2.0\).*data\.pre_transforms"):
        not_yet_applied(wanted, ["Scaled(factor=2.0)"], "a set")
    assert not_yet_applied(wanted, [], "a set") is wanted or isinstance(wanted, Compose)
