"""Where a fit's batches come from: whole molecules of a label data set, any data set in order, or a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import IterableDataset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.loader.dataloader import Collater

from ofdft_norm.data.lazy_batch import lazy_batch, parts
from ofdft_norm.data.of_data import join_batches, n_molecules
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.molecule_keys import MOLECULE_KEY

T = TypeVar("T")

MOLECULES_PER_BATCH = 32
SAMPLES_PER_BATCH = 128
# 8 MB for each float64 field: nine hundred molecules of the size of QM9's
COEFFICIENTS_PER_BUNDLE = 2**20


@dataclass(frozen=True)
class BatchSource:
    """A pass over this rank's share of a data set, which can be made several times.

    Attributes:
        batches: Starts a pass.
        n_rounds: Number of batches of the rank that has most, where known: ranks agree after each on going on.
        n_samples: Number of samples of this rank, where known.
        whole_molecules: Whether each batch holds whole molecules.
        sharded: Whether the ranks' shares are disjoint, so that their states are to be merged.
        repeatable: Whether a second pass gives the samples again.
    """

    batches: Callable[[], Iterator[Data]]
    n_rounds: int | None
    n_samples: int | None
    whole_molecules: bool
    sharded: bool
    repeatable: bool = True


def batch_source(dataset: Any, ranks: Ranks, n_batches: int | None = None) -> BatchSource:
    """Chooses how to read a data set or loader.

    Args:
        dataset: An `OFDataset` (anything with `molecule_batch`, `n_molecules` and `sample_offsets`), a data set of
            samples, or an iterable of batches.
        ranks: This process among its peers.
        n_batches: Use only the first batches.

    Raises:
        StatisticsError: If the data set is empty.
    """
    if hasattr(dataset, "molecule_batch"):
        return _molecule_source(dataset, ranks, n_batches)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return _sample_source(dataset, ranks, n_batches)
    batches = partial(_unjoined, dataset) if _only_joins(dataset) else partial(iter, dataset)
    return BatchSource(
        lambda: islice(batches(), n_batches),
        n_rounds=None,
        n_samples=_n_samples(dataset, n_batches),
        whole_molecules=False,
        sharded=False,
        repeatable=not hasattr(dataset, "__next__"),
    )


def _only_joins(loader: Any) -> bool:
    """Whether a loader does nothing but join samples, in this process."""
    return (
        type(loader) is DataLoader
        and type(loader.collate_fn) is Collater
        and not loader.exclude_keys
        and loader.num_workers == 0
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


def _unjoined(loader: DataLoader) -> Iterator[Data]:
    """Gives the same batches as such a loader, of which only those fields are joined that the fit asks for."""
    dataset = loader.dataset
    read = getattr(dataset, "__getitems__", lambda indices: [dataset[i] for i in indices])
    for indices in loader.batch_sampler:
        yield lazy_batch(read(indices))


def _n_samples(loader: Any, n_batches: int | None) -> int | None:
    """Returns how many samples a loader of samples will give, where it tells."""
    try:
        return len(loader.dataset) if n_batches is None else None
    except (AttributeError, TypeError):
        return None


def _refuse_empty(n: int) -> None:
    if n == 0:
        raise StatisticsError("the training split is empty: there is nothing to fit (config: data.split)")


def _molecule_source(dataset: Any, ranks: Ranks, n_batches: int | None) -> BatchSource:
    n = dataset.n_molecules if n_batches is None else min(dataset.n_molecules, n_batches * MOLECULES_PER_BATCH)
    _refuse_empty(n)
    shard = ranks.shard(n)

    def batches() -> Iterator[Data]:
        for start in range(0, len(shard), MOLECULES_PER_BATCH):
            molecules = shard[start : start + MOLECULES_PER_BATCH]
            batches = [dataset.molecule_batch(m) for m in molecules]
            joined = join_batches(batches)
            # tells molecules apart even where two files hold the same geometry
            n_samples = torch.tensor([n_molecules(batch) for batch in batches])
            joined[MOLECULE_KEY] = torch.tensor(list(molecules)).repeat_interleave(n_samples)
            yield joined

    offsets = dataset.sample_offsets
    n_samples = sum(int(offsets[m + 1] - offsets[m]) for m in shard)
    n_rounds = -(-ranks.longest_shard(n) // MOLECULES_PER_BATCH)
    return BatchSource(batches, n_rounds, n_samples, True, ranks.world_size > 1)


def _sample_source(dataset: Any, ranks: Ranks, n_batches: int | None) -> BatchSource:
    n = len(dataset) if n_batches is None else min(len(dataset), n_batches * SAMPLES_PER_BATCH)
    _refuse_empty(n)
    shard = ranks.shard(n)

    def batches() -> Iterator[Data]:
        for first in range(0, len(shard), SAMPLES_PER_BATCH):
            yield lazy_batch([dataset[i] for i in shard[first : first + SAMPLES_PER_BATCH]])

    n_rounds = -(-ranks.longest_shard(n) // SAMPLES_PER_BATCH)
    return BatchSource(batches, n_rounds, len(shard), False, ranks.world_size > 1)


def for_each_batch(source: BatchSource, ranks: Ranks, action: Callable[[Data], None]) -> int:
    """Runs an action on every batch; if it fails on one rank, all ranks stop within one batch.

    Returns:
        The number of batches this rank has seen.
    """
    n_seen, rounds = 0, 0
    with torch.no_grad(), single_threaded():
        batches = iter(source.batches())
        while source.n_rounds is None or rounds < source.n_rounds:
            rounds += 1
            error: Exception | None = None
            batch = None
            try:
                batch = next(batches, None)
                if batch is not None:
                    action(batch)
                    n_seen += 1
            except Exception as caught:
                error = caught
            if source.sharded:
                ranks.raise_together(error)
            elif error is not None:
                raise error
            if batch is None and not source.sharded:
                break
    return n_seen


def for_each_bundle(
    source: BatchSource, cut: Callable[..., T], take: Callable[[T], None], loaded: Callable[[Data], None]
) -> int:
    """Reduces bundles of batches in a thread of its own, while the next batches are loaded and cut.

    Python runs one thread at a time, torch's operations run beside it. So that thread gets many samples at once: few
    long operations, not many short ones.

    Args:
        source: Of one process.
        cut: Makes of a bundle's batches what `take` takes in, in the calling thread.
        take: Gets one bundle after the other, in order.
        loaded: Called for each batch in the calling thread.

    Returns:
        The number of batches.
    """
    n_batches = 0
    with torch.no_grad(), single_threaded(), ThreadPoolExecutor(1, initializer=_prepare_thread) as worker:
        running: Future[None] | None = None
        for bundle in _bundles(source.batches(), loaded):
            n_batches += len(bundle)
            ready = cut(*bundle)
            if running is not None:
                running.result()
            running = worker.submit(take, ready)
        if running is not None:
            running.result()
    return n_batches


def _prepare_thread() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)


def _bundles(batches: Iterator[Data], loaded: Callable[[Data], None]) -> Iterator[list[Data]]:
    bundle: list[Data] = []
    size = 0
    for batch in batches:
        bundle.append(batch)
        has_coeffs = "coeffs" in batch  # their lack is refused at once
        size += sum(p.shape[0] for p in parts(batch, "coeffs")) if has_coeffs else COEFFICIENTS_PER_BUNDLE
        loaded(batch)
        if size >= COEFFICIENTS_PER_BUNDLE:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


@contextmanager
def single_threaded() -> Iterator[None]:
    """Makes torch use one thread, as a context or a decorator.

    Batches are small: threads that meet in every operation gain little, and lose tenfold where other work keeps the
    cores busy. And sums come out the same whatever the number of threads.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
