"""A data set with a transform on top of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset
from torch_geometric.data import Data


class TransformedDataset(Dataset[Data]):
    """Applies a transform to each sample of another data set, exactly once.

    Args:
        dataset: The data set below.
        transform: Takes a sample, returns a new one.
        keep_in_memory: Keep each transformed sample; callers get shallow copies.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Any], keep_in_memory: bool = False) -> None:
        self.dataset = dataset
        self.transform = transform
        self.keep_in_memory = keep_in_memory
        self._kept: dict[int, Data] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Data:
        """Returns the transformed sample."""
        if index in self._kept:
            return copy.copy(self._kept[index])
        sample: Data = self.transform(self.dataset[index])
        if self.keep_in_memory:
            self._kept[index] = sample
            return copy.copy(sample)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without the kept samples: spawned workers and copies of the data module stay small."""
        return {**self.__dict__, "_kept": {}}


class CopyThen:
    """Applies a transform to a shallow copy: samples that somebody keeps in memory stay as they are.

    Args:
        transform: May change its argument.
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, sample: Any) -> Any:
        """Returns the transformed copy."""
        return self.transform(copy.copy(sample))
