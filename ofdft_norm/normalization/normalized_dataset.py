"""Normalised data: a data set of normalised batches, and the same steps for a batch that a loader has joined."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ofdft_norm.data.dataset import apply_transform
from ofdft_norm.data.sample import (
    JoinedDataset,
    count_molecules,
    get_field,
    join_samples,
    list_fields,
    read_batch,
    register_fields,
    set_field,
)
from ofdft_norm.errors import BatchError, NormalizationError
from ofdft_norm.normalization.normalizer import Normalizer

# dtype of weights; mixed precision keeps weights and batches in float32
_DTYPE_OF_PRECISION = {"64-true": "float64", "bf16-true": "bfloat16", "16-true": "float16"}
_EXACT = ("energy_reference", "pos_float64")  # fields that stay float64


def choose_batch_dtype(name: str, trainer_precision: str | None) -> torch.dtype:
    """Returns the dtype of batches: float64, float32, bfloat16, float16, or for ``auto`` that of the weights."""
    found = _DTYPE_OF_PRECISION.get(str(trainer_precision), "float32") if name == "auto" else name
    return cast(torch.dtype, getattr(torch, found))


class NormalizeBatch:
    """Normalises a raw sample or batch, casts it to the training dtype, and applies the post-transforms.

    The argument stays as it is; the result shares unchanged fields with it. On an accelerator samples are not
    validated, because this would wait for the device; the workers, with `only_check`, have validated them.
    """

    def __init__(
        self,
        normalizer: Normalizer,
        dtype: torch.dtype = torch.float32,
        post_transforms: Sequence[Callable[[Any], Any]] = (),
        follow_batch: Sequence[str] = (),
        only_check: bool = False,
    ) -> None:
        self.normalizer, self.dtype, self.only_check = normalizer, dtype, only_check
        self.post_transforms, self.follow_batch = list(post_transforms), list(follow_batch)

    def __call__(self, batch: Any) -> Any:
        """Returns the normalised sample or batch."""
        return self.finish(self.start(batch))

    def start(self, batch: Any) -> Any:
        """Returns the sample or batch before its post-transforms."""
        if self.only_check:
            self.normalizer.check(batch)
            return batch
        on_cpu = self.normalizer.energy_scale.device.type == "cpu"
        # float16 may overflow, which `cast_floats` detects from float64
        dtype = torch.float64 if self.dtype == torch.float16 else self.dtype
        with torch.no_grad():
            normalized = self.normalizer.normalize(batch, check=on_cpu, share=True, dtype=dtype)
            cast_floats(normalized, self.dtype)
        return normalized

    def finish(self, batch: Any) -> Any:
        """Applies the post-transforms to what `start` returned, and adds ``<name>_batch`` and ``<name>_ptr``."""
        if self.only_check:
            return batch
        for transform in self.post_transforms:
            batch = apply_transform(transform, batch, "data.post_transforms")
        for name in self.follow_batch if isinstance(batch, Batch) else ():
            ends = batch._slice_dict.get(name)
            if ends is None:
                known = list_fields(batch)
                raise BatchError(f"the batch has no field {name!r}; it has {known} (config: data.loader.follow_batch)")
            ends = batch[f"{name}_ptr"] = ends.to(batch[name].device if isinstance(batch[name], Tensor) else "cpu")
            samples = torch.arange(count_molecules(batch), device=ends.device)
            batch[f"{name}_batch"] = samples.repeat_interleave(ends.diff())
        return batch


class NormalizedDataset(JoinedDataset):
    """Normalised batches of raw samples; `keep_in_memory` keeps each sample before its post-transforms."""

    def __init__(self, dataset: Any, transform: NormalizeBatch, keep_in_memory: bool = False) -> None:
        self.dataset, self.transform, self.keep_in_memory = dataset, transform, keep_in_memory
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, samples: Sequence[int]) -> Any:
        """Returns the normalised batch of some samples."""
        if not self.keep_in_memory:
            return self.transform(read_batch(self.dataset, samples))
        missing = sorted(set(samples) - self._kept.keys())
        if missing:
            batch = self.transform.start(read_batch(self.dataset, missing))
            self._kept.update(zip(missing, batch.to_data_list(), strict=True))
        return self.transform.finish(join_samples(list(map(self._kept.__getitem__, samples))))

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without the kept samples: spawned workers stay small."""
        return {**self.__dict__, "_kept": {}}


def cast_floats(sample: Data, dtype: torch.dtype) -> None:
    """Casts the floating-point fields of a sample in place, except `energy_reference` and `pos_float64`."""
    # a change of basis depends on the order of nearly equal distances: it needs float64 positions
    if get_field(sample, "coordinates") is not None and get_field(sample, "pos") is not None:
        set_field(sample, "pos_float64", sample.pos.to(torch.float64))
        register_fields(sample, {"pos_float64": "pos"})
    for field in list_fields(sample):
        value = get_field(sample, field)
        if field not in _EXACT and isinstance(value, Tensor) and value.is_floating_point():
            set_field(sample, field, value.to(dtype))
            if dtype == torch.float16 and (value.isfinite() & sample[field].isinf()).any():
                largest = float(value[value.isfinite()].abs().max())
                raise NormalizationError(
                    f"field {field!r} has values up to {largest:.6g}, float16 (also of precision 16-true) has 65504: "
                    "change data.dtype, data/reference or data.energy_scale"
                )
