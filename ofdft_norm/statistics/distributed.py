"""What a fit needs of torch.distributed: who am I, and has anybody failed."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torchmetrics import Metric

from ofdft_norm.errors import OFDFTNormError, StatisticsError

DEFAULT_MINUTES = 30.0
"""Ranks of a fit wait so long for one another, unless a configuration says otherwise."""

_minutes: ContextVar[float] = ContextVar("minutes", default=DEFAULT_MINUTES)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: Index of this process.
        world_size: Number of processes.
        group: Process group whose collectives take CPU tensors; None for a single process.
        minutes: How long ranks wait for one another.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None
    minutes: float = DEFAULT_MINUTES

    def shard(self, n: int) -> range:
        """Returns this rank's indices among n: every index on one rank, none twice, none padded.

        Args:
            n: Number of indices.
        """
        return range(self.rank, n, self.world_size)

    def meet(self) -> None:
        """Waits until all ranks are here.

        Raises:
            StatisticsError: If some do not come in time, or their processes have ended; on rank 0 with their numbers.
        """
        if self.group is None:
            return
        began = time.monotonic()
        try:
            dist.monitored_barrier(self.group, timedelta(minutes=self.minutes), wait_all_ranks=True)
        except RuntimeError as error:
            missed = re.search(r"Ranks? ([\d, ]+) failed", str(error))
            if self.rank == 0 and time.monotonic() - began < 0.9 * 60 * self.minutes:  # a connection was closed
                raise StatisticsError(
                    f"the process of {f'rank {missed[1]}' if missed else 'another rank'} ended while all ranks fit "
                    "together: what it printed last says why; one that the system kills, as where memory runs out, "
                    "prints nothing"
                ) from error
            who = f"rank {missed[1]} did" if missed else "rank 0 did not answer, or says itself which rank did"
            raise StatisticsError(
                f"{who} not answer within {self.minutes:g} minutes while all ranks fit together: see whether its "
                "process has ended or hangs, or allow more time (config: data.statistics.rank_timeout)"
            ) from error

    def gathered(self, value: Any) -> list[Any]:
        """Returns every rank's value, in the order of ranks; a collective that all ranks must reach.

        Args:
            value: Anything that can be pickled.
        """
        values: list[Any] = [value] * self.world_size
        if self.group is not None:
            self.meet()
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
        self.meet()
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

        Args:
            arrays: Arrays by name, of the same shapes on all ranks.
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
    return Ranks(dist.get_rank(), dist.get_world_size(), _own_group(dist.group.WORLD), _minutes.get())


@contextmanager
def waiting_at_most(minutes: float) -> Iterator[None]:
    """Lets `current_ranks` return ranks that wait so long for one another.

    Args:
        minutes: How long.
    """
    before = _minutes.set(minutes)
    try:
        yield
    finally:
        _minutes.reset(before)


def computed(metric: Metric) -> Any:
    """Returns what a metric has found over all ranks; a rank whose share is empty has nothing to warn of.

    Args:
        metric: A metric of torchmetrics.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before", UserWarning)
        return metric.compute()


@lru_cache(maxsize=1)
def _own_group(world: Any) -> Any:
    """Returns a gloo group beside the default one, made once: it takes CPU tensors, and waits as long as a fit may."""
    return dist.new_group(backend="gloo", timeout=timedelta(minutes=_minutes.get()))
