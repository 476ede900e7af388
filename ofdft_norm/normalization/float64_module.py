"""A module whose buffers stay float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Float64Module(nn.Module):
    """Base of everything that holds references or scales.

    Energies of 1e5 hartree with wanted differences of 1e-5 need float64, whatever dtype trains. `.to(dtype)`,
    `.half()`, `.float()` and Lightning's ``bf16-true`` therefore change only the device of these buffers, never
    their dtype or a single digit.
    """

    def register_float64(self, name: str, value: Any) -> None:
        """Registers a buffer in float64, a copy of `value`, whatever the default dtype.

        Args:
            name: Name of the buffer.
            value: Anything that a tensor can be made of.
        """
        # Numbers and lists go to float64 directly: by way of torch's default dtype they would lose digits.
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, dtype=np.float64))
        self.register_buffer(name, tensor.to(torch.float64, copy=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float64Module:
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype:
                return moved
            return tensor.to(device=moved.device, non_blocking=True)

        return super()._apply(move_only, recurse)
