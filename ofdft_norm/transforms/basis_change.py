"""One change of the density basis of one molecule: the steps that it consists of, applied forth and back.

A step is never multiplied out to a matrix: eigenvectors and rotations of atoms are applied one after the other, which
costs a molecule with ten densities little beside one diagonalisation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class Step(ABC):
    """A matrix T; vectors become T p, dual vectors T^-T g."""

    @abstractmethod
    def apply(self, rows: Tensor, dual: Tensor, inverse: bool) -> Tensor:
        """Transforms each row.

        Args:
            rows: (n, n_basis) float64.
            dual: (n,) bool, which rows are dual vectors.
            inverse: Whether to undo the step.
        """

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Memory that the step holds."""


@dataclass(frozen=True)
class ShellRotation(Step):
    """An orthogonal T with one block for each shell of l > 0: vectors and dual vectors change alike.

    Attributes:
        order: (n_basis,) the functions: those of l = 0, shell after shell those of l = 1, and so on.
        blocks: Per l > 0 the blocks of its shells, (n_shell, 2l+1, 2l+1).
    """

    order: Tensor
    blocks: tuple[Tensor, ...]

    def apply(self, rows: Tensor, dual: Tensor, inverse: bool) -> Tensor:
        """See `Step`."""
        order, blocks = self.order.to(rows.device), [block.to(rows.device) for block in self.blocks]
        sizes = [block.shape[0] * block.shape[1] for block in blocks]
        scalars, *columns = rows.T[order].split([len(order) - sum(sizes), *sizes])
        turned = [
            (block.transpose(1, 2) if inverse else block) @ own.reshape(*block.shape[:2], -1)
            for block, own in zip(blocks, columns, strict=True)
        ]
        sorted_rows = torch.cat([scalars, *(own.flatten(0, 1) for own in turned)])
        return sorted_rows[torch.argsort(order)].T

    @cached_property
    def n_bytes(self) -> int:
        """See `Step`."""
        return self.order.nbytes + sum(block.nbytes for block in self.blocks)


@dataclass(frozen=True)
class Stretch(Step):
    """T = U diag(s) V^T with orthogonal U and V.

    Attributes:
        scale: (n_basis,) s > 0.
        right: (n_basis, n_basis) V.
        left: (n_basis, n_basis) U; None: the unit matrix.
    """

    scale: Tensor
    right: Tensor
    left: Tensor | None

    def apply(self, rows: Tensor, dual: Tensor, inverse: bool) -> Tensor:
        """See `Step`."""
        right = self.right.to(rows.device)
        left = right if self.left is self.right else None if self.left is None else self.left.to(rows.device)
        scale = self.scale.to(rows.device)
        first, last = (left, right) if inverse else (right, left)
        rows = rows if first is None else rows @ first
        rows = torch.where((dual == inverse)[:, None], rows * scale, rows / scale)
        return rows if last is None else rows @ last.T

    @cached_property
    def n_bytes(self) -> int:
        """See `Step`."""
        return self.scale.nbytes + self.right.nbytes


@dataclass(frozen=True)
class BasisChange:
    """T = T_n ... T_1.

    Attributes:
        steps: T_1 ... T_n.
    """

    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> BasisChange:
        """Returns this change followed by a step.

        Args:
            step: What follows.
        """
        return BasisChange((*self.steps, step))

    def after(self, n_steps: int) -> BasisChange:
        """Returns this change without its first steps.

        Args:
            n_steps: How many are left out.
        """
        return BasisChange(self.steps[n_steps:])

    def apply(self, rows: Tensor, dual: Tensor, inverse: bool = False) -> Tensor:
        """Transforms each row, (n, n_basis) float64; see `Step.apply`.

        Args:
            rows: (n, n_basis) float64.
            dual: (n,) bool, which rows are dual vectors.
            inverse: Whether to undo the change.
        """
        for step in reversed(self.steps) if inverse else self.steps:
            rows = step.apply(rows, dual, inverse)
        return rows

    def apply_to_form(self, form: Tensor) -> Tensor:
        """Returns T^-T C T^-1 of a symmetric bilinear form C such as the overlap, (n_basis, n_basis).

        Args:
            form: (n_basis, n_basis) matrix C.
        """
        dual = torch.ones(len(form), dtype=torch.bool)
        return self.apply(self.apply(form, dual).T, dual) if self.steps else form
