"""Processes of a joint fit (torch.distributed): their shares, errors and results."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist

from ofdft_norm.errors import OFDFTNormError, StatisticsError

Value = TypeVar("Value")

DEFAULT_MINUTES = 30.0


@dataclass(frozen=True)
class Ranks:
    """This process and its group; all methods are collectives: every rank must call them."""

    rank: int = 0
    world_size: int = 1
    group: Any = None  # process group for CPU tensors; None for a single process
    minutes: float = DEFAULT_MINUTES  # time that ranks wait for one another

    def gather(self, value: Value) -> list[Value]:
        """Returns the values of all ranks, in the order of ranks; raises if a rank does not come in time."""
        values = [value] * self.world_size
        if self.group is None:
            return values
        try:
            dist.monitored_barrier(self.group, timedelta(minutes=self.minutes), wait_all_ranks=True)
        except RuntimeError as error:
            what = f"not all ranks answered within {self.minutes:g} minutes while they fitted statistics together"
            hint = "check whether a process has ended or hangs, or allow more time"
            raise StatisticsError(f"{what} ({error}): {hint} (config: data.statistics.rank_timeout)") from error
        dist.all_gather_object(values, value, group=self.group)
        return values

    @contextmanager
    def exchange(self) -> Iterator[list[Any]]:
        """Makes an error that one rank raises inside of the block an error on all ranks, at the end of the block.

        Yields a list: a value that the block appends is replaced by the values of all ranks, in their order.
        """
        error: Exception | None = None
        values: list[Any] = []
        try:
            yield values
        except Exception as caught:
            error = caught
        found = self.gather((None if error is None else (type(error).__name__, str(error)), list(values)))
        if error is not None:
            raise error
        values[:] = [value for _, of_rank in found for value in of_rank]
        for rank, (message, _) in enumerate(found):
            if message is not None:
                kinds = {kind.__name__: kind for kind in OFDFTNormError.__subclasses__()}
                raise kinds.get(message[0], StatisticsError)(f"{message[1]} (raised on rank {rank})")


def find_ranks(minutes: float = DEFAULT_MINUTES) -> Ranks:
    """Returns this process's place in the default process group; without a group, that of a single process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size(), _find_group(minutes), minutes)


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Makes torch use one thread: threads gain little on small batches, and sums depend on their number."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


# torch keeps the groups until the default group is destroyed; gloo may abort a process that keeps them longer
_groups: WeakValueDictionary[tuple[int, float], Any] = WeakValueDictionary()


def _find_group(minutes: float) -> Any:
    """Returns a second group with gloo, made once: it accepts CPU tensors and has the timeout of a fit."""
    key = id(dist.group.WORLD), minutes
    group = _groups.get(key)
    if group is None:
        group = _groups[key] = dist.new_group(backend="gloo", timeout=timedelta(minutes=minutes))
    return group
