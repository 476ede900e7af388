"""Labels in another unit of energy than they are stored in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch_geometric.transforms import BaseTransform


class InUnit(BaseTransform):
    """PyG transform: multiplies energies, and what is an energy divided by something else. For samples and batches.

    Args:
        factor: How many of the wanted unit the stored one is.
        fields: Fields to multiply, as far as a sample has them.
    """

    works_on_batches = True

    def __init__(self, factor: float, fields: Sequence[str]) -> None:
        self.factor = factor
        self.fields = list(fields)

    def forward(self, data: Any) -> Any:
        """Returns a copy in the other unit; the sample or batch that is given stays as it is."""
        data = copy.copy(data)
        for field in self.fields:
            if field in data:
                data[field] = data[field] * self.factor
        return data
