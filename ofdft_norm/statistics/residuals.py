"""The second pass: what fitted references leave of the energies, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ofdft_norm.data.elements import formula
from ofdft_norm.data.of_data import get_field, sample_name, scf_iteration
from ofdft_norm.statistics.distributed import Ranks
from ofdft_norm.statistics.reading import SAMPLE_INDEX
from ofdft_norm.statistics.weighed_batch import WeighedBatch

N_WORST = 10


@dataclass(frozen=True)
class WorstMolecule:
    """A sample that references fit badly; what is not known is None.

    Attributes:
        name: Name of the molecule.
        formula: Its elements.
        target: Its energy.
        residual: The energy less its reference.
        index: Index of the sample in the data set of the fit.
        scf_iteration: Which of the molecule's samples this is.
    """

    name: str
    formula: str
    target: float
    residual: float
    index: int | None = None
    scf_iteration: int | None = None

    def to_plain(self) -> dict[str, Any]:
        """Returns its fields as plain types."""
        return asdict(self)


@dataclass(frozen=True)
class ResidualColumn:
    """One residual of every row.

    Attributes:
        direction: (width,) the residual of a row is row.direction, see `RowLayout`.
        weigher: Index of the weigher whose weights count.
        target: Index of the energy.
        n_worst: How many of the molecules with the largest residuals are kept.
    """

    direction: Tensor
    weigher: int
    target: int = 0
    n_worst: int = 0


class Residuals(Metric):
    """Largest and mean absolute residual of energies, and the molecules with the largest ones.

    Args:
        columns: What is measured.
        atomic_numbers: The elements of a row's composition.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    abs_max: Tensor
    absolute: Tensor
    weight: Tensor

    def __init__(self, columns: Sequence[ResidualColumn], atomic_numbers: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.columns = list(columns)
        self.atomic_numbers = np.asarray(atomic_numbers)
        self._directions = torch.stack([column.direction for column in columns], dim=1)
        self._weighers = [column.weigher for column in columns]
        self._worst: list[dict[int, WorstMolecule]] = [{} for _ in columns]
        for name, reduce in (("abs_max", "max"), ("absolute", "sum"), ("weight", "sum")):
            self.add_state(name, torch.zeros(len(self.columns), dtype=torch.float64), dist_reduce_fx=reduce)

    def update(self, batch: WeighedBatch) -> None:
        """Takes in samples, with weights that are zero without label."""
        used = batch.weights.any(0)
        weights = batch.weights[self._weighers][:, used].T
        if not len(weights):
            return
        rows = batch.rows()[used]
        residuals = rows @ self._directions
        sizes = torch.where(weights > 0, residuals.abs(), 0.0)
        self.abs_max = torch.maximum(self.abs_max, sizes.amax(0).to(self.abs_max))
        self.absolute = self.absolute + (sizes * weights).sum(0).to(self.absolute)
        self.weight = self.weight + weights.sum(0).to(self.weight)
        samples = used.nonzero().squeeze(1)
        for i, column in enumerate(self.columns):
            if column.n_worst:
                counted = torch.where(weights[:, i] > 0, residuals[:, i], torch.nan)
                energies = rows[:, batch.layout.energies.start + column.target]
                self._worst[i] = self._with_samples(self._worst[i], column.n_worst, batch, samples, counted, energies)

    def _with_samples(
        self,
        worst: dict[int, WorstMolecule],
        n_worst: int,
        batch: WeighedBatch,
        samples: Tensor,
        residuals: Tensor,
        energies: Tensor,
    ) -> dict[int, WorstMolecule]:
        """Returns the worst molecules after some of a batch's samples; NaN: a sample that does not count."""
        least = min(abs(w.residual) for w in worst.values()) if len(worst) == n_worst else -1.0
        candidates = (residuals.abs() >= least).nonzero().squeeze(1)  # few, after the first batches
        index = get_field(batch.data, SAMPLE_INDEX)
        merged = dict(worst)
        met: set[int] = set()
        for i in candidates[residuals[candidates].abs().argsort(descending=True, stable=True)].tolist():
            sample = int(samples[i])
            key = int(batch.molecules[sample])
            if key not in met and len(met) == n_worst:
                break  # all others are smaller
            met.add(key)
            found = WorstMolecule(
                name=sample_name(batch.data, sample) or "",
                formula=formula(np.repeat(self.atomic_numbers, batch.composition[sample].to(torch.int64).numpy())),
                target=float(energies[i]),
                residual=float(residuals[i]),
                index=None if index is None else int(index[sample]),
                scf_iteration=scf_iteration(batch.data, sample),
            )
            if key not in merged or _order(found) < _order(merged[key]):
                merged[key] = found
        return _first(merged, n_worst)

    def compute(self) -> dict[str, Tensor]:
        """Returns `abs_max` and `mae`, both (C,)."""
        return {"abs_max": self.abs_max, "mae": self.absolute / self.weight}

    def reset(self) -> None:
        """Forgets all samples."""
        super().reset()
        self._worst = [{} for _ in self.columns]

    def merge_state(self, incoming_state: Any) -> None:
        """Takes over what another accumulator of the same columns has seen."""
        super().merge_state(incoming_state)
        self._worst = self._merged([self._worst, incoming_state._worst])

    def worst(self, ranks: Ranks) -> list[list[WorstMolecule]]:
        """Returns each column's worst molecules, each by its worst sample, worst first; of all ranks together.

        Args:
            ranks: The ranks that fit together.
        """
        return [list(molecules.values()) for molecules in self._merged(ranks.gathered(self._worst))]

    def _merged(self, several: Sequence[list[dict[int, WorstMolecule]]]) -> list[dict[int, WorstMolecule]]:
        merged: list[dict[int, WorstMolecule]] = [{} for _ in self.columns]
        for worst in several:
            for together, molecules in zip(merged, worst, strict=True):
                for key, found in molecules.items():
                    if key not in together or _order(found) < _order(together[key]):
                        together[key] = found
        return [_first(m, c.n_worst) for m, c in zip(merged, self.columns, strict=True)]


def _first(worst: dict[int, WorstMolecule], n: int) -> dict[int, WorstMolecule]:
    return dict(sorted(worst.items(), key=lambda item: (_order(item[1]), item[0]))[:n])


def _order(molecule: WorstMolecule) -> tuple[float, float, int, int]:
    """Sorts by size, and ties in the same way in whatever order samples come."""
    iteration = -1 if molecule.scf_iteration is None else molecule.scf_iteration
    index = -1 if molecule.index is None else molecule.index
    return -abs(molecule.residual), molecule.residual, iteration, index
