"""Memory that is used again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Memory that serves one batch after the other: to be given new memory costs as much as all sums over it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, n: int) -> Tensor:
        """Returns (n,) float64 of any content; what was taken under the same name before is overwritten."""
        if name not in self._buffers or len(self._buffers[name]) < n:
            self._buffers[name] = torch.empty(n + n // 4, dtype=torch.float64)  # the next one may be larger
        return self._buffers[name][:n]

    def cat(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the tensors joined along their first axis, as float64 on the CPU."""
        lengths, shape = [tensor.shape[0] for tensor in tensors], tensors[0].shape[1:]
        joined = self.take(name, sum(lengths) * shape.numel()).view(-1, *shape)
        return torch.cat([tensor.cpu() for tensor in tensors], out=joined)

    def select(self, name: str, tensor: Tensor, index: Tensor) -> Tensor:
        """Returns the selected entries along the first axis."""
        out = self.take(name, len(index) * tensor.shape[1:].numel()).view(len(index), *tensor.shape[1:])
        return torch.index_select(tensor, 0, index, out=out)

    def __deepcopy__(self, memo: object) -> Workspace:
        return Workspace()  # its content is nobody's

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()
