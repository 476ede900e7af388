"""Batches of samples in memory whose fields are joined when they are asked for: a fit needs few of them."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ofdft_norm.data.of_data import OFData, sample_name
from ofdft_norm.errors import BatchError

# What PyG's loader adds to the samples' own fields, and the field whose lengths it tells.
_LENGTHS_OF = {"ptr": "atom_ind", "batch": "atom_ind", "coeffs_ptr": "coeffs", "coeffs_batch": "coeffs"}


class JoinedFields(MutableMapping[str, Any]):
    """The fields of samples by name, each joined as PyG's collation does when it is first asked for.

    Args:
        samples: The samples; as for PyG, the first one tells which fields they have.
    """

    def __init__(self, samples: Sequence[Data]) -> None:
        self.samples = samples
        added = [name for name, field in _LENGTHS_OF.items() if field in samples[0] or field == "atom_ind"]
        self._names = dict.fromkeys([*samples[0].keys(), *added])
        self._joined: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._joined:
            self._joined[name] = self._lengths(name) if name in _LENGTHS_OF else self._join(name)
        return self._joined[name]

    def parts(self, name: str) -> list[Tensor]:
        """Returns the samples' own values of a field, or all of them joined where they are so already."""
        return [self._joined[name]] if name in self._joined else self._values(name)

    def _values(self, name: str) -> list[Any]:
        try:
            return [sample[name] for sample in self.samples]
        except KeyError as error:
            i, sample = next((i, sample) for i, sample in enumerate(self.samples) if name not in sample)
            raise BatchError(
                f"sample {i} of its batch (molecule {sample_name(sample, 0)!r}) lacks the field {name!r}, which the "
                "first one has: give all samples the same fields (config: data.pre_transforms)"
            ) from error

    def _lengths(self, name: str) -> Tensor:
        field = _LENGTHS_OF[name]
        known = field in self.samples[0]
        lengths = torch.tensor(
            [v.shape[0] for v in self._values(field)] if known else [s.num_nodes for s in self.samples]
        )
        if name.endswith("ptr"):
            return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return torch.arange(len(lengths)).repeat_interleave(lengths)

    def _join(self, name: str) -> Any:
        sample = self.samples[0]
        first = sample[name]
        if isinstance(first, str):
            return self._values(name)
        if isinstance(first, Tensor) and first.dim() > 0:
            increment: Any = sample.__inc__(name, first, sample._store)
            if sample.__cat_dim__(name, first, sample._store) == 0 and isinstance(increment, int) and increment == 0:
                return torch.cat(self._values(name))
        return Batch.from_data_list(list(self.samples))[name]  # whatever else PyG knows to join

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __setitem__(self, name: str, value: Any) -> None:
        self._names[name] = None
        self._joined[name] = value

    def __delitem__(self, name: str) -> None:
        del self._names[name]
        self._joined.pop(name, None)

    def __copy__(self) -> JoinedFields:
        copy = JoinedFields(self.samples)
        copy._names, copy._joined = dict(self._names), dict(self._joined)
        return copy


def lazy_batch(samples: Sequence[Data]) -> OFData:
    """Returns what PyG's loader with ``follow_batch=["coeffs"]`` makes of the samples, joined field by field.

    It has no `to_data_list`. Fields that nobody asks for cost nothing, and those that are only read in `parts` are
    copied once, not twice.
    """
    batch = OFData()
    batch._store._mapping = JoinedFields(samples)
    return batch


def parts(batch: Data, field: str) -> list[Tensor]:
    """Returns a field of a batch in pieces that follow one another: one, or for a lazy batch perhaps each sample's."""
    fields = batch._store._mapping
    return fields.parts(field) if isinstance(fields, JoinedFields) else [batch[field]]
