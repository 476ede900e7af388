"""A data set with a transform on top of it, whose batches are joined first and transformed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, overload

from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from ofdft_norm.data.of_data import as_data, samples_at
from ofdft_norm.data.of_dataset import OFDataset
from ofdft_norm.data.worker_notes import TOLD, at_work_on, first_of


class TransformedDataset(Dataset[Data]):
    """Applies a transform to each sample of another data set, exactly once.

    A loader with `JoinSamples` gets the raw samples of a batch at once, joins them, and transforms the joined batch, if
    the transform says that it `works_on_batches`: the same numbers to rounding, at a fraction of the time.

    A sample that is handed out is the receiver's own, whatever the data set below keeps.

    Args:
        dataset: The data set below.
        transform: Takes a sample, returns a new one.
        keep_in_memory: Keep each transformed sample after it was first read.
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
        sample = self._sample(index)
        return sample.clone() if isinstance(sample, Data) else copy.deepcopy(sample)

    def _sample(self, index: int) -> Data:
        if index in self._kept:
            return self._kept[index]
        with at_work_on(lambda: self._described([index])):
            sample: Data = self.transform(self.dataset[index])
        if self.keep_in_memory:
            self._kept[index] = sample
        return sample

    def __getitems__(self, indices: Sequence[int]) -> SelectedSamples:
        """Returns the transformed samples of a batch, which are not read before they are asked for."""
        return SelectedSamples(self, indices)

    def batch(self, indices: Sequence[int], follow_batch: Sequence[str]) -> Data:
        """Returns the batch of some samples: joined, then transformed.

        Args:
            indices: The samples.
            follow_batch: Fields that get a field ``<name>_batch``, as in PyG's loader.
        """
        if self.keep_in_memory or not getattr(self.transform, "works_on_batches", False):
            return Batch.from_data_list([as_data(self._sample(i)) for i in indices], follow_batch=list(follow_batch))
        with at_work_on(lambda: self._described(indices)):
            joined: Data = self.transform(_join(self.dataset, indices, follow_batch))
        return joined

    def names(self, samples: Sequence[int]) -> list[str]:
        """Returns what messages call the molecules of some samples, one for each: their label files, where there are.

        Args:
            samples: Their indices.
        """
        if isinstance(self.dataset, OFDataset | TransformedDataset):
            return self.dataset.names([i % len(self) for i in samples])
        return [f"sample {i}" for i in samples]

    def _described(self, samples: Sequence[int]) -> str:
        return first_of(self.names(samples[:TOLD]), len(samples))

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without the kept samples: spawned workers and copies of the data module stay small."""
        return {**self.__dict__, "_kept": {}}


def _join(dataset: Any, indices: Sequence[int], follow_batch: Sequence[str]) -> Data:
    """Returns the batch of some samples of the data set below."""
    if isinstance(dataset, OFDataset):
        return dataset.batch([i % len(dataset) for i in indices])
    if isinstance(dataset, TransformedDataset):
        return dataset.batch(indices, follow_batch)
    samples = map(as_data, samples_at(dataset, indices))
    return Batch.from_data_list(list(samples), follow_batch=list(follow_batch))


class SelectedSamples(Sequence[Data]):
    """Some samples of a data set: each is read when it is asked for, or all together as a batch.

    Args:
        dataset: The data set.
        indices: Which samples.
    """

    def __init__(self, dataset: TransformedDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Data: ...

    @overload
    def __getitem__(self, index: slice) -> SelectedSamples: ...

    def __getitem__(self, index: int | slice) -> Data | SelectedSamples:
        """Reads one sample, or selects some of these."""
        if isinstance(index, slice):
            return SelectedSamples(self.dataset, self.indices[index])
        return self.dataset[self.indices[index]]


class JoinSamples:
    """The `collate_fn` of a loader: joins samples as PyG's loader does, those of a `TransformedDataset` at once.

    Args:
        follow_batch: Fields that get a field ``<name>_batch``.
        exclude: Fields that batches are not to have.
    """

    def __init__(self, follow_batch: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self.follow_batch = list(follow_batch)
        self.exclude = list(exclude)

    def __call__(self, samples: Sequence[Data]) -> Data:
        """Returns the batch."""
        if isinstance(samples, SelectedSamples):
            batch = samples.dataset.batch(samples.indices, self.follow_batch)
        else:
            batch = Batch.from_data_list(list(map(as_data, samples)), follow_batch=self.follow_batch)
        for name in self.exclude:  # only now: normalising may have needed them
            if name in batch:
                del batch[name]
        return batch


class CopyThen:
    """Applies a transform to a shallow copy: samples that somebody keeps in memory stay as they are.

    Args:
        transform: May change its argument.
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    @property
    def works_on_batches(self) -> bool:
        """Whether the transform may get a batch instead of a sample."""
        return bool(getattr(self.transform, "works_on_batches", False))

    def __call__(self, sample: Any) -> Any:
        """Returns the transformed copy."""
        return self.transform(copy.copy(sample))
