"""The settings of data loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.utils.data import DataLoader, default_collate
from torch_geometric.loader.dataloader import Collater

from ofdft_norm.data.transformed_dataset import JoinSamples
from ofdft_norm.data.worker_notes import NamingDataLoader
from ofdft_norm.settings import NonNegativeInt, PositiveInt, Settings

# Of a loader, besides its batches: how samples are read. All are arguments of torch's DataLoader and its attributes.
_READING = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)


class LoaderConfig(Settings):
    """PyG's DataLoader for each split.

    Attributes:
        batch_size: Samples in a batch, on each rank.
        num_workers: Worker processes.
        pin_memory: Copy batches to page-locked memory, for GPUs.
        persistent_workers: Keep workers alive between epochs.
        prefetch_factor: Batches that each worker reads ahead; None: torch's 2.
        in_order: Whether batches come in the sampler's order; False: as workers finish them, so that none waits for a
            slow one, and runs cannot be repeated.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``; None: the platform's default.
        shuffle: Whether the training split is shuffled.
    """

    batch_size: PositiveInt = 32
    num_workers: NonNegativeInt = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    prefetch_factor: PositiveInt | None = None
    in_order: bool = True
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    shuffle: bool = True
    config_key = "data.loader"

    def keywords(self) -> dict[str, Any]:
        """Returns the arguments for PyG's DataLoader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
            "prefetch_factor": self.prefetch_factor if self.num_workers > 0 else None,
            "in_order": self.in_order or self.num_workers == 0,
            "multiprocessing_context": self.multiprocessing_context if self.num_workers > 0 else None,
        }

    def changes(self) -> dict[str, Any]:
        """Returns the settings that are not the defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


def loader_like(
    theirs: DataLoader, dataset: Any, changes: Mapping[str, Any], follow_batch: Sequence[str] = ()
) -> DataLoader:
    """Returns a loader over another data set that does as somebody's loader does.

    Batch size, sampler or batch sampler, `drop_last`, workers and collation are theirs; PyG's collation is done by
    `JoinSamples`, with its fields to follow and to exclude, any other gets the samples one by one.

    Args:
        theirs: Their loader.
        dataset: What to read instead: as long as theirs, sample by sample.
        changes: Settings of `LoaderConfig` that win over theirs.
        follow_batch: Fields that get a field ``<name>_batch``.

    Returns:
        The loader.
    """
    arguments: dict[str, Any] = {name: getattr(theirs, name, None) for name in _READING}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    arguments |= {name: value for name, value in changes.items() if name not in ("batch_size", "shuffle")}
    if arguments.get("num_workers", 0) == 0:  # torch refuses the others without workers
        arguments = {k: v for k, v in arguments.items() if k in ("num_workers", "pin_memory", "generator")}
    batch_sampler = theirs.batch_sampler if theirs.batch_size is None else None
    if batch_sampler is not None and not {"batch_size", "shuffle"} & set(changes):
        arguments["batch_sampler"] = batch_sampler
    else:
        sampler = theirs.sampler if batch_sampler is None else getattr(batch_sampler, "sampler", None)
        arguments["sampler"] = sampler if changes.get("shuffle", True) else None
        arguments["batch_size"] = changes.get("batch_size", theirs.batch_size or 1)
        arguments["drop_last"] = theirs.drop_last
    collate = theirs.collate_fn
    if isinstance(collate, Collater) or collate is default_collate:
        follow = dict.fromkeys([*follow_batch, *(getattr(collate, "follow_batch", None) or ())])
        collate = JoinSamples(list(follow), getattr(collate, "exclude_keys", None) or ())
    else:
        collate = CollateOneByOne(collate)
    return NamingDataLoader(dataset, collate_fn=collate, **arguments)


class CollateOneByOne:
    """Gives somebody's `collate_fn` a list of samples, as it expects.

    Args:
        collate_fn: Theirs.
    """

    def __init__(self, collate_fn: Any) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Returns what theirs returns."""
        return self.collate_fn(list(samples))
