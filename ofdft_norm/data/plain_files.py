"""Reads YAML and JSON files as plain data, strictly: what a reader might take in two ways is refused."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

LARGEST_DEPTH = 20  # of lists and mappings in one another: a split has two


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: The file, in UTF-8.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no JSON, has a key twice in one mapping, NaN or infinity, or is nested too deeply.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_mapping, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return _checked(content)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file without constructing any object.

    Args:
        path: The file, in UTF-8.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no YAML, has a key twice in one mapping or an alias, or is nested too deeply.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return _checked(content)


_TOO_DEEP = f"lists and mappings are nested more than {LARGEST_DEPTH} deep"


def _mapping(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"has the key {next(key for key in mapping if keys.count(key) > 1)!r} twice in one mapping")
    return mapping


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}, expected finite numbers")


def _checked(content: Any) -> Any:
    level, depth = [content], 0
    while level := [v for c in level if isinstance(c, list | dict) for v in (c.values() if isinstance(c, dict) else c)]:
        depth += 1
        if depth > LARGEST_DEPTH:
            raise ValueError(_TOO_DEEP)
    return content


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few lines of aliases of aliases make billions of entries
            raise ValueError(f"has the alias *{self.peek_event().anchor}, expected plain lists and mappings")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        pairs = [(self.construct_object(key, deep=True), self.construct_object(v, deep)) for key, v in node.value]
        for key, _ in pairs:
            if not isinstance(key, Hashable):
                raise ValueError(f"has the key {key!r}, expected a name or number")
        return _mapping(pairs)
