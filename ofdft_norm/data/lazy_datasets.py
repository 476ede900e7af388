"""Data sets by name, each built when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class LazyDatasets(Mapping[str, Any]):
    """Data sets by the name of their split: a test opens no training file.

    Args:
        contents: What each data set is made of, such as its label files; those made of nothing are left out.
        build: Makes a data set from its name and what it is made of.
        loaders: Filled by `build`, where it takes data sets from somebody's loaders: the loaders, by name.

    Example:
        >>> datasets = LazyDatasets({"train": [1, 2], "val": [], "test": [3]}, lambda name, content: sum(content))
        >>> list(datasets), datasets["train"]
        (['train', 'test'], 3)
    """

    def __init__(
        self, contents: Mapping[str, Any], build: Callable[[str, Any], Any], loaders: Mapping[str, Any] | None = None
    ) -> None:
        self.contents = {name: content for name, content in contents.items() if content}
        self._build = build
        self.loaders = {} if loaders is None else loaders
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._build(name, self.contents[name])
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in self.contents

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents)

    def __len__(self) -> int:
        return len(self.contents)
