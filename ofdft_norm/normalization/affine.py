"""The one formula behind every normalised number, in both directions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """x' = (x - origin) / unit, and back: x = unit x' + origin; float64 whatever comes in.

    Attributes:
        origin: As many entries as x; None: 0.
        unit: A number or one for each entry of x; None: 1.
    """

    origin: Tensor | None = None
    unit: Tensor | None = None

    def normalize(self, values: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns x' of x, in the shape of x, computed in float64 and cast to a dtype.

        Args:
            values: Values x of the field.
            dtype: Type of the result.
        """
        values = values.to(torch.float64)
        if self.origin is None:
            values = values if self.unit is None else values / self.unit
        else:
            values = values - self.origin.reshape(values.shape)
            values = values if self.unit is None else values.div_(self.unit)  # fresh memory costs as much as dividing
        return values.to(dtype)

    def denormalize(self, values: Tensor) -> Tensor:
        """Returns x of x'.

        Args:
            values: Normalised values x', of any floating-point type.
        """
        values = self.denormalize_difference(values)
        return values if self.origin is None else values + self.origin.reshape(values.shape)

    def denormalize_difference(self, values: Tensor) -> Tensor:
        """Returns the difference of two x of the difference of their x': the origin cancels.

        Args:
            values: Difference of two normalised values.
        """
        values = values.to(torch.float64)
        return values if self.unit is None else values * self.unit
