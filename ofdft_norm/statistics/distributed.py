"""What a fit needs of torch.distributed: who am I, and has anybody failed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torchmetrics import Metric

from ofdft_norm.errors import OFDFTNormError, StatisticsError


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: Index of this process.
        world_size: Number of processes.
        group: Process group whose collectives take CPU tensors; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    def shard(self, n: int) -> range:
        """Returns this rank's indices among n: every index on one rank, none twice, none padded."""
        return range(self.rank, n, self.world_size)

    def gathered(self, value: Any) -> list[Any]:
        """Returns every rank's value, in the order of ranks; a collective that all ranks must reach."""
        values: list[Any] = [value] * self.world_size
        if self.group is not None:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def raise_together(self, error: Exception | None) -> None:
        """Raises on every rank if any rank has an error; a collective that all ranks must reach.

        Args:
            error: This rank's error, if any.

        Raises:
            Exception: This rank's own error, or one of the same kind (of this package) with another rank's message.
        """
        if self.group is None:
            if error is not None:
                raise error
            return
        failed = torch.tensor([float(error is not None)])
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=self.group)
        if not failed.item():
            return
        messages = self.gathered(None if error is None else (type(error).__name__, str(error)))
        if error is not None:
            raise error
        rank, (kind, text) = next((r, m) for r, m in enumerate(messages) if m is not None)
        kinds = {k.__name__: k for k in OFDFTNormError.__subclasses__()}
        raise kinds.get(kind, StatisticsError)(f"{text} (met by rank {rank})")

    def take_from_first(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Overwrites named arrays in place by rank 0's, so that all ranks hold the same bits.

        Ranks that merge the same states on processors of one kind have them already; a cluster of several kinds has
        several kinds of rounding.
        """
        if self.group is None:
            return
        joined = torch.from_numpy(np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays.values()]))
        dist.broadcast(joined, src=0, group=self.group)
        parts = joined.numpy()
        for array in arrays.values():
            array[...] = parts[: array.size].reshape(array.shape)
            parts = parts[array.size :]


def current_ranks() -> Ranks:
    """Returns this process's place in the default process group, or that of a single process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size(), _cpu_group(dist.group.WORLD))


def computed(metric: Metric) -> Any:
    """Returns what a metric has found over all ranks; a rank whose share is empty has nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before", UserWarning)
        return metric.compute()


@lru_cache(maxsize=1)
def _cpu_group(world: Any) -> Any:
    """Returns the default group if it takes CPU tensors, else a gloo group beside it, made once for each default."""
    return world if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
