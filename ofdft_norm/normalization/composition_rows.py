"""Compositions and targets of a data set, batch by batch: the only part of its samples that a reference fit reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch_geometric.data import Data

from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.normalization.composition_fit import composition_counts
from ofdft_norm.statistics.sample_weighers import SampleWeigher

Row = tuple[int, Tensor, list[float], float]

Rows = tuple[Tensor, Tensor, Tensor, Tensor]

CACHE_BYTES = 64 * 2**20


class CompositionItems(Dataset[Row]):
    """Cuts each sample down to its index, atomic numbers, targets and weight, inside the loader's workers.

    PyG's own collation would carry every field of every sample, and turn targets that are Python floats into float32.

    Args:
        dataset: Samples: `Data` objects, or mappings.
        targets: Names of the targets.
        atomic_numbers_field: Field of the atomic numbers; where a sample lacks it, ``z`` is used.
        weights: A field with each sample's weight, or a weigher; None: 1 each. Samples whose `has_energy_label` is
            false weigh nothing in either case.
    """

    def __init__(
        self,
        dataset: Any,
        targets: Sequence[str],
        atomic_numbers_field: str = "atomic_numbers",
        weights: str | SampleWeigher | None = None,
    ) -> None:
        self.dataset = dataset
        self.targets = list(targets)
        self.atomic_numbers_field = atomic_numbers_field
        self.weights = weights

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        item = self.dataset[index]
        numbers = item.get(self.atomic_numbers_field)
        numbers = item.get("z") if numbers is None else numbers
        if numbers is None:
            raise BatchError(
                f"sample {index} lacks the field {self.atomic_numbers_field!r} (or 'z'), the atomic numbers; it has "
                f"{sorted(item.keys())} (config: data.reference.fit.atomic_numbers_field)"
            )
        targets = [_number(item.get(name), name, index, item) for name in self.targets]
        numbers = (
            numbers if isinstance(numbers, Tensor) and numbers.ndim else torch.atleast_1d(torch.as_tensor(numbers))
        )
        return index, numbers, targets, self._weight(item, index)

    def _weight(self, item: Any, index: int) -> float:
        labelled = item.get("has_energy_label")
        if labelled is not None and not bool(labelled):
            return 0.0
        if self.weights is None:
            return 1.0
        if isinstance(self.weights, str):
            weight = _number(item.get(self.weights), self.weights, index, item, "weights")
        else:
            weight = float(self.weights.get_weights(item).reshape(-1)[0])
        if not 0 <= weight < float("inf"):
            raise StatisticsError(
                f"sample {index} has the weight {weight}; weights must be finite and >= 0 "
                "(config: data.reference.fit.weights)"
            )
        return weight


def _number(value: Any, name: str, index: int, item: Any, key: str = "targets") -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, int | float) or (isinstance(value, np.ndarray | np.generic) and value.size == 1):
        return float(value if isinstance(value, int | float) else value.item())
    if value is None:
        what = f"lacks the field {name!r}; it has {sorted(item.keys())}"
    else:
        shape = tuple(getattr(value, "shape", ()))
        what = f"has in the field {name!r} a {type(value).__name__} of shape {shape}, expected one number"
    raise BatchError(f"sample {index} {what} (config: data.reference.fit.{key})")


def collate_rows(rows: Sequence[Row]) -> Data:
    """Joins rows into a batch.

    Returns:
        Its `index` (S,), `targets` (S, T) and `weights` (S,), the atoms' `numbers`, and `ptr` (S + 1,).
    """
    index, numbers, targets, weights = zip(*rows, strict=True)
    return Data(
        index=torch.tensor(index),
        numbers=torch.cat(numbers).reshape(-1).long(),
        targets=torch.tensor(targets, dtype=torch.float64),
        weights=torch.tensor(weights, dtype=torch.float64),
        ptr=torch.tensor([0, *accumulate(map(len, numbers))]),
    )


class FixedOrder(Sampler[int]):
    """Visits given indices in the order given.

    Args:
        indices: (n,) int64.
    """

    def __init__(self, indices: Tensor) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        for chunk in self.indices.split(65536):
            yield from chunk.tolist()


def row_loader(items: CompositionItems, indices: Tensor, batch_size: int, num_workers: int, seed: int) -> DataLoader:
    """Returns a loader over the given samples; the global random state is left alone."""
    return DataLoader(
        items,
        batch_size=batch_size,
        sampler=FixedOrder(indices),
        num_workers=num_workers,
        collate_fn=collate_rows,
        generator=torch.Generator().manual_seed(seed),
    )


def checked_rows(batches: Sequence[Data], targets: Sequence[str], max_num_elements: int) -> Rows:
    """Turns batches into counts (S, largest atomic number + 1), targets (S, T), weights (S,) and indices (S,).

    Samples of weight 0 are left out, whatever they hold.

    Raises:
        StatisticsError: If a target is not finite, or an atomic number is outside 1 ... max_num_elements.
    """
    # numpy: torch starts its threads for each of these small steps, which costs more than the steps
    names = ("numbers", "targets", "weights", "index")
    numbers, values, weights, index = (np.concatenate([batch[name].numpy() for batch in batches]) for name in names)
    lengths = np.concatenate([np.diff(batch.ptr.numpy()) for batch in batches])
    if not (weights > 0).all():
        used = weights > 0
        numbers, lengths = numbers[np.repeat(used, lengths)], lengths[used]
        values, weights, index = values[used], weights[used], index[used]
    molecule = np.repeat(np.arange(len(lengths)), lengths)
    if len(numbers) and not (numbers.min() >= 1 and numbers.max() <= max_num_elements):
        atom = int(np.flatnonzero((numbers < 1) | (numbers > max_num_elements))[0])
        raise StatisticsError(
            f"sample {index[molecule[atom]]} has the atomic number {numbers[atom]}; expected 1 ... "
            f"{max_num_elements} (config: data.reference.fit.max_num_elements)"
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise StatisticsError(
            f"sample {index[row]} has the target {targets[column]!r} = {values[row, column]}, expected a "
            "finite number: repair the label, leave the sample out, or give it weight 0 "
            "(config: data.reference.fit.weights)"
        )
    counts = composition_counts(numbers, molecule, len(index))
    return torch.from_numpy(counts), torch.from_numpy(values), torch.from_numpy(weights), torch.from_numpy(index)


def no_rows(n_targets: int) -> Rows:
    """Returns rows of no sample, as `checked_rows` would."""
    nothing = torch.zeros(0, dtype=torch.float64)
    index = torch.zeros(0, dtype=torch.int64)
    return index.reshape(0, 1), nothing.reshape(0, n_targets), nothing, index


class RowCache:
    """Remembers rows compactly, up to a limit, so that small data sets need not be read a second time.

    Args:
        limit: Bytes after which everything is forgotten, and nothing is remembered any more.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.overflown = False
        self._size = 0
        self._blocks: list[tuple[npt.NDArray[Any], ...]] = []

    def add(self, counts: Tensor, targets: Tensor, weights: Tensor, index: Tensor) -> None:
        """Remembers rows; arguments as `checked_rows` returns them."""
        if self.overflown:
            return
        n_atoms = counts.numpy()
        columns = np.append(np.flatnonzero(n_atoms.any(0)), counts.shape[1] - 1)  # the last one holds the width
        block = (n_atoms[:, columns].astype(np.int32), columns, targets.numpy(), weights.numpy(), index.numpy())
        self._blocks.append(block)
        self._size += sum(part.nbytes for part in block)
        if self._size > self.limit:
            self.overflown = True
            self._blocks = []

    def __iter__(self) -> Iterator[Rows]:
        for counts, columns, *others in self._blocks:
            full = np.zeros((len(counts), columns[-1] + 1), dtype=np.int64)
            full[:, columns] = counts
            targets, weights, index = map(torch.from_numpy, others)
            yield torch.from_numpy(full), targets, weights, index
