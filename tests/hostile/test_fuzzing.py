"""Mutated configurations: the data module is made, or the package names what is wrong."""

import copy
from typing import Any, cast

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ofdft_norm.errors import OFDFTNormError
from tests.hostile.fuzzing import JSON, few_or_many
from tests.hydra.composing import composed


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(composed("train").data, resolve=True))


def places_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all entries but the names of classes, which would build something else."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [p for key, value in items if key != "_target_" for p in [(*path, key), *places_of(value, (*path, key))]]


def check_config(data: st.DataObject, config: dict[str, Any]) -> None:
    mutated = copy.deepcopy(config)
    *way, last = data.draw(st.sampled_from(places_of(config)))
    node: Any = mutated
    for key in way:
        node = node[key]
    before, value = node[last], data.draw(JSON.filter(lambda v: v != node[last]))
    node[last] = value
    try:
        instantiate(mutated, _convert_="all")
    except Exception as error:  # hydra wraps what a constructor raises
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        assert any(isinstance(cause, OFDFTNormError) for cause in causes), (way, last, before, value, causes)


@few_or_many
def test_mutated_configurations_are_built_or_named(setting: Any, config: dict[str, Any]) -> None:
    setting(given(data=st.data())(lambda data: check_config(data, config)))()
