"""Transforms that put a normaliser on a data set, or on a loader's batches."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from ofdft_norm.data.of_data import field_names, get_field
from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.normalizer import Normalizer

DataT = TypeVar("DataT", bound=Data)

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Mixed precision keeps weights and batches in float32
_DTYPE_OF_PRECISION = {"64-true": "float64", "bf16-true": "bfloat16", "16-true": "float16"}


def batch_dtype(name: str, trainer: Any) -> torch.dtype:
    """Returns the dtype of batches.

    Args:
        name: ``float64``, ``float32``, ``bfloat16``, ``float16``, or ``auto``: that of the trainer's weights.
        trainer: A Lightning Trainer, or None: float32.
    """
    if name == "auto":
        name = _DTYPE_OF_PRECISION.get(str(getattr(trainer, "precision", None)), "float32")
    return _DTYPES[name]


class NormalizeTransform(nn.Module):
    """Applies a normaliser to a sample or batch, then casts it to the training dtype.

    Args:
        normalizer: The normaliser.
        dtype: Dtype of coefficients, positions, integrals and normalised labels; `energy_reference` stays float64.
        check_values: Whether values are checked here; on a GPU that would wait for the device at every batch.
    """

    works_on_batches = True

    def __init__(self, normalizer: Normalizer, dtype: torch.dtype = torch.float32, check_values: bool = True) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.dtype = dtype
        self.check_values = check_values

    def forward(self, sample: DataT) -> DataT:
        """Returns the normalised sample or batch; the argument stays as it is, and shares what does not change."""
        # float16 may overflow, which `cast_floats` sees where it casts
        dtype = torch.float64 if self.dtype == torch.float16 else self.dtype
        with torch.no_grad():
            normalized = self.normalizer.normalize(sample, self.check_values, share=True, dtype=dtype)
            return cast_floats(normalized, self.dtype)


class CheckSamples(nn.Module):
    """Refuses samples that the normaliser cannot know, or whose values cannot be right, and changes nothing.

    Args:
        normalizer: The normaliser.
    """

    works_on_batches = True

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        self.normalizer = normalizer

    def forward(self, sample: DataT) -> DataT:
        """Returns the sample as it is."""
        self.normalizer.check(sample)
        return sample


def cast_floats(sample: DataT, dtype: torch.dtype) -> DataT:
    """Casts a sample's floating-point fields to `dtype`, in place, all but `energy_reference` and `pos_float64`.

    Positions stay in float64 beside the cast ones, as `pos_float64`, for samples that say their coordinates: on the way
    back to others, equally near neighbours change their ranks with the last digit.

    Args:
        sample: A sample, changed in place.
        dtype: A floating-point type.

    Raises:
        NormalizationError: If float16 cannot hold a field.
    """
    if get_field(sample, "coordinates") is not None and get_field(sample, "pos") is not None:
        sample.pos_float64 = sample.pos.to(torch.float64)
        if isinstance(sample, Batch) and hasattr(sample, "_slice_dict"):  # its samples have them, too
            sample._slice_dict = {**sample._slice_dict, "pos_float64": sample._slice_dict["pos"]}
            sample._inc_dict = {**sample._inc_dict, "pos_float64": None}
    for field in field_names(sample):
        value = get_field(sample, field)
        if field not in ("energy_reference", "pos_float64") and isinstance(value, Tensor) and value.is_floating_point():
            sample[field] = value.to(dtype)
            if dtype == torch.float16:
                _refuse_overflow(field, value, sample[field])
    return sample


def _refuse_overflow(field: str, value: Tensor, half: Tensor) -> None:
    """Refuses values that became infinite in float16."""
    if (value.isfinite() & half.isinf()).any():
        largest = float(value[value.isfinite()].abs().max())
        raise NormalizationError(
            f"field {field!r} has values up to {largest:.6g}, but float16, which a trainer's precision "
            "16-true asks for, too, ends at 65504: choose float32 or bfloat16 (config: data.dtype), a reference energy "
            "(config: data/reference), or a larger energy scale (config: data.energy_scale)"
        )
