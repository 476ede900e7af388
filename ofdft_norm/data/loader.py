"""Loaders: their settings, the order of training samples, and a wrapped data module's loaders with our collation."""

import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, RandomSampler, default_collate
from torch_geometric.data import Data
from torch_geometric.loader.dataloader import Collater

from ofdft_norm.data.sample import convert_to_data, join_samples
from ofdft_norm.settings import NonNegativeInt, PositiveInt, Settings


class LoaderConfig(Settings):
    """Settings of torch's DataLoader for each split. A wrapped data module keeps its own loaders.

    Attributes:
        batch_size: Samples in a batch, on each rank.
        num_workers: Worker processes.
        pin_memory: Copy batches to page-locked memory, for GPUs.
        persistent_workers: Keep workers alive between epochs.
        prefetch_factor: Batches that each worker reads ahead; None: torch's 2.
        in_order: Whether batches come in the sampler's order; False: in the order in which workers finish them, so
            that no batch waits for a slow one, but runs are not reproducible.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``; None: the platform's default.
        shuffle: Whether the training split is shuffled.
        follow_batch: Fields that get a field ``<name>_batch``, the index of each entry's sample, as in PyG's loader.
    """

    batch_size: PositiveInt = 32
    num_workers: NonNegativeInt = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    prefetch_factor: PositiveInt | None = None
    in_order: bool = True
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    shuffle: bool = True
    follow_batch: Sequence[str] = ()
    config_key = "data.loader"

    def keywords(self) -> dict[str, Any]:
        """Returns the arguments of torch's DataLoader; without workers, torch refuses the others' settings."""
        of_workers = ("persistent_workers", "prefetch_factor", "in_order", "multiprocessing_context")
        given = {name: getattr(self, name) for name in ("batch_size", "num_workers", "pin_memory")}
        return given | {name: getattr(self if self.num_workers else LoaderConfig, name) for name in of_workers}


class EpochSampler(RandomSampler):
    """Draws the permutation that torch's `DistributedSampler` draws, from the seed and the epoch.

    A resumed run keeps its order, and one process sees the global batches of several. Lightning sets the epoch; in a
    plain loop every pass is the next epoch. Lightning replaces a `RandomSampler` if there are several processes.
    """

    def __init__(self, data_source: Sized, seed: int | None = None) -> None:
        super().__init__(data_source)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._next_epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass."""
        self._next_epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed + self._next_epoch)
        self._next_epoch += 1
        return iter(torch.randperm(len(self.data_source), generator=generator).tolist())


class WrappedCollate:
    """Checks samples, applies functions, and collates as the wrapped loader does.

    If the wrapped loader collates with PyG's or torch's default function, the functions are applied to the batch. If it
    has another collate function, they are applied to each sample before, which keeps its class.
    """

    def __init__(self, collate: Any, check: Callable[[Any], Data], functions: Sequence[Callable[[Any], Any]]) -> None:
        self.collate = collate
        self.check = check
        self.functions = list(functions)
        self.joins = type(collate) is Collater or collate is default_collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Returns the batch of the wrapped loader, with the functions applied."""
        if not self.joins:
            return self.collate([self._apply_to_sample(sample) for sample in samples])
        follow = dict.fromkeys(["coeffs", *(getattr(self.collate, "follow_batch", None) or ())])
        batch = self._apply(join_samples([self.check(sample) for sample in samples], list(follow)))
        # removed last: the functions may need them
        for name in set(getattr(self.collate, "exclude_keys", None) or ()).intersection(batch.keys()):
            del batch[name]
        return batch

    def _apply(self, data: Any) -> Any:
        return functools.reduce(lambda found, function: function(found), self.functions, data)

    def _apply_to_sample(self, sample: Any) -> Any:
        data = self.check(sample)
        changed = self._apply(data)
        if isinstance(sample, Data):
            return changed
        out = copy.copy(sample)
        for name in changed.keys():
            if name not in data or changed[name] is not data[name]:
                setattr(out, name, changed[name])
        return out


def wrap_loader(
    loader: DataLoader, *functions: Callable[[Any], Any], check: Callable[[Any], Data] = convert_to_data
) -> DataLoader:
    """Returns a shallow copy of a loader that applies functions to each batch, in this order; see `WrappedCollate`."""
    collate = WrappedCollate(loader.collate_fn, check, functions)
    if isinstance(inner := loader.collate_fn, WrappedCollate):
        collate = WrappedCollate(inner.collate, inner.check, [*inner.functions, *functions])
    cls = type(loader)

    # For several processes Lightning makes a loader of the same class and arguments with another sampler. PyG's loader
    # ignores a collate function that it is given: so the class of the copy sets it.
    @functools.wraps(cls.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        self.collate_fn = collate

    wrapped = copy.copy(loader)
    wrapped.__class__ = type(cls.__name__, (cls,), {"__init__": init, "__module__": cls.__module__})
    wrapped.collate_fn = collate
    wrapped._iterator = None  # persistent workers of the original are not shared
    return wrapped
