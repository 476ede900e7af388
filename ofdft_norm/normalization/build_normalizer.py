"""Builds a normaliser from statistics and settings."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.elements import find_symbol
from ofdft_norm.data.sources import Source
from ofdft_norm.errors import ConfigError, StatisticsError, did_you_mean
from ofdft_norm.normalization.atom_ref import AtomRef, AtomRefConfig
from ofdft_norm.normalization.base import Reference, check_basis
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling, RescalingConfig
from ofdft_norm.normalization.fit_references import fit_references_by_dataset
from ofdft_norm.normalization.linear_references import DatasetReferences, LinearReferences, LinearReferencesConfig
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.reference_files import read_given_references, references_from_values
from ofdft_norm.normalization.training_range import TrainingRange
from ofdft_norm.statistics.references import ATOM_REFERENCES, LINEAR_REFERENCES, compute_linear_residual
from ofdft_norm.statistics.store import DatasetStatistics, ResidualStatistics, WeigherStatistics
from ofdft_norm.units import find_factor

_SCALES = {"std": "std", "rmsd": "rms", "mae": "mae"}
_SMALLEST_SCALE = 1e-10  # smaller scales are rounding: the reference explains the energies exactly


@dataclass(frozen=True)
class NormalizerSettings:
    """Settings of a normaliser; those of `OFDFTDataModule`, which documents them."""

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
                "the atomic reference and rescaling need density coefficients, which the samples lack: give "
                "data.source.basis_info, or choose data/reference=linear (fixed, none) and data/rescaling=none"
            )

    def describe_difference(self, normalizer: Normalizer) -> str:
        """Describes the differences between these settings and a normaliser; empty if there are none."""
        linear = LinearReferences if getattr(self.reference, "by", None) is None else DatasetReferences
        kinds: dict[type, type] = {AtomRefConfig: AtomRef, LinearReferencesConfig: linear}
        kinds |= {RescalingConfig: DimensionWiseRescaling, type(None): type(None)}
        pairs: dict[str, tuple[Any, Any]] = {"unit": (self.unit, normalizer.unit)}
        for name in ("reference", "rescaling"):
            pairs[name] = (kinds[type(getattr(self, name))].__name__, type(getattr(normalizer, name)).__name__)
        if self.rescaling is not None and normalizer.rescaling is not None:
            pairs["s_coeff"] = (self.rescaling.s_coeff, normalizer.rescaling.s_coeff)
            pairs["s_grad"] = (self.rescaling.s_grad * find_factor("hartree", self.unit), normalizer.rescaling.s_grad)
        if not isinstance(self.energy_scale, str):
            pairs["energy_scale"] = (float(self.energy_scale), float(normalizer.energy_scale))
        return "; ".join(f"{name}: {a} against {b}" for name, (a, b) in sorted(pairs.items()) if a != b)


def build_normalizer(
    statistics: DatasetStatistics,
    basis_info: BasisInfo | None,
    settings: NormalizerSettings,
    source: Source = Source(),  # noqa: B008 (frozen)
    weigher_key: str = "has_energy_label",
    open_dataset: Callable[[], Any] | None = None,
    isolated_atoms: Mapping[int, float] | None = None,
) -> Normalizer:
    """Builds the normaliser of some settings from statistics of the training split, with energies in `settings.unit`.

    `source` has the names of the samples' fields. `open_dataset` opens the training split for references that are not
    in the statistics; `isolated_atoms` are the energies by atomic number of `settings.reference.isolated_atoms`.
    """
    rescaling = training_range = seen_elements = None
    if basis_info is not None:
        check_basis(statistics, basis_info, len(statistics.load_statistic(weigher_key, "coeffs/mean")))
        training_range = TrainingRange.from_dataset_statistics(statistics, basis_info, weigher_key)
        if settings.unseen_elements == "error":
            seen_elements = _find_seen_elements(statistics[weigher_key], basis_info)
    if (config := settings.rescaling) is not None:
        s_grad = config.s_grad * find_factor("hartree", settings.unit)
        rescaling = DimensionWiseRescaling.from_dataset_statistics(
            statistics, basis_info, weigher_key, config.equivariant, config.s_coeff, s_grad, config.epsilon
        )
    reference: Reference | None = None
    if isinstance(settings.reference, AtomRefConfig):
        reference = AtomRef.from_dataset_statistics(statistics, basis_info, weigher_key, settings.reference.scalar_only)
    elif (linear := settings.reference) is not None and linear.by is not None and open_dataset is not None:
        names, energy = ("max_num_elements", "ridge", "unseen_elements", "count_by"), source.energy_field
        options = {name: getattr(linear, name) for name in names}
        options |= {"atomic_numbers_field": source.atomic_numbers_field, "distributed": True}
        reference = fit_references_by_dataset([energy], open_dataset(), linear.by, **options)[energy]
    elif linear is not None:
        given = read_given_references(linear, settings.unit)
        if isolated_atoms is not None:
            given = references_from_values(isolated_atoms, linear.max_num_elements)
            if linear.isolated_atoms == "error":
                _refuse_other_elements(statistics, weigher_key, isolated_atoms)
        if given is None or linear.base is not None or isolated_atoms is not None:
            options = {name: getattr(linear, name) for name in ("count_by", "ridge", "max_num_elements")}
            options |= {"base": given, "keep_base": isolated_atoms is not None}
            given = LinearReferences.from_dataset_statistics(statistics, basis_info, weigher_key, **options)
        given.unseen_elements, given.atomic_numbers_field = linear.unseen_elements, source.atomic_numbers_field
        reference = given
    return Normalizer(
        reference,
        rescaling,
        energy_scale=_resolve_energy_scale(settings, statistics, weigher_key, reference, basis_info),
        seen_elements=seen_elements,
        energy_field=source.energy_field,
        forces_field=source.forces_field,
        basis_info=basis_info,
        coordinates=statistics.attributes.get("coordinates"),
        training_range=training_range,
        unit=settings.unit,
        stress_field=source.stress_field,
    )


def _refuse_other_elements(statistics: DatasetStatistics, weigher_key: str, known: Mapping[int, float]) -> None:
    """Raises ConfigError for elements of the training split without an isolated atom."""
    n_atoms = statistics.load_statistic(weigher_key, "n_atoms").tolist()
    missing = [find_symbol(z) for z, n in zip(statistics.elements(), n_atoms, strict=True) if n and z not in known]
    if missing:
        raise ConfigError(
            f"the data have isolated atoms of {[find_symbol(z) for z in sorted(known)]}, but none of {missing}: add "
            "their frames, or let the fit find their references (config: data.reference.isolated_atoms=fit)"
        )


def _find_seen_elements(weigher: WeigherStatistics, basis_info: BasisInfo) -> Tensor:
    """Returns (119,) bool by atomic number; without atom counts, elements with zeros only are unseen."""
    n_atoms = weigher.n_atoms
    if n_atoms is None:
        largest = weigher.load("coeffs/abs_max")
        n_atoms = np.array([largest[i].any() for i in basis_info.atom_ind_to_basis_function_ind])
    flags = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool)
    flags[basis_info.atomic_numbers[n_atoms > 0]] = True
    return flags


def find_residual(
    statistics: DatasetStatistics, weigher_key: str, reference: Any, basis_info: BasisInfo | None
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
    is_atomic = isinstance(reference, AtomRef)
    values = (reference.t_z if is_atomic else reference.element_references).cpu().numpy()
    if not is_atomic:
        numbers = statistics.elements(basis_info)
        values = np.pad(values, (0, MAX_ATOMIC_NUMBER))[numbers]
    for name in ATOM_REFERENCES if is_atomic else LINEAR_REFERENCES:
        if np.array_equal(values, weigher.get(f"{name}_atom_type_bias")):
            return name, weigher.residual(name)
    if is_atomic or weigher.energy_factor is None:
        return "other", None
    seen = torch.as_tensor(numbers)[torch.as_tensor(weigher.load("n_atoms") > 0)]
    reference.check_numbers(seen.to(reference.seen_elements.device), "the training split")
    mean, std = compute_linear_residual(weigher.energy_factor, values)
    report = getattr(reference, "fit_report", None)
    name = "given" if report is None else "linear, changed" if report.fitted is None else "isolated atoms"
    return name, ResidualStatistics(mean, std, math.hypot(mean, std), None, None)


def _resolve_energy_scale(
    settings: NormalizerSettings,
    statistics: DatasetStatistics,
    weigher_key: str,
    reference: Reference | None,
    basis_info: BasisInfo | None,
) -> float:
    """Returns the energy scale of the settings as a number.

    With r = E - E_ref of the labelled training samples, by weight: ``std`` is sqrt(<(r - <r>)^2>), ``rmsd`` is
    sqrt(<r^2>), ``mae`` is <|r|>. Without a reference r is the deviation from the mean energy.
    """
    spec = settings.energy_scale
    if isinstance(spec, int | float) and not isinstance(spec, bool):
        return float(spec)
    if spec not in _SCALES:
        raise ConfigError(
            f"energy_scale = {spec!r}: expected a positive number (in data.unit) or one of {sorted(_SCALES)}"
            f"{did_you_mean(str(spec), _SCALES)} (config: data.energy_scale)"
        )
    _, residual = find_residual(statistics, weigher_key, reference, basis_info)
    name = "std" if spec == "rmsd" and reference is None else _SCALES[spec]
    scale: float | None = getattr(residual, name, None)
    if scale is None:
        raise StatisticsError(
            f"energy_scale = {spec!r} is not known for {weigher_key!r}: set data.statistics.residuals=true; "
            "for references that are given, or fitted with a ridge, choose std or rmsd (config: data.energy_scale)"
        )
    if scale < _SMALLEST_SCALE:
        what = f"energy_scale = {spec!r} is {scale:.3g}: the reference explains the training energies exactly"
        raise StatisticsError(f"{what}: give a number (config: data.energy_scale=1.0)")
    if not settings.energy_scale_per_atom:
        return scale
    weigher = statistics[weigher_key]
    return float(scale * weigher.load("n_samples") / weigher.load("n_atoms").sum())
