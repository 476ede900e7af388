"""What each lambda of a rescaling hangs on: the sample with the largest gradient, and what it would be without it.

Lambda's other limit, s_coeff / std, hangs on all samples alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.irreps import dimension_name
from ofdft_norm.errors import counted
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.statistics.arrays import EXTREME_SAMPLES
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.extremes import FIRST, LARGEST, PLACES, SECOND, SMALLEST
from ofdft_norm.tables import text_table

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FIELD = "gradient_label"
MEANINGS = {
    "molecule": "has the largest gradient of some dimensions, which sets their lambda",
    "SCF": "SCF iteration of that sample",
    "sets lambdas": "of so many dimensions",
    "median ratio": "lambda over what it would be without the molecule, the median over these dimensions",
    "largest ratio": "the largest one: a scale that hangs on this molecule alone",
    "of": "the dimension of the largest ratio: element, shell and component",
}


@dataclass(frozen=True)
class Sample:
    """A sample that holds the largest gradient of some dimension.

    Attributes:
        name: Its molecule's name.
        scf_iteration: Which of the molecule's samples it is, where known.
        molecule: A number that tells molecules of one name apart.
    """

    name: str
    scf_iteration: int | None
    molecule: int


@dataclass(frozen=True)
class LambdaSources:
    """What sets each lambda.

    Attributes:
        samples: Samples that hold largest gradients.
        holder: (n_basis,) index in `samples` of the one that sets lambda; -1 where no gradient sets it.
        scale: (n_basis,) lambda.
        without: (n_basis,) lambda without the molecule of `holder`; the mean gradient and everything else are kept.
    """

    samples: Sequence[Sample]
    holder: IntArray
    scale: Array
    without: Array

    @property
    def change(self) -> Array:
        """(n_basis,) by which factor the molecule enlarges lambda; 1 where none sets it."""
        return np.where(self.holder >= 0, self.scale / self.without, 1.0)

    def molecules(self) -> list[MoleculeShare]:
        """Returns which molecules set lambdas, those that change them most first."""
        shares = []
        of_dimension = _molecules(self.samples, self.holder)
        for molecule in np.unique(of_dimension[of_dimension >= 0]):
            own = np.flatnonzero(of_dimension == molecule)
            most = int(own[np.argmax(self.change[own])])
            change = self.change[own]
            sample = self.samples[self.holder[most]]
            shares.append(MoleculeShare(sample, len(own), float(np.median(change)), float(change.max()), most))
        return sorted(shares, key=lambda share: (-share.largest_change, -share.n_dimensions, share.sample.name))


@dataclass(frozen=True)
class MoleculeShare:
    """What one molecule does to the lambdas that it sets.

    Attributes:
        sample: The molecule's sample that changes a lambda most.
        n_dimensions: How many lambdas the molecule sets.
        median_change: By which factor it enlarges them, the median.
        largest_change: The largest factor.
        dimension: Where that is.
    """

    sample: Sample
    n_dimensions: int
    median_change: float
    largest_change: float
    dimension: int


@dataclass(frozen=True)
class _Extremes:
    """Extremes of gradients as statistics hold them; first axes as in `ofdft_norm.statistics.extremes`."""

    values: Array  # (2, 2, n_basis); the smallest ones are not negated
    rows: IntArray  # (2, 2, n_basis)
    samples: list[Sample]

    @classmethod
    def stored(cls, statistics: DatasetStatistics, weigher_key: str) -> _Extremes | None:
        """Reads them; None where the statistics do not have them."""
        table = statistics.attributes.get(EXTREME_SAMPLES, {}).get(weigher_key)
        needed = {name: (f"{FIELD}/{name}", f"{FIELD}_samples/{name}") for name in PLACES}
        if table is None or any(f"{weigher_key}/{key}" not in statistics for keys in needed.values() for key in keys):
            return None
        n_basis = len(statistics.load_statistic(weigher_key, f"{FIELD}/mean"))
        values, rows = np.zeros((2, 2, n_basis)), np.zeros((2, 2, n_basis), dtype=np.int64)
        for name, (value_key, row_key) in needed.items():
            values[PLACES[name]] = statistics.load_statistic(weigher_key, value_key)
            rows[PLACES[name]] = statistics.load_statistic(weigher_key, row_key)
        return cls(values, rows, [Sample(row["name"], row["scf_iteration"], row["molecule"]) for row in table])

    def distances(self, origin: Array) -> Array:
        """Returns the (2, 2, n_basis) distances from an origin, in the direction of each extreme; none is -inf."""
        distances = np.stack([self.values[LARGEST] - origin, origin - self.values[SMALLEST]])
        return np.where(self.rows < 0, -np.inf, distances)

    def largest(self, origin: Array) -> tuple[Array, IntArray]:
        """Returns max |g - origin| and the row of its sample, both (n_basis,)."""
        distances = self.distances(origin)[:, FIRST]
        side = distances.argmax(0)
        dimension = np.arange(len(origin))
        return np.maximum(distances[side, dimension], 0), self.rows[side, FIRST, dimension]

    def largest_without(self, molecule: IntArray, origin: Array) -> Array:
        """Returns max |g - origin| of all molecules but one, which each dimension (n_basis,) names."""
        distances = self.distances(origin)
        left_out = _molecules(self.samples, self.rows[:, FIRST]) == molecule
        return np.maximum(np.where(left_out, distances[:, SECOND], distances[:, FIRST]).max(0), 0)


def lambda_sources(
    statistics: DatasetStatistics, rescaling: DimensionWiseRescaling, basis_info: BasisInfo, weigher_key: str
) -> LambdaSources | None:
    """Returns what sets each lambda of a rescaling; None if the statistics do not say.

    Args:
        statistics: Of which the rescaling was made.
        rescaling: The rescaling.
        basis_info: The basis.
        weigher_key: Whose statistics it was made of.
    """
    extremes = _Extremes.stored(statistics, weigher_key)
    if extremes is None:
        return None
    max_grads = rescaling.max_grads.cpu().numpy()
    gbar = statistics.load_statistic(weigher_key, f"{FIELD}/mean")
    largest, row = extremes.largest(gbar)
    if np.allclose(largest, max_grads, rtol=1e-9, atol=0):
        without = extremes.largest_without(_molecules(extremes.samples, row), gbar)
    else:
        origin = np.where(basis_info.l_per_basis_func == 0, gbar, 0.0)
        largest, row = extremes.largest(origin)
        shell, first = basis_info.basis_func_to_shell, np.unique(basis_info.basis_func_to_shell, return_index=True)[1]
        in_shell = np.maximum.reduceat(largest, first)[shell]
        if not np.allclose(in_shell, max_grads, rtol=1e-9, atol=0):
            return None  # the rescaling is of other statistics
        holder = np.array([s + largest[s:e].argmax() for s, e in zip(first, [*first[1:], len(shell)], strict=True)])
        row = row[holder[shell]]
        without = np.maximum.reduceat(extremes.largest_without(_molecules(extremes.samples, row), origin), first)[shell]
    scale = rescaling.lambda_z.cpu().numpy()
    by_gradient = (max_grads > rescaling.s_grad) & (scale == max_grads / rescaling.s_grad)
    lambda_without = rescaling.lambda_of(torch.as_tensor(without).to(rescaling.lambda_z)).cpu().numpy()
    return LambdaSources(extremes.samples, np.where(by_gradient, row, -1), scale, lambda_without)


def _molecules(samples: Sequence[Sample], rows: IntArray) -> IntArray:
    """Returns the molecule numbers of some rows of a table, -1 for the row -1."""
    return np.array([-1, *(sample.molecule for sample in samples)])[rows + 1]


def sources_rows(sources: LambdaSources, basis_info: BasisInfo, head: int) -> list[list[str]]:
    """Returns which molecules set how many lambdas, and how lambda changes without them, under a row of headings.

    Args:
        sources: What sets each lambda.
        basis_info: The basis, which names dimensions.
        head: So many molecules: those without which a lambda changes most and, one of three, those that set most.
    """
    molecules = sources.molecules()
    by_number = sorted(molecules, key=lambda share: -share.n_dimensions)
    shown = [*molecules[: head - head // 3], *by_number[: head // 3]]
    rows = [
        [
            share.sample.name,
            "" if share.sample.scf_iteration is None else str(share.sample.scf_iteration),
            f"{share.n_dimensions:,}",
            f"{share.median_change:.2f}",
            f"{share.largest_change:.2f}",
            dimension_name(basis_info, share.dimension),
        ]
        for share in molecules
        if share in shown
    ]
    return [["molecule", "SCF", "sets lambdas", "median ratio", "largest ratio", "of"], *rows]


def sources_table(sources: LambdaSources, basis_info: BasisInfo, head: int = 6) -> str:
    """Returns `sources_rows` as text, with a title; empty where no gradient sets a lambda.

    Args:
        sources: Which sample sets each lambda.
        basis_info: The density basis.
        head: Number of molecules at most.
    """
    molecules = sources.molecules()
    if not molecules:
        return ""
    n = sum(share.n_dimensions for share in molecules)
    lambdas, holders = counted(n, "lambda"), counted(len(molecules), "molecule")
    title = f"the {lambdas} that a gradient sets hang on {holders}; lambda with over without it:"
    header, *rows = sources_rows(sources, basis_info, head)
    return title + "\n" + text_table(header, rows, meanings=MEANINGS)
