"""The order of training samples in one process: Lightning's own of several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized

import torch
from torch.utils.data import RandomSampler


class EpochSampler(RandomSampler):
    """Draws the permutation that `torch.utils.data.DistributedSampler` draws, from the seed and the epoch.

    A run that is killed and resumed goes on with the order that it would have had, and one process sees the global
    batches of several. Lightning sets the epoch; in a plain loop every pass is the next one. Being a `RandomSampler`,
    it is replaced by Lightning's distributed sampler where there are several processes.

    Args:
        data_source: The data set.
        seed: By default ``PL_GLOBAL_SEED``, which `lightning.seed_everything` sets, or 0: Lightning's rule.

    Example:
        >>> sampler = EpochSampler(range(4), seed=1)
        >>> first, second = list(sampler), list(sampler)
        >>> sampler.set_epoch(0)
        >>> list(sampler) == first, sorted(second)
        (True, [0, 1, 2, 3])
    """

    def __init__(self, data_source: Sized, seed: int | None = None) -> None:
        super().__init__(data_source)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._next_epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass.

        Args:
            epoch: Number of the epoch, from which the order follows.
        """
        self._next_epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed + self._next_epoch)
        self._next_epoch += 1
        return iter(torch.randperm(len(self.data_source), generator=generator).tolist())
