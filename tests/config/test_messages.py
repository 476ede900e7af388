"""Messages name configuration keys that exist: each is found in a configuration composed with some option."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.config.readable_errors import config_dir, config_groups

PACKAGE = Path(__file__).parents[2] / "ofdft_norm"
# the keys that a message says to change; a text may explain before: (a list is possible; config: data.source.dataset)
NAMED = re.compile(r"\((?:[^()]*; )?config: ([^()]*)\)")


def texts(source: str) -> Iterator[str]:
    """Yields all strings of a module, also joined ones; a value that is filled in becomes ``*``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)


def named_keys() -> list[tuple[str, str]]:
    """Returns the keys that messages of the package name, each with its module."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for text in texts(path.read_text()):
            found |= {(key.partition("=")[0], path.name) for keys in NAMED.findall(text) for key in keys.split(", ")}
    return sorted(found)


def keys_of(node: Any, above: str = "") -> Iterator[str]:
    for key in node if isinstance(node, DictConfig) else []:
        yield f"{above}{key}"
        yield from keys_of(node._get_node(key), f"{above}{key}.")


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """All keys of runs composed with each option of each group, and of other scripts' configurations; the groups."""
    scripts = [path.stem for path in config_dir().glob("*.yaml")]
    options = [f"{name}={path.stem}" for name, folder in config_groups().items() for path in folder.glob("*.yaml")]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = [compose(name) for name in scripts]
        composed += [compose("train", [option]) for option in options if not option.startswith("data=")]
    return {key for config in composed for key in keys_of(config)} | set(config_groups())


@pytest.mark.parametrize(("key", "module"), named_keys())
def test_a_key_that_a_message_names_exists(key: str, module: str, keys: set[str]) -> None:
    assert any(fnmatchcase(known, key) for known in keys), f"{module} names {key!r}, which no configuration has"


def test_the_collection_reads_joined_strings_and_several_keys() -> None:
    source = """raise ValueError(f"{path}: bad (config: data.{name}, " "data.source=1)" + "no (a list; config: x)")"""
    assert [key for text in texts(source) for key in NAMED.findall(text)] == ["data.*, data.source=1", "x"]
    assert len(named_keys()) > 50


def test_keys_are_listed_at_any_depth() -> None:
    assert list(keys_of(OmegaConf.create({"a": {"b": {"c": 1}}, "d": [1]}))) == ["a", "a.b", "a.b.c", "d"]
