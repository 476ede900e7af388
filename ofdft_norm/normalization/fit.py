"""From a training split to a normaliser: the one place that decides what is fitted, reused or given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import ConfigError
from ofdft_norm.normalization.atom_ref import AtomRefConfig
from ofdft_norm.normalization.build import build_normalizer, with_residuals
from ofdft_norm.normalization.dataset_references import DatasetReferences, fit_references_by_dataset
from ofdft_norm.normalization.dimension_wise_rescaling import RescalingConfig
from ofdft_norm.normalization.element_references import LinearReferencesConfig
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.cache import dataset_fingerprint, load_or_fit
from ofdft_norm.statistics.config import StatisticsConfig
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.distributed import current_ranks, waiting_at_most
from ofdft_norm.statistics.fit import STATISTICS_VERSION
from ofdft_norm.statistics.origin import coordinates_attribute, origin_of, refuse_other_origin
from ofdft_norm.statistics.sample_weighers import ConstantSampleWeigher

ReferenceConfig = AtomRefConfig | LinearReferencesConfig | None


@dataclass(frozen=True)
class NormalizerSettings:
    """What a normaliser is made of.

    Attributes:
        reference: Which reference to subtract; None: none.
        rescaling: How to rescale; None: not at all.
        energy_scale: A number, or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether those are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses atoms of elements that were not seen, ``identity`` lets them pass.
        unit: Unit of energies.
    """

    reference: ReferenceConfig
    rescaling: RescalingConfig | None
    energy_scale: float | str
    energy_scale_per_atom: bool
    unseen_elements: str
    unit: str = "hartree"


@dataclass(frozen=True)
class FittedStatistics:
    """Statistics of a training split.

    Attributes:
        statistics: The statistics.
        fingerprint: Of what they were fitted on; None where it cannot be told.
        reused: Whether they came from the cache or a given path.
    """

    statistics: DatasetStatistics
    fingerprint: str | None
    reused: bool


def statistics_of(
    dataset: Any,
    basis_info: BasisInfo | None,
    config: StatisticsConfig,
    description: dict[str, Any],
    energy_field: str = "energy_label",
    atomic_numbers_field: str = "atomic_numbers",
) -> FittedStatistics:
    """Returns the statistics of a training split: given, cached, or fitted.

    Args:
        dataset: The training split, with its pre-transforms.
        basis_info: The basis; None: samples that have energies alone, each of which counts.
        config: How to fit, and where to keep results.
        description: Stored with fitted statistics.
        energy_field: Field of the energies.
        atomic_numbers_field: Field of the atomic numbers.

    Raises:
        StatisticsError: See `DatasetStatistics.from_dataset`.
    """
    weighers = [ConstantSampleWeigher()] if basis_info is None else config.weighers
    fingerprint = fingerprint_of(dataset, basis_info, config)

    def fit() -> DatasetStatistics:
        return DatasetStatistics.from_dataset(
            None,
            dataset,
            basis_info,
            weighers,
            [] if basis_info is None else config.initial_guess_weighers,
            with_bias=config.with_bias,
            min_atoms_per_type=config.min_atoms_per_type,
            n_batches=config.n_batches,
            residuals=config.residuals,
            progress=config.progress,
            attributes={
                **description,
                **coordinates_attribute(dataset),
                **({} if fingerprint is None else {"fingerprint_by": config.fingerprint}),
            },
            energy_field=energy_field,
            atomic_numbers_field=atomic_numbers_field,
        )

    statistics, reused = load_or_fit(fingerprint, _folder(config), fit, config.trust_shared)
    return FittedStatistics(statistics, fingerprint, reused)


def _opened(training_split: Callable[[], Any]) -> Any:
    """Opens the training split; where one rank cannot, all stop, instead of waiting for it."""
    error: Exception | None = None
    dataset = None
    ranks = current_ranks()  # first: whoever stops while it reads is missed by the others
    try:
        dataset = training_split()
    except Exception as caught:
        error = caught
    ranks.raise_together(error)
    return dataset


def fingerprint_of(dataset: Any, basis_info: BasisInfo | None, config: StatisticsConfig) -> str | None:
    """Returns what statistics of a training split are recognised by, the same on all ranks; None where it has none.

    Args:
        dataset: The raw training split.
        basis_info: The density basis, if there is one.
        config: What is fitted, and how.
    """
    settings = {
        "statistics_version": STATISTICS_VERSION,
        "weighers": list(config.weighers),
        "initial_guess_weighers": list(config.initial_guess_weighers),
        "with_bias": config.with_bias,
        "min_atoms_per_type": config.min_atoms_per_type,
        "n_batches": config.n_batches,
        "residuals": config.residuals,
    }
    with waiting_at_most(config.rank_timeout):
        return dataset_fingerprint(dataset, basis_info, settings, config.fingerprint == "contents", _folder(config))


def _folder(config: StatisticsConfig) -> Path | None:
    return None if config.dir is None else Path(config.dir).expanduser()


def given_statistics(path: str) -> FittedStatistics:
    """Reads the statistics that a configuration gives by path.

    Args:
        path: A zarr store of statistics.
    """
    return FittedStatistics(DatasetStatistics(Path(path).expanduser(), create_store=False), None, True)


def fit_normalizer(
    training_split: Callable[[], Any],
    source: Any,
    basis_info: BasisInfo | None,
    config: StatisticsConfig,
    settings: NormalizerSettings,
    pre_transforms: Sequence[Callable[..., Any]],
) -> tuple[FittedStatistics, Normalizer]:
    """Returns the statistics of a training split, given, cached or fitted, and the normaliser that follows.

    Args:
        training_split: Opens it; not called where statistics are given.
        source: Where it comes from, of `ofdft_norm.config`.
        basis_info: The basis; None for samples without density coefficients.
        config: How to fit, and where to keep results.
        settings: What the normaliser is made of.
        pre_transforms: What happens to samples before statistics are taken.

    Raises:
        ConfigError: If the settings do not fit the data.
        StatisticsError: If given statistics were taken after other pre-transforms or of another target; see also
            `DatasetStatistics.from_dataset`.
    """
    if basis_info is None and (isinstance(settings.reference, AtomRefConfig) or settings.rescaling is not None):
        raise ConfigError(
            "the atomic reference and rescaling need density coefficients, and the samples have none (no "
            "data.source.basis_info is given): choose data/reference=linear (or fixed, none) and data/rescaling=none"
        )
    energy_field = getattr(source, "energy_field", "energy_label")
    atomic_numbers_field = getattr(source, "atomic_numbers_field", "atomic_numbers")
    energy_key, gradient_key = getattr(source, "energy_key", None), getattr(source, "gradient_key", None)
    origin = origin_of(pre_transforms, energy_key, gradient_key, settings.unit)
    if config.path is not None:
        fitted = given_statistics(config.path)
        refuse_other_origin(fitted.statistics, origin)
    else:
        with waiting_at_most(config.rank_timeout):
            fitted = statistics_of(
                _opened(training_split),
                basis_info,
                config,
                {"source": repr(source)[:2000], **origin},
                energy_field,
                atomic_numbers_field,
            )
    by_dataset = None
    if isinstance(settings.reference, LinearReferencesConfig) and settings.reference.by is not None:
        with waiting_at_most(config.rank_timeout):
            by_dataset = _of_datasets(_opened(training_split), settings.reference, energy_field, atomic_numbers_field)
    weigher_key = "constant" if basis_info is None else config.weigher_key
    normalizer = build_normalizer(
        fitted.statistics,
        basis_info,
        settings.reference,
        settings.rescaling,
        weigher_key,
        settings.energy_scale,
        settings.energy_scale_per_atom,
        settings.unseen_elements,
        energy_field,
        getattr(source, "forces_field", None),
        atomic_numbers_field,
        by_dataset,
        settings.unit,
    )
    # summaries and loggers tell what the reference that is used leaves
    statistics = with_residuals(fitted.statistics, weigher_key, settings.reference, normalizer.reference, basis_info)
    return replace(fitted, statistics=statistics), normalizer


def _of_datasets(
    dataset: Any, reference: LinearReferencesConfig, energy_field: str, atomic_numbers_field: str
) -> DatasetReferences:
    """Fits references for each data set of the training split."""
    return fit_references_by_dataset(
        [energy_field],
        dataset,
        str(reference.by),
        max_num_elements=reference.max_num_elements,
        ridge=reference.ridge,
        atomic_numbers_field=atomic_numbers_field,
        unseen_elements=reference.unseen_elements,
        count_by=reference.count_by,
        distributed=True,
    )[energy_field]
