"""Builds a normaliser from statistics and settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.errors import ConfigError, StatisticsError, did_you_mean
from ofdft_norm.normalization.atom_ref import AtomRef, AtomRefConfig
from ofdft_norm.normalization.base import Reference, check_basis
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling, RescalingConfig
from ofdft_norm.normalization.fit_references import fit_references_by_dataset
from ofdft_norm.normalization.linear_references import DatasetReferences, LinearReferences, LinearReferencesConfig
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.reference_files import read_given_references
from ofdft_norm.normalization.training_range import TrainingRange
from ofdft_norm.statistics.references import ATOM_REFERENCES, LINEAR_REFERENCES, linear_residual
from ofdft_norm.statistics.store import DatasetStatistics, ResidualStatistics
from ofdft_norm.units import conversion

_SCALES = {"std": "std", "rmsd": "rms", "mae": "mae"}

# smaller scales are rounding of energies that a reference explains exactly
_SMALLEST_SCALE = 1e-10


@dataclass(frozen=True)
class NormalizerSettings:
    """Settings of a normaliser.

    Attributes:
        reference: Which reference to subtract; None: none.
        rescaling: How to rescale; None: not at all.
        energy_scale: A number [`unit`], or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether those are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses atoms of elements that were not seen, ``identity`` lets them pass.
        unit: Unit of the energies.
    """

    reference: AtomRefConfig | LinearReferencesConfig | None = None
    rescaling: RescalingConfig | None = None
    energy_scale: float | str = 1.0
    energy_scale_per_atom: bool = False
    unseen_elements: str = "error"
    unit: str = "hartree"

    def check(self, basis_info: BasisInfo | None) -> None:
        """Raises ConfigError for settings that need density coefficients where the samples have none."""
        if basis_info is None and (isinstance(self.reference, AtomRefConfig) or self.rescaling is not None):
            raise ConfigError(
                "the atomic reference and rescaling need density coefficients, which the samples lack (config: "
                "data.source.basis_info is not given): choose data/reference=linear (or fixed, none) and "
                "data/rescaling=none"
            )

    def describe_difference(self, normalizer: Normalizer) -> str:
        """Returns the differences between these settings and a normaliser in words; empty if there are none."""
        by = isinstance(self.reference, LinearReferencesConfig) and self.reference.by is not None
        linear = "DatasetReferences" if by else "LinearReferences"
        expected = {
            "reference": {AtomRefConfig: "AtomRef", LinearReferencesConfig: linear}.get(type(self.reference), "none"),
            "rescaling": "none" if self.rescaling is None else "DimensionWiseRescaling",
            "unit": self.unit,
        }
        found = {"reference": normalizer.reference, "rescaling": normalizer.rescaling}
        names = {name: "none" if part is None else type(part).__name__ for name, part in found.items()}
        names["unit"] = normalizer.unit
        return "; ".join(f"{key}: {name} against {names[key]}" for key, name in expected.items() if name != names[key])


@dataclass(frozen=True)
class NormalizedFields:
    """Names of the fields of samples that are not density fields.

    Attributes:
        energy: Field of the energies.
        forces: Field of the forces; None: there are none.
        atomic_numbers: Field of the atomic numbers.
    """

    energy: str = "energy_label"
    forces: str | None = None
    atomic_numbers: str = "atomic_numbers"


def build_normalizer(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    settings: NormalizerSettings,
    fields: NormalizedFields | None = None,
    weigher_key: str = "has_energy_label",
    by_dataset: DatasetReferences | None = None,
) -> Normalizer:
    """Builds the normaliser of some settings from statistics of the training split.

    Args:
        statistics: Of the training split, with energies in `settings.unit`.
        basis_info: The basis of the samples; None for samples without density coefficients.
        settings: What the normaliser consists of.
        fields: Names of fields; None: the default ones.
        weigher_key: Key of the weigher whose statistics are used.
        by_dataset: References of each data set, where `settings.reference.by` asks for them.

    Raises:
        StatisticsError: If the statistics lack a key or belong to another basis.
        ConfigError: If a setting is unknown or out of range.
    """
    fields = fields or NormalizedFields()
    settings.check(basis_info)
    options: dict[str, Any] = {}
    if basis_info is not None:
        check_basis(statistics, basis_info, len(statistics.load_statistic(weigher_key, "coeffs/mean")))
        options["training_range"] = TrainingRange.from_dataset_statistics(statistics, basis_info, weigher_key)
        if settings.unseen_elements == "error":
            options["seen_elements"] = find_seen_elements(statistics, basis_info, weigher_key)
    if settings.rescaling is not None:
        config = settings.rescaling
        s_grad = config.s_grad * conversion("hartree", settings.unit)
        options["rescaling"] = DimensionWiseRescaling.from_dataset_statistics(
            statistics, basis_info, weigher_key, config.equivariant, config.s_coeff, s_grad, config.epsilon
        )
    reference = by_dataset or _build_reference(statistics, basis_info, settings, fields, weigher_key)
    return Normalizer(
        reference,
        energy_scale=resolve_energy_scale(settings, statistics, weigher_key, reference, basis_info),
        energy_field=fields.energy,
        forces_field=fields.forces,
        basis_info=basis_info,
        coordinates=statistics.attributes.get("coordinates"),
        unit=settings.unit,
        **options,
    )


def fit_references_of_config(
    dataset: Any, config: LinearReferencesConfig, fields: NormalizedFields
) -> DatasetReferences:
    """Fits the references of `config.by` on the training split, on all ranks together."""
    names = ("max_num_elements", "ridge", "unseen_elements", "count_by")
    options = {name: getattr(config, name) for name in names}
    options |= {"atomic_numbers_field": fields.atomic_numbers, "distributed": True}
    return fit_references_by_dataset([fields.energy], dataset, str(config.by), **options)[fields.energy]


def _build_reference(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    settings: NormalizerSettings,
    fields: NormalizedFields,
    weigher_key: str,
) -> Reference | None:
    config = settings.reference
    if config is None:
        return None
    if isinstance(config, AtomRefConfig):
        return AtomRef.from_dataset_statistics(statistics, basis_info, weigher_key, config.scalar_only)
    given = read_given_references(config, settings.unit)
    if given is not None and config.base is None:
        given.atomic_numbers_field = fields.atomic_numbers
        return given
    return LinearReferences.from_dataset_statistics(
        statistics,
        basis_info,
        weigher_key,
        config.count_by,
        config.ridge,
        given,
        config.max_num_elements,
        unseen_elements=config.unseen_elements,
        atomic_numbers_field=fields.atomic_numbers,
    )


def find_residual(
    statistics: DatasetStatistics, weigher_key: str, reference: Reference | None, basis_info: BasisInfo | None
) -> tuple[str, ResidualStatistics | None]:
    """Returns the name of a reference, one of `REFERENCES` if it is stored, and the energies minus it.

    Without a reference these are the energies. References that are given, or fitted with a ridge or a base, have no
    `mae` and `abs_max`.
    """
    weigher = statistics[weigher_key]
    if reference is None:
        return "none", weigher.energy
    if isinstance(reference, DatasetReferences):
        found = reference.residuals
        return "by data set", ResidualStatistics(**found, abs_max=None) if found else None
    numbers = statistics.elements(basis_info)
    if isinstance(reference, AtomRef):
        values = reference.t_z.cpu().numpy()
    elif isinstance(reference, LinearReferences):
        table, own = np.zeros(MAX_ATOMIC_NUMBER + 1), reference.element_references[: MAX_ATOMIC_NUMBER + 1]
        table[: len(own)] = own.cpu().numpy()
        values = table[numbers]
    for name in ATOM_REFERENCES if isinstance(reference, AtomRef) else LINEAR_REFERENCES:
        fitted = weigher.reference(name)
        if fitted is not None and np.array_equal(values, fitted.t_z):
            return name, fitted.residual
    if not isinstance(reference, LinearReferences) or weigher.energy_factor is None:
        return "other", None
    seen = torch.as_tensor(numbers)[torch.as_tensor(weigher.load("n_atoms") > 0)]
    reference.check_numbers(seen.to(reference.seen_elements.device), "the training split")
    mean, std = linear_residual(weigher.energy_factor, values)
    name = "given" if reference.fit_report is None else "linear, changed"
    return name, ResidualStatistics(mean, std, math.hypot(mean, std), None, None)


def resolve_energy_scale(
    settings: NormalizerSettings,
    statistics: DatasetStatistics,
    weigher_key: str,
    reference: Reference | None,
    basis_info: BasisInfo | None = None,
) -> float:
    """Returns the energy scale of the settings as a number.

    With r = E - E_ref of the labelled training samples, by weight: ``std`` is sqrt(<(r - <r>)^2>), ``rmsd`` is
    sqrt(<r^2>), ``mae`` is <|r|>. Without a reference r is the deviation from the mean energy. A number is used as it
    is, whatever `energy_scale_per_atom`.
    """
    spec = settings.energy_scale
    if isinstance(spec, int | float) and not isinstance(spec, bool) and 0 < spec < math.inf:
        return float(spec)
    if spec not in _SCALES:
        raise ConfigError(
            f"energy_scale = {spec!r}: expected a positive number (in data.unit) or one of {sorted(_SCALES)}"
            f"{did_you_mean(str(spec), _SCALES)} (config: data.energy_scale)"
        )
    _, residual = find_residual(statistics, weigher_key, reference, basis_info)
    name = "std" if spec == "rmsd" and reference is None else _SCALES[spec]
    scale: float | None = None if residual is None else getattr(residual, name)
    if scale is None:
        raise StatisticsError(
            f"energy_scale = {spec!r} is not known for {weigher_key!r}: set data.statistics.residuals=true; "
            "for references that are given, or fitted with a ridge, choose std or rmsd (config: data.energy_scale)"
        )
    if scale < _SMALLEST_SCALE:
        raise StatisticsError(
            f"energy_scale = {spec!r} is {scale:.3g}: the reference explains the training energies exactly: give a "
            "number (config: data.energy_scale=1.0)"
        )
    if not settings.energy_scale_per_atom:
        return scale
    weigher = statistics[weigher_key]
    return float(scale * weigher.load("n_samples") / weigher.load("n_atoms").sum())


def find_seen_elements(statistics: DatasetStatistics, basis_info: BasisInfo, weigher_key: str) -> Tensor:
    """Returns (119,) bool by atomic number; without atom counts, unseen elements are those with zeros throughout."""
    n_atoms = statistics[weigher_key].n_atoms
    if n_atoms is None:
        largest = statistics.load_statistic(weigher_key, "coeffs/abs_max")
        n_atoms = np.array([largest[i].any() for i in basis_info.atom_ind_to_basis_function_ind])
    flags = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool)
    flags[basis_info.atomic_numbers[n_atoms > 0]] = True
    return flags
