"""Passes of a fit over label files or packs (molecule by molecule), any data set of samples, or a loader."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.loader.dataloader import Collater
from tqdm import tqdm

from ofdft_norm.data.dataset import MoleculeDataset
from ofdft_norm.data.sample import (
    collate_joined,
    convert_to_data,
    count_molecules,
    get_field,
    join_samples,
    list_fields,
    read_items,
    unwrap_name,
)
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.statistics.distributed import Ranks, use_one_thread
from ofdft_norm.statistics.weighers import SampleWeigher

IntArray = npt.NDArray[np.int64]
Value = TypeVar("Value")
Fields = Sequence[str] | None  # None: all

MOLECULES_PER_BATCH = 32
SAMPLES_PER_BATCH = 512
_MOST_SAMPLES = 2**24  # of one molecule: the number of a sample is molecule * _MOST_SAMPLES + SCF iteration


class SampleBatch:
    """S samples as a fit reads them: `indices` are their numbers, `molecules` those of their molecules, if known."""

    def __init__(self, data: Data, atomic_numbers: str, indices: IntArray, molecules: IntArray | None = None) -> None:
        numbers = _find_atomic_numbers(data, atomic_numbers, int(indices[0]))
        if numbers.device.type != "cpu":
            data, numbers = copy(data).cpu(), numbers.cpu()  # PyG moves a batch in place
        self.data, self.indices, self.n_samples, self._molecules = data, indices, len(indices), molecules
        self.atomic_numbers = numbers.numpy().astype(np.int64)
        index = get_field(data, "batch")
        if index is None and self.n_samples > 1:
            raise BatchError("the batch has no 'batch': give the samples 'pos', from which PyG counts atoms")
        self.sample_of_atom = np.zeros(len(numbers), dtype=np.int64) if index is None else index.numpy()

    def vector(self, name: str, one_number: bool = False) -> npt.NDArray[np.float64]:
        """Returns the flat values of a field, on request one for each sample; computes ``initial_guess_delta``."""
        if name == "initial_guess_delta":
            return self.vector("coeffs") - self.vector("ground_state_coeffs")
        values = torch.as_tensor(self._field(name)).detach().reshape(-1)
        if values.is_complex() or (one_number and len(values) != self.n_samples):
            found = f"{self.place(0)} and {self.n_samples - 1} others: field {name!r} has {len(values)} values of"
            expected = f"expected real numbers{', one for each sample' if one_number else ''}"
            raise BatchError(f"{found} {values.dtype}, {expected} (config: data.source)")
        return values.to(torch.float64).numpy()

    def texts(self, name: str) -> list[str]:
        """Returns the values of a field of texts or numbers, one for each sample."""
        value = self._field(name)
        value = value.reshape(-1).tolist() if isinstance(value, Tensor) else value
        return [value] if isinstance(value, str) else list(map(str, value))

    def _field(self, name: str) -> Any:
        value = get_field(self.data, name)
        if value is None:
            raise BatchError(f"{self.place(0)} lacks the field {name!r}, which the fit needs (config: data.source)")
        return value

    @cached_property
    def names(self) -> list[str]:
        """(S,) names of molecules; empty if there are none."""
        return [""] * self.n_samples if get_field(self.data, "mol_id") is None else self.texts("mol_id")

    @cached_property
    def iterations(self) -> IntArray:
        """(S,) SCF iterations; -1 where there are none."""
        iterations = get_field(self.data, "scf_iteration")
        return np.full(self.n_samples, -1) if iterations is None else iterations.reshape(-1).numpy()

    @cached_property
    def molecules(self) -> IntArray:
        """(S,) numbers of molecules, equal in all batches and processes: known ones, or hashes of name and geometry."""
        if self._molecules is not None:
            return self._molecules
        if get_field(self.data, "mol_id") is None:
            return -1 - self.indices  # hashes are not negative
        pos, numbers = get_field(self.data, "pos"), self.atomic_numbers[:, None].astype(np.float64)
        # + 0.0 turns -0.0 into 0.0
        table = numbers if pos is None else np.column_stack([numbers, pos.detach().to(torch.float64).numpy() + 0.0])
        ends = np.cumsum(np.bincount(self.sample_of_atom, minlength=self.n_samples))
        keys = []
        for name, atoms in zip(map(str.encode, self.names), np.split(table, ends[:-1]), strict=True):
            content = len(name).to_bytes(4, "little") + name + atoms.tobytes()
            keys.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1)
        return np.array(keys, dtype=np.int64)

    def place(self, sample: int) -> str:
        """Returns the name of a sample, for messages."""
        name, iteration = self.names[sample], self.iterations[sample]
        number = [f"sample {self.indices[sample]}"] if self._molecules is None else []
        words = ", ".join(number + ([f"SCF iteration {iteration}"] if iteration >= 0 else []))
        return f"molecule {name!r} ({words})" if name else words


def _find_atomic_numbers(data: Any, name: str, index: int) -> Tensor:
    numbers = get_field(data, name)
    numbers = get_field(data, "z") if numbers is None else numbers
    if numbers is None:
        what = f"sample {index} lacks the field {name!r} (or 'z'), the atomic numbers; it has {list_fields(data)}"
        raise BatchError(f"{what} (config: data.source.atomic_numbers_field)")
    return torch.as_tensor(numbers).reshape(-1)


@dataclass(frozen=True)
class Reader:
    """Passes over this rank's share of a data set."""

    # reads some fields (None: all), fields with one number of any type for each sample, and a field of atomic numbers
    read: Callable[[Fields, Sequence[str], str], Iterator[SampleBatch]]
    ranks: Ranks  # with disjoint shares; a single process if each rank reads everything
    n_items: int | None = None  # molecules or samples of the share, where known
    whole_molecules: bool = False  # in each batch
    atomic_numbers: str = "atomic_numbers"  # if a sample lacks it, ``z``
    progress: bool = False  # whether rank 0 shows a bar

    def for_each(
        self,
        action: Callable[[SampleBatch], None],
        result: Value,
        what: str,
        weighers: Sequence[SampleWeigher],
        fields: Sequence[str],
        numbers: Sequence[str] = (),
    ) -> list[Value]:
        """Makes one pass over the fields of weighers and some others; an error on one rank is an error on all ranks.

        Returns each rank's `result`, which `action` fills.
        """
        names: list[str] | None = ["mol_id", "scf_iteration", "has_energy_label", *fields]
        for weigher in weighers:
            own = getattr(weigher, "fields", None)  # other packages' weighers lack it
            names = None if names is None or own is None else [*names, *own]
        n_samples, unit = 0, " molecules" if self.whole_molecules else " samples"
        hidden = not self.progress or self.ranks.rank > 0
        bar = tqdm(total=self.n_items, desc=what, unit=unit, disable=hidden)
        with self.ranks.exchange() as of_ranks, torch.no_grad(), use_one_thread(), bar:
            for batch in self.read(names and list(dict.fromkeys(names)), numbers, self.atomic_numbers):
                action(batch)
                n_samples += batch.n_samples
                bar.update(len(np.unique(batch.molecules)) if self.whole_molecules else batch.n_samples)
            of_ranks.append((n_samples, result))
        if sum(n for n, _ in of_ranks) == 0:
            raise StatisticsError("the training split has no sample, or a loader of one pass (config: data.split)")
        return [value for _, value in of_ranks]


def make_reader(dataset: Any, ranks: Ranks, n_batches: int | None = None, **options: Any) -> Reader:
    """Returns the `Reader`, with some `options`, of a `MoleculeDataset`, a data set of samples, or a loader of batches.

    Data sets are divided among the ranks; loaders are read on every rank. `n_batches` limits the batches (of 32
    molecules, 512 samples, or the loader's own).
    """
    if isinstance(dataset, MoleculeDataset):
        n = dataset.n_molecules if n_batches is None else min(dataset.n_molecules, n_batches * MOLECULES_PER_BATCH)
        return _make_molecule_reader(dataset, ranks, n, **options)
    if isinstance(dataset, DataLoader) and dataset.batch_sampler is not None:
        collate = dataset.collate_fn
        if collate is collate_joined or type(collate) is Collater:  # the loader only joins samples
            # drawn once, as both passes need the same samples; sorted, as samples of a molecule lie together
            indices = sorted(i for batch in islice(dataset.batch_sampler, n_batches) for i in batch)
            return make_sample_reader(dataset.dataset, Ranks(), indices, workers=dataset.num_workers, **options)
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        n = len(dataset) if n_batches is None else min(len(dataset), n_batches * SAMPLES_PER_BATCH)
        return make_sample_reader(dataset, ranks, range(n), **options)

    def read(names: Fields, numbers: Sequence[str], atomic_numbers: str) -> Iterator[SampleBatch]:
        first = 0
        for data in islice(iter(dataset), n_batches):
            last = first + count_molecules(data)
            yield SampleBatch(data, atomic_numbers, np.arange(first, last))
            first = last

    return Reader(read, Ranks(), **options)


def _make_molecule_reader(dataset: MoleculeDataset, ranks: Ranks, n_used: int, **options: Any) -> Reader:
    # blocks of neighbouring molecules, which are read at once; every rank has as many, of equal size
    n_blocks = ranks.world_size * max(1, math.ceil(n_used / (ranks.world_size * MOLECULES_PER_BATCH)))
    own_blocks = np.array_split(np.arange(n_used), n_blocks)[ranks.rank :: ranks.world_size]
    blocks = [block for block in own_blocks if len(block)]

    def read(names: Fields, numbers: Sequence[str], atomic_numbers: str) -> Iterator[SampleBatch]:
        fields = None if names is None else (*names, *numbers, atomic_numbers)
        for own in blocks:
            data = dataset.molecules(own, fields)
            # the samples of a molecule are in the order of their iterations
            iterations, ids = data.scf_iteration.numpy(), data.mol_id
            ends = np.array([a != b for a, b in pairwise(ids)], dtype=bool) | (np.diff(iterations) <= 0)
            molecules = own[np.concatenate([[0], np.cumsum(ends)])]
            yield SampleBatch(data, atomic_numbers, molecules * _MOST_SAMPLES + iterations, molecules)

    return Reader(read, ranks, sum(map(len, blocks)), True, **options)


def make_sample_reader(
    dataset: Any, ranks: Ranks, indices: Sequence[int], size: int = SAMPLES_PER_BATCH, workers: int = 0, **options: Any
) -> Reader:
    """Returns passes over some samples of a data set, in the given order, shared out over the ranks."""
    share = list(indices[ranks.rank :: ranks.world_size])
    chunks = [share[first : first + size] for first in range(0, len(share), size)]

    def read(names: Fields, numbers: Sequence[str], atomic_numbers: str) -> Iterator[SampleBatch]:
        joined: Any = _JoinedSamples(dataset, names, numbers, atomic_numbers)
        found: Iterable[Data] = map(joined.__getitem__, chunks)
        if workers:  # its own generator does not change the global random state
            own: Any = {"num_workers": workers, "collate_fn": collate_joined, "generator": torch.Generator()}
            found = DataLoader(joined, None, sampler=chunks, **own)
        for data, chunk in zip(found, chunks, strict=True):
            yield SampleBatch(data, atomic_numbers, np.array(chunk, dtype=np.int64))

    return Reader(read, ranks, len(share), **options)


@dataclass(frozen=True)
class _JoinedSamples:
    """Batches of the fields that a fit reads; PyG, which joins all, would take four times as long."""

    dataset: Any
    names: Fields
    numbers: Sequence[str]
    atomic_numbers: str

    def __getitem__(self, indices: list[int]) -> Data:
        found = read_items(self.dataset, indices)
        return found if isinstance(found, Data) else self._join(found, indices)

    def _join(self, found: Sequence[Any], indices: Sequence[int]) -> Data:
        batch = join_samples(found) if self.names is None else Data()
        # a dictionary is several times faster than PyG's sample
        samples = [sample if isinstance(sample, dict) else convert_to_data(sample).to_dict() for sample in found]
        for name in (*(self.names or ()), *self.numbers):
            values = self._find_values(name, samples, indices)
            if values:
                batch[name] = torch.cat(values) if isinstance(values[0], Tensor) else values
            if name == "coeffs":
                batch.coeffs_ptr, batch.coeffs_batch = _find_boundaries(values)
        if get_field(batch, "ptr") is None:  # PyG counts atoms by few fields
            of = self.atomic_numbers
            numbers = [_find_atomic_numbers(sample, of, i) for sample, i in zip(samples, indices, strict=True)]
            batch.ptr, batch.batch = _find_boundaries(numbers)
            batch[of] = torch.cat(numbers)
        return batch

    def _find_values(self, name: str, samples: Sequence[dict[str, Any]], indices: Sequence[int]) -> list[Any]:
        """Returns a field of all samples as tensors or texts; nothing if all samples lack it."""
        values, is_number = [sample.get(name) for sample in samples], name in self.numbers
        if not is_number and all(value is None for value in values):
            return []
        for i, (sample, value) in enumerate(zip(samples, values, strict=True)):
            if value is None:
                flag = sample.get("has_energy_label")
                if not is_number or flag is None or torch.as_tensor(flag).any():
                    what = f"(molecule {sample.get('mol_id')!r}) lacks the field {name!r}; it has {list_fields(sample)}"
                    raise BatchError(f"sample {indices[i]} {what} (config: data.source)")
                values[i] = float("nan")  # an energy without label is not used
        if isinstance(values[0], str | list):
            return [unwrap_name(value) for value in values]
        tensors = [v if isinstance(v, Tensor) else torch.as_tensor(np.asarray(v)) for v in values]
        for i, tensor in enumerate(tensors if is_number else ()):
            if tensor.numel() != 1:
                what = f"sample {indices[i]}: field {name!r} has shape {tuple(tensor.shape)}, expected one number"
                raise BatchError(f"{what} (config: data.source)")
        return [tensor if tensor.ndim and not is_number else tensor.reshape(-1) for tensor in tensors]


def _find_boundaries(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the bounds of several consecutive tensors, and the tensor of every entry."""
    lengths = [value.shape[0] for value in values]
    ptr = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    return ptr, torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
