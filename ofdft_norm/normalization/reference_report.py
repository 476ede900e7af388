"""Reports of linear references: rank, standard errors, residuals, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from textwrap import fill
from typing import Any, cast

import numpy as np
from torch import Tensor

from ofdft_norm.data.elements import find_symbol
from ofdft_norm.errors import format_count
from ofdft_norm.statistics.energy_table import WorstMolecule
from ofdft_norm.statistics.references import CountBy, name_linear_reference, solve_least_squares
from ofdft_norm.statistics.store import Array, DatasetStatistics
from ofdft_norm.tables import WIDTH, format_rows
from ofdft_norm.units import ENERGY_UNITS, find_unit

_ZERO = 1e-9
_SHOWN_MOLECULES = 5


@dataclass(frozen=True)
class FitReport:
    """How references were fitted, in plain types for checkpoints; unknown values are None.

    Residuals are those of the samples, by weight. The lists of elements run parallel to `atomic_numbers`.
    """

    rows: str = "samples"  # rows of the fit: ``samples``, or ``molecules`` (each the mean over its samples)
    n_rows: int | None = None
    rank: int | None = None  # of the compositions
    condition_number: float | None = None  # largest over smallest nonzero singular value of the compositions
    degrees_of_freedom: int | None = None  # n_rows - rank
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None  # 1 - residual over total sum of squares; NaN if all targets are equal
    ridge: float = 0.0
    atomic_numbers: list[int] = field(default_factory=list)
    standard_errors: list[float] | None = None  # sqrt(sigma^2 (R^T R)^+_ii); NaN without degrees of freedom
    n_atoms: list[int] | None = None
    n_molecules: list[int] | None = None  # rows with each element
    moved: list[float] | None = None  # correction of a base
    fitted: list[float] | None = None  # with isolated atoms: a fit of all elements, to compare
    null_space: list[list[float]] = field(default_factory=list)  # combinations that change the target of no sample
    worst: list[WorstMolecule] = field(default_factory=list)  # largest residuals, at most one of each molecule

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> FitReport:
        """Inverse of `dataclasses.asdict`."""
        return cls(**{**content, "worst": [WorstMolecule(**entry) for entry in content["worst"]]})

    def format_line(self, unit: str = "") -> str:
        """Returns size, rank and errors of the fit in one line; `unit` in brackets."""
        size = "" if self.n_rows is None else f" on {format_count(self.n_rows, self.rows.removesuffix('s'))}"
        ridge = f", ridge {self.ridge:g}" if self.ridge else ""
        rank, mae, rmse = map(format_number, (self.rank, self.mae, self.rmse))
        fit = f"fit{size}: rank {rank} of {len(self.atomic_numbers)}, R2 {format_number(self.r2, '.6f')}"
        return f"{fit}, MAE {mae}, RMSE {rmse}{unit}{ridge}"


def report_fit(
    statistics: DatasetStatistics,
    weigher_key: str,
    atomic_numbers: Sequence[int],
    count_by: CountBy,
    ridge: float = 0.0,
) -> FitReport:
    """Returns the report of the linear references in dataset statistics, which may lack some of it.

    MAE, RMSE, R2 and the worst molecules are those of the stored references, even if a ridge or a base changes them.
    """
    weigher, by_molecule = statistics[weigher_key], count_by == "molecule"
    fitted = weigher.reference(name_linear_reference(count_by))
    if fitted is None:
        return FitReport()
    residual, n_atoms = fitted.residual, weigher.load("n_atoms")
    seen = np.flatnonzero(n_atoms)
    n_rows = weigher.n_molecules if by_molecule else weigher.n_labelled_samples
    freedom = None if n_rows is None or fitted.rank is None else n_rows - fitted.rank
    report = FitReport(
        rows=f"{count_by}s",
        n_rows=n_rows,
        rank=fitted.rank,
        condition_number=fitted.condition_number,
        degrees_of_freedom=freedom,
        mae=None if residual is None else residual.mae,
        rmse=None if residual is None else residual.rms,
        r2=weigher.compute_r_squared(residual),
        ridge=ridge,
        atomic_numbers=np.array(atomic_numbers)[seen].tolist(),
        n_atoms=n_atoms[seen].tolist(),
        worst=fitted.worst,
    )
    problem = weigher.linear_problem(count_by)
    if freedom is None or problem is None:
        return report
    left, right = problem[np.ix_(seen, seen)], problem[seen, -1]
    solution = solve_least_squares(left, right, ridge)
    residual_sum = float(((right - left @ solution.x) ** 2).sum() + problem[-1, -1] ** 2)
    variance = residual_sum / freedom if freedom > 0 else math.nan
    counts = weigher.n_molecules_per_element if by_molecule else weigher.n_labelled_samples_per_element
    return replace(
        report,
        standard_errors=np.sqrt(solution.covariance.diagonal().clip(min=0) * variance).tolist(),
        n_molecules=None if counts is None else counts[seen].tolist(),
        null_space=solution.null_space.tolist(),
    )


def load_linear_problem(statistics: DatasetStatistics, weigher_key: str, count_by: CountBy) -> Array:
    """Returns the reduced least-squares problem of linear references; raises MissingStatisticError without one."""
    statistics.load_statistic(weigher_key, "linear_ref_factor" if count_by == "molecule" else "energy_factor")
    return cast(Array, statistics[weigher_key].linear_problem(count_by))


def tabulate_elements(values: Tensor, seen: Tensor, fit: FitReport | None, unit: str = "") -> str:
    """Returns a table of references, (max_num_elements + 1,), with standard errors, and lines about their fit."""
    in_unit, elements = format_unit(unit), [z for z in seen.nonzero().squeeze(1).tolist() if z > 0]
    # a table with a further column of fitted references needs a short heading
    heading = f"{'energy ' if fit is None or fit.fitted is None else ''}per atom{in_unit}"
    columns = {"element": map(name_element, elements), heading: [f"{float(values[z]):.6f}" for z in elements]}
    if fit is None:
        return format_rows([*columns], zip(*columns.values(), strict=True)) + "\ngiven values, not fitted"

    def column(numbers: Sequence[float] | None, digits: str = ".2g") -> list[str]:
        known = dict(zip(fit.atomic_numbers, numbers or (), strict=numbers is not None))
        return [format_number(known.get(z), digits) for z in elements]

    if fit.fitted is not None:
        differences = [x - float(values[z]) for z, x in zip(fit.atomic_numbers, fit.fitted, strict=True)]
        columns |= {"fitted": column(fit.fitted, ".6f"), "difference": column(differences, "+.3f")}
    columns |= {f"std. error{in_unit}": column(fit.standard_errors), "atoms": column(fit.n_atoms)}
    columns[fit.rows] = column(fit.n_molecules)
    free = np.abs(np.array(fit.null_space).reshape(-1, len(fit.atomic_numbers))).max(axis=0, initial=0) >= _ZERO
    undetermined = {z for z, is_free in zip(fit.atomic_numbers, free, strict=True) if is_free}
    columns[""] = ["not determined alone" if z in undetermined else "" for z in elements]
    sentences = [fit.format_line(in_unit)]
    if fit.moved is not None:
        moves = (f"{name_element(z)} {by:+.3g}" for z, by in zip(fit.atomic_numbers, fit.moved, strict=True))
        sentences.append(f"correction of the base{in_unit}: {', '.join(moves)}")
    table = format_rows([*columns], zip(*columns.values(), strict=True))
    lines = [table, *(fill(s, WIDTH, subsequent_indent="  ") for s in sentences)]
    if fit.worst:
        headings = ["largest residuals", "formula", "sample", f"target{in_unit}", f"residual{in_unit}"]
        cells = []
        for w in fit.worst[:_SHOWN_MOLECULES]:
            place = format_number(w.index) if w.scf_iteration is None else f"SCF iteration {w.scf_iteration}"
            cells.append([w.name or "-", w.formula, place, f"{w.target:.6f}", f"{w.residual:+.3g}"])
        lines.append(format_rows(headings, cells))
    return "\n".join(lines)


def format_unit(unit: str) -> str:
    """Returns a unit's symbol in brackets for headings, ``" [Ha]"``; empty for none."""
    return f" [{find_unit(unit).symbol if unit in ENERGY_UNITS else unit}]" if unit else ""


def name_element(z: int) -> str:
    """Returns the symbol of an atomic number, ``Z=130`` beyond the known ones."""
    return find_symbol(z) if z <= 118 else f"Z={z}"


def format_number(value: float | None, digits: str = ".3g") -> str:
    """Returns a number as text; ``-`` for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else format(value, digits)
