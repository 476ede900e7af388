"""Where a fit's batches come from: label files, molecule by molecule; any data set of samples; or a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch, Data

from ofdft_norm.data.of_data import OFData, as_data, field_names, get_field, n_molecules, only_name, samples_at
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics.distributed import Ranks

MOLECULES_PER_BATCH = 32
SAMPLES_PER_BATCH = 512

# Fields that the fit adds: the index of each sample's molecule, and that of each sample, in its data set.
MOLECULE_INDEX = "molecule_index"
SAMPLE_INDEX = "sample_index"


@dataclass(frozen=True)
class FitFields:
    """The fields of samples that a fit reads.

    Attributes:
        names: Fields that are joined; None: all of them, by PyG's own rules.
        numbers: Those of them with one number for each sample, which may be of any type, read as float64.
        atomic_numbers: Field of the atomic numbers, which tells how many atoms a sample has; where a sample lacks it,
            PyG's ``z`` is used.
        config_keys: For messages: the configuration key (or argument) that names a field.
    """

    names: tuple[str, ...] | None
    numbers: tuple[str, ...] = ()
    atomic_numbers: str = "atomic_numbers"
    config_keys: dict[str, str] | None = None

    def where(self, name: str) -> str:
        """Returns what to change where a field is missing.

        Args:
            name: Name of the field.
        """
        return (self.config_keys or {}).get(name, "config: data.pre_transforms, data.source")


@dataclass(frozen=True)
class BatchSource:
    """Passes over this rank's share of a data set.

    Attributes:
        batches: Starts a pass.
        n_samples: Number of samples of this rank, where known.
        whole_molecules: Whether each batch holds all samples of its molecules.
        sharded: Whether the ranks' shares are disjoint, so that their results are to be merged.
    """

    batches: Callable[[], Iterator[Data]]
    n_samples: int | None
    whole_molecules: bool
    sharded: bool


def batch_source(dataset: Any, ranks: Ranks, fields: FitFields, n_batches: int | None = None) -> BatchSource:
    """Chooses how to read a data set or loader.

    Args:
        dataset: An `OFDataset` (anything with `batch`, `n_molecules` and `sample_offsets`), a data set of samples, or
            an iterable of batches.
        ranks: This process among its peers.
        fields: What is read of the samples of a data set; a loader's batches are taken as they come.
        n_batches: Use only the first batches.

    Raises:
        StatisticsError: If the data set is empty.
    """
    if hasattr(dataset, "sample_offsets"):
        return _molecule_source(dataset, ranks, fields, n_batches)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        n = len(dataset) if n_batches is None else min(len(dataset), n_batches * SAMPLES_PER_BATCH)
        _refuse_empty(n)
        return sample_source(dataset, ranks, fields, range(n), SAMPLES_PER_BATCH)
    n_known = len(dataset.dataset) if n_batches is None and hasattr(dataset, "dataset") else None
    return BatchSource(lambda: _numbered(islice(iter(dataset), n_batches)), n_known, False, False)


def _numbered(batches: Iterator[Data]) -> Iterator[Data]:
    """Numbers the samples of a loader's batches as they come."""
    first = 0
    for batch in batches:
        numbered = copy(batch)
        last = first + n_molecules(batch)
        numbered[SAMPLE_INDEX] = torch.arange(first, last)
        first = last
        yield numbered


def _refuse_empty(n: int) -> None:
    if n == 0:
        raise StatisticsError("the training split is empty: there is nothing to fit (config: data.split)")


def _molecule_source(dataset: Any, ranks: Ranks, fields: FitFields, n_batches: int | None) -> BatchSource:
    n = dataset.n_molecules if n_batches is None else min(dataset.n_molecules, n_batches * MOLECULES_PER_BATCH)
    _refuse_empty(n)
    shard, offsets = np.arange(n)[ranks.rank :: ranks.world_size], dataset.sample_offsets
    first, n_samples = offsets[shard], np.diff(offsets)[shard]

    def batches() -> Iterator[Data]:
        for start in range(0, len(shard), MOLECULES_PER_BATCH):
            own = slice(start, start + MOLECULES_PER_BATCH)
            ends = np.cumsum(n_samples[own])
            samples = np.arange(ends[-1]) + np.repeat(first[own] - ends + n_samples[own], n_samples[own])
            batch = dataset.batch(samples, fields.names)
            # two files of one geometry and name are two molecules
            batch[MOLECULE_INDEX] = torch.from_numpy(np.repeat(shard[own], n_samples[own]))
            yield batch

    return BatchSource(batches, int(n_samples.sum()), True, ranks.world_size > 1)


def sample_source(
    dataset: Any,
    ranks: Ranks,
    fields: FitFields,
    indices: Sequence[int],
    batch_size: int,
    num_workers: int = 0,
) -> BatchSource:
    """Returns passes over some samples of a data set, in a given order, shared out over the ranks.

    Args:
        dataset: Samples: `Data` objects, other objects with fields, or mappings.
        ranks: This process among its peers.
        fields: What is read of the samples.
        indices: Which samples, in which order.
        batch_size: Samples in a batch.
        num_workers: Worker processes that read.
    """
    share = indices[ranks.rank :: ranks.world_size]

    def batches() -> Iterator[Data]:
        return iter(
            DataLoader(
                _Numbered(dataset),
                batch_size,
                sampler=share,
                num_workers=num_workers,
                collate_fn=JoinFields(fields),
                generator=torch.Generator(),  # the global random state is left alone
            )
        )

    return BatchSource(batches, len(share), False, ranks.world_size > 1)


class _Numbered(Dataset[tuple[int, Any]]):
    """Gives each sample with its index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        return list(zip(indices, samples_at(self.dataset, indices), strict=True))


class JoinFields:
    """Joins the fields that a fit reads, and no others: PyG's collation carries every field of every sample.

    Args:
        fields: Which.
    """

    def __init__(self, fields: FitFields) -> None:
        self.fields = fields

    def __call__(self, items: Sequence[tuple[int, Any]]) -> Data:
        """Returns the batch, with `sample_index`, `ptr` and `batch`, and for `coeffs` their own."""
        indices, samples = zip(*items, strict=True)
        if self.fields.names is None:
            batch = Batch.from_data_list(list(map(as_data, samples)), follow_batch=["coeffs"])
            if get_field(batch, "ptr") is None:  # PyG counts nodes by few fields
                self._add_atoms(batch, indices, samples)
        else:
            # a dictionary answers several times sooner than PyG's sample does
            samples = tuple(sample.to_dict() if isinstance(sample, Data) else sample for sample in samples)
            batch = OFData()
            self._add_atoms(batch, indices, samples)
            for name in self.fields.names:
                self._add(batch, name, indices, samples)
        for name in self.fields.numbers:
            values = [self._number(name, *item) for item in zip(indices, samples, strict=True)]
            batch[name] = torch.tensor(values, dtype=torch.float64)
        batch[SAMPLE_INDEX] = torch.tensor(indices)
        return batch

    def _add_atoms(self, batch: Data, indices: Sequence[int], samples: Sequence[Any]) -> None:
        numbers = _values(samples, self.fields.atomic_numbers)
        for i, value in enumerate(numbers):
            if value is None:
                numbers[i] = value = get_field(samples[i], "z")
            if value is None:
                name = self.fields.atomic_numbers
                raise BatchError(
                    f"sample {indices[i]} lacks the field {name!r} (or 'z'), the atomic numbers; it has "
                    f"{field_names(samples[i])} ({self.fields.where(name)})"
                )
        vectors = _vectors(numbers)
        batch.atomic_numbers = torch.cat(vectors).reshape(-1).long()
        batch.ptr, batch.batch = _boundaries([n.numel() for n in vectors])

    def _add(self, batch: Data, name: str, indices: Sequence[int], samples: Sequence[Any]) -> None:
        values = _values(samples, name)
        lacking = [i for i, value in enumerate(values) if value is None]
        if len(lacking) == len(values):
            return
        if lacking:
            raise BatchError(
                f"sample {indices[lacking[0]]} (molecule {get_field(samples[lacking[0]], 'mol_id')!r}) lacks the field "
                f"{name!r}, which others have: give all samples the same fields ({self.fields.where(name)})"
            )
        if isinstance(values[0], str):
            batch[name] = values
            return
        vectors = _vectors(values)
        batch[name] = torch.cat(vectors)
        if name == "coeffs":
            batch.coeffs_ptr, batch.coeffs_batch = _boundaries([v.shape[0] for v in vectors])

    def _number(self, name: str, index: int, sample: Any) -> float:
        value = get_field(sample, name)
        if isinstance(value, Tensor) and value.numel() == 1:
            return float(value.item())
        if isinstance(value, int | float) or (isinstance(value, np.ndarray | np.generic) and value.size == 1):
            return float(value if isinstance(value, int | float) else value.item())
        if value is None:
            labelled = get_field(sample, "has_energy_label")
            if labelled is not None and not torch.as_tensor(labelled).any():
                return float("nan")  # nobody asks for it
            what = f"lacks the field {name!r}; it has {field_names(sample)}"
        else:
            shape = tuple(getattr(value, "shape", ()))
            what = f"has in the field {name!r} a {type(value).__name__} of shape {shape}, expected one number"
        raise BatchError(f"sample {index} {what} ({self.fields.where(name)})")


def _values(samples: Sequence[Any], name: str) -> list[Any]:
    """Returns a field of all samples, None where one lacks it."""
    values = [get_field(sample, name) for sample in samples]
    return [only_name(value) for value in values] if list in set(map(type, values)) else values


def _vectors(values: list[Any]) -> list[Tensor]:
    return [v if isinstance(v, Tensor) and v.ndim else torch.atleast_1d(torch.as_tensor(v)) for v in values]


def _boundaries(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Returns where each of several consecutive ranges begins and ends, and the range of every entry."""
    ptr = torch.tensor([0, *accumulate(lengths)])
    return ptr, torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
