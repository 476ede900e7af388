"""What a fit of linear references reports: in its log, and in the references it makes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from torch import Tensor

from ofdft_norm.data.elements import formula, symbol
from ofdft_norm.normalization.composition_fit import CompositionFactor, CompositionSolution
from ofdft_norm.normalization.composition_rows import CompositionItems
from ofdft_norm.normalization.reference_summary import FitReport, WorstMolecule
from ofdft_norm.normalization.residual_survey import ResidualSurvey

logger = logging.getLogger(__name__)


def fit_reports(
    items: CompositionItems,
    factor: CompositionFactor,
    solution: CompositionSolution,
    ridge: float,
    survey: ResidualSurvey | None,
) -> list[FitReport]:
    """Puts together what a fit knows of itself, for each target.

    Args:
        items: The samples.
        factor: Their reduced compositions and targets.
        solution: The references.
        ridge: Relative ridge of the fit.
        survey: Their residuals, sample by sample; None: not measured.
    """
    measured = None if survey is None else survey.compute()
    reports = []
    for t, target in enumerate(items.targets):
        residual, total = float(solution.residual[t]), float(factor.total[t])
        reports.append(
            FitReport(
                target=target,
                n_samples=factor.n_samples,
                rank=solution.rank,
                condition_number=solution.condition_number,
                degrees_of_freedom=factor.n_samples - solution.rank,
                mae=None if measured is None else float(measured["mae"].reshape(-1)[t]),
                rmse=math.sqrt(residual / factor.total_weight),
                r2=1 - residual / total if total > 0 else math.nan,
                ridge=float(ridge),
                atomic_numbers=factor.numbers.tolist(),
                standard_errors=solution.standard_errors[:, t].tolist(),
                n_atoms=factor.n_atoms.tolist(),
                n_molecules=factor.n_molecules.tolist(),
                null_space=solution.null_space.tolist(),
                worst=[] if measured is None else _worst_molecules(items, t, measured["worst"][t]),
            )
        )
    return reports


def _worst_molecules(items: CompositionItems, target: int, worst: Tensor) -> list[WorstMolecule]:
    """Reads the worst samples again, for their names."""
    molecules = []
    for residual, index in worst.tolist():
        if index < 0:
            continue
        _, numbers, values, _ = items[int(index)]
        item = items.dataset[int(index)]
        name = next((item.get(key) for key in ("mol_id", "name", "sid") if item.get(key) is not None), int(index))
        molecules.append(WorstMolecule(str(name), formula(numbers.tolist()), values[target], residual, int(index)))
    return molecules


def log_reports(reports: Sequence[FitReport], log_metrics: bool) -> None:
    """Logs rank deficient fits, and MAE, RMSE and R2 if `log_metrics`."""
    for report in reports:
        if report.rank is not None and report.rank < len(report.atomic_numbers):
            logger.warning(
                "references of %r: the compositions of %d samples have rank %d for the %d elements %s; the references "
                "of minimum norm are used (see LinearReferences.summary())",
                report.target,
                report.n_samples,
                report.rank,
                len(report.atomic_numbers),
                [symbol(z) if z <= 118 else z for z in report.atomic_numbers],
            )
        if log_metrics:
            logger.info(
                "references of %r fitted on %d samples: MAE %.6g, RMSE %.6g, R2 %.6g",
                report.target,
                report.n_samples,
                report.mae,
                report.rmse,
                report.r2,
            )
