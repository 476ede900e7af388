"""The parts of a data set, each built when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class LazyParts(Mapping[str, Any]):
    """Data sets by the name of their part: a test opens no training file.

    Args:
        contents: What each part is made of, such as its label files; empty parts are left out.
        build: Makes a part's data set from its name and what it is made of.

    Example:
        >>> parts = LazyParts({"train": [1, 2], "val": [], "test": [3]}, lambda name, content: sum(content))
        >>> list(parts), parts["train"]
        (['train', 'test'], 3)
    """

    def __init__(self, contents: Mapping[str, Any], build: Callable[[str, Any], Any]) -> None:
        self.contents = {part: content for part, content in contents.items() if content}
        self._build = build
        self._built: dict[str, Any] = {}

    def __getitem__(self, part: str) -> Any:
        if part not in self._built:
            self._built[part] = self._build(part, self.contents[part])
        return self._built[part]

    def __contains__(self, part: object) -> bool:
        return part in self.contents

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents)

    def __len__(self) -> int:
        return len(self.contents)
