"""Builds a normaliser from statistics and configuration."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.errors import StatisticsError
from ofdft_norm.normalization.atom_ref import AtomRef, AtomRefConfig
from ofdft_norm.normalization.dataset_references import DatasetReferences
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling, RescalingConfig
from ofdft_norm.normalization.element_references import LinearReferences, LinearReferencesConfig
from ofdft_norm.normalization.energy_scale import resolve_energy_scale
from ofdft_norm.normalization.given_references import create_element_references, references_from_values
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.reference import Reference
from ofdft_norm.normalization.reference_summary import moved_text
from ofdft_norm.normalization.training_range import TrainingRange
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.references import OTHER_REFERENCES
from ofdft_norm.units import conversion

logger = logging.getLogger(__name__)


def build_normalizer(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    reference: AtomRefConfig | LinearReferencesConfig | None,
    rescaling: RescalingConfig | None,
    weigher_key: str = "has_energy_label",
    energy_scale: float | str = 1.0,
    energy_scale_per_atom: bool = False,
    unseen_elements: str = "error",
    energy_field: str = "energy_label",
    forces_field: str | None = None,
    atomic_numbers_field: str = "atomic_numbers",
    by_dataset: DatasetReferences | None = None,
    unit: str = "hartree",
) -> Normalizer:
    """Builds the normaliser that a configuration asks for.

    Args:
        statistics: Of the training split.
        basis_info: The basis they were taken in; None for samples that have energies alone.
        reference: Which reference to subtract; None: none.
        rescaling: How to rescale; None: not at all.
        weigher_key: Whose statistics to use.
        energy_scale: A number [`unit`], or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether those are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses atoms of elements that were not seen, ``identity`` lets them pass.
        energy_field: Field of the energies.
        forces_field: Field of the forces, if any.
        atomic_numbers_field: Field of the atomic numbers, for linear references.
        by_dataset: References of each data set, where `reference` asks for them.
        unit: Unit of the statistics' energies. `s_grad`, which is in hartree, is converted to it.

    Returns:
        The normaliser.

    Raises:
        StatisticsError: If the statistics lack a key or belong to another basis.
        ConfigError: If a setting is unknown or out of range.
    """
    check_seen = unseen_elements == "error" and basis_info is not None
    if basis_info is not None:
        check_basis(statistics, basis_info, weigher_key)
    given = linear_references(reference, unit) if isinstance(reference, LinearReferencesConfig) else None
    if given is not None:
        given.atomic_numbers_field = atomic_numbers_field
    used = given or by_dataset or _reference(statistics, basis_info, reference, weigher_key, atomic_numbers_field, unit)
    statistics = with_residuals(statistics, weigher_key, reference, used, basis_info)
    name = None if reference is None else reference.statistics_name
    scale = resolve_energy_scale(energy_scale, statistics, weigher_key, name, energy_scale_per_atom)
    return Normalizer(
        reference=used,
        rescaling=None
        if rescaling is None
        else DimensionWiseRescaling.from_dataset_statistics(
            statistics,
            basis_info,
            weigher_key,
            equivariant=rescaling.equivariant,
            s_coeff=rescaling.s_coeff,
            s_grad=rescaling.s_grad * conversion("hartree", unit),
            epsilon=rescaling.epsilon,
        ),
        energy_scale=scale,
        seen_elements=_seen_elements(statistics, basis_info, weigher_key) if check_seen and basis_info else None,
        energy_field=energy_field,
        forces_field=forces_field,
        basis_info=basis_info,
        coordinates=statistics.attributes.get("coordinates"),
        training_range=None
        if basis_info is None
        else TrainingRange.from_dataset_statistics(statistics, basis_info, weigher_key),
        unit=unit,
    )


def _reference(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    reference: AtomRefConfig | LinearReferencesConfig | None,
    weigher_key: str,
    atomic_numbers_field: str,
    unit: str,
) -> Reference | None:
    if reference is None:
        return None
    if isinstance(reference, AtomRefConfig):
        return AtomRef.from_dataset_statistics(statistics, basis_info, weigher_key, reference.scalar_only)
    base = None
    if reference.base is not None:
        base = create_element_references(reference.base, target=reference.target)
        base.element_references *= conversion(reference.unit or unit, unit, "config: data.reference.unit")
    references = LinearReferences.from_dataset_statistics(
        statistics,
        basis_info,
        weigher_key,
        max_num_elements=reference.max_num_elements,
        unseen_elements=reference.unseen_elements,
        atomic_numbers_field=atomic_numbers_field,
        ridge=reference.ridge,
        count_by=reference.count_by,
        base=base,
    )
    report = references.fit_report
    if report is not None and report.moved is not None:
        logger.info("%s: %s", reference.base, moved_text(report.atomic_numbers, report.moved, f" [{unit}]"))
    return references


def linear_references(reference: LinearReferencesConfig, unit: str = "hartree") -> LinearReferences | None:
    """Returns the references that a configuration gives, in a unit; None if they are to be fitted.

    Args:
        reference: Where the values come from.
        unit: Unit of the references that are returned.
    """
    if reference.file is not None:
        references = create_element_references(reference.file, target=reference.target)
    elif reference.values is not None:
        references = references_from_values(reference.values, reference.max_num_elements)
    else:
        return None
    references.element_references *= conversion(reference.unit or unit, unit, "config: data.reference.unit")
    references.unseen_elements = reference.unseen_elements
    return references


def with_residuals(
    statistics: DatasetStatistics,
    weigher_key: str,
    config: AtomRefConfig | LinearReferencesConfig | None,
    reference: Reference | None,
    basis_info: BasisInfo | None,
) -> DatasetStatistics:
    """Returns the statistics with what references leave of the energies, where those are no references of the fit.

    Args:
        statistics: Of the training split.
        weigher_key: Whose statistics are used.
        config: Which references these are.
        reference: The references themselves.
        basis_info: The basis; None: the statistics' attributes name their elements.

    Raises:
        NormalizationError: If an element of the training split has no reference.
    """
    if config is None or config.statistics_name not in OTHER_REFERENCES:
        return statistics
    found: Mapping[str, float] = {}
    if isinstance(reference, DatasetReferences):
        found = reference.residuals
    elif isinstance(reference, LinearReferences) and f"{weigher_key}/energy_factor" in statistics:
        found = _residuals(statistics, weigher_key, reference, basis_info)
    folder = f"{weigher_key}/energy_minus_{config.statistics_name}"
    return statistics.with_arrays({f"{folder}/{name}": np.array(value) for name, value in found.items()})


def _residuals(
    statistics: DatasetStatistics, weigher_key: str, references: LinearReferences, basis_info: BasisInfo | None
) -> dict[str, float]:
    factor = torch.as_tensor(statistics.load_statistic(weigher_key, "energy_factor"))
    numbers = torch.as_tensor(statistics.elements(basis_info))
    references.check_numbers(numbers[torch.as_tensor(statistics.load_statistic(weigher_key, "n_atoms") > 0)])
    # absent elements have columns of zeros, whatever their reference
    values = references.element_references[numbers.clamp(max=references.max_num_elements)]
    turned = factor @ torch.cat([values.new_zeros(1), -values, values.new_ones(1)])
    mean, std = float(turned[0] / factor[0, 0]), float(turned[1:].norm() / factor[0, 0])
    return {"mean": mean, "std": std, "rms": math.hypot(mean, std)}


def check_basis(statistics: DatasetStatistics, basis_info: BasisInfo, weigher_key: str) -> None:
    """Refuses statistics that were taken in another basis.

    Args:
        statistics: Statistics that are to be used.
        basis_info: Basis of the data.
        weigher_key: The weigher whose statistics are used.

    Raises:
        StatisticsError: With both bases.
    """
    where = statistics.path or "the statistics"
    stored = statistics.attributes.get("basis_info")
    # compared as bases: what version 0.1.0 stored names no order of p shells
    if stored is not None and BasisInfo(**stored) != basis_info:
        raise StatisticsError(
            f"{where}: made for the basis {BasisInfo(**stored)}, but the labels have {basis_info} "
            "(config: data.statistics.path, data.source.basis_info)"
        )
    shape = statistics.load_statistic(weigher_key, "coeffs/mean").shape
    if shape != (basis_info.n_basis,):
        raise StatisticsError(
            f"{where}: {weigher_key}/coeffs/mean has shape {shape}, but the basis has {basis_info.n_basis} functions: "
            "the statistics belong to another basis (config: data.statistics.path, data.source.basis_info)"
        )


def _seen_elements(statistics: DatasetStatistics, basis_info: BasisInfo, weigher_key: str) -> Tensor:
    """Returns (119,) bool by atomic number; statistics without counts show unseen elements by zeros throughout."""
    if f"{weigher_key}/n_atoms" in statistics:
        seen = statistics.load_statistic(weigher_key, "n_atoms") > 0
    else:
        largest = statistics.load_statistic(weigher_key, "coeffs/abs_max")
        seen = np.array([largest[i].any() for i in basis_info.atom_ind_to_basis_function_ind])
    flags = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool)
    flags[basis_info.atomic_numbers[seen]] = True
    return flags
