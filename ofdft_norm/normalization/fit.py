"""From a training split to a normaliser: the one place that decides what is fitted, reused or given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofdft_norm.config import AtomicReference, LinearReference, Rescaling, Statistics, WrappedData
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import ConfigError
from ofdft_norm.normalization.build import build_normalizer, linear_references
from ofdft_norm.normalization.energy_scale import resolve_energy_scale
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.cache import dataset_fingerprint, from_first_rank, load_or_fit
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.energy_statistics import WEIGHER_KEY, energy_statistics
from ofdft_norm.statistics.fit import STATISTICS_VERSION

ReferenceConfig = AtomicReference | LinearReference | None


@dataclass(frozen=True)
class NormalizerSettings:
    """What a normaliser is made of.

    Attributes:
        reference: Which reference to subtract; None: none.
        rescaling: How to rescale; None: not at all.
        energy_scale: A number [hartree], or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether those are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses atoms of elements that were not seen, ``identity`` lets them pass.
    """

    reference: ReferenceConfig
    rescaling: Rescaling | None
    energy_scale: float | str
    energy_scale_per_atom: bool
    unseen_elements: str


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
    dataset: Any, basis_info: BasisInfo, config: Statistics, description: dict[str, str]
) -> FittedStatistics:
    """Returns the statistics of a training split: given, cached, or fitted.

    Args:
        dataset: The training split, with its pre-transforms.
        basis_info: The basis.
        config: How to fit, and where to keep results.
        description: Stored with fitted statistics, for people.

    Raises:
        StatisticsError: See `DatasetStatistics.from_dataset`.
    """
    settings = {
        "statistics_version": STATISTICS_VERSION,
        "weighers": [w.summary_string() for w in config.weighers],
        "initial_guess_weighers": [w.summary_string() for w in config.initial_guess_weighers],
        "with_bias": config.with_bias,
        "min_atoms_per_type": config.min_atoms_per_type,
        "n_batches": config.n_batches,
        "residuals": config.residuals,
    }
    by_contents = config.fingerprint == "contents"
    fingerprint = from_first_rank(lambda: dataset_fingerprint(dataset, basis_info, settings, by_contents))

    def fit() -> DatasetStatistics:
        return DatasetStatistics.from_dataset(
            None,
            dataset,
            basis_info,
            config.weighers,
            config.initial_guess_weighers,
            with_bias=config.with_bias,
            min_atoms_per_type=config.min_atoms_per_type,
            n_batches=config.n_batches,
            residuals=config.residuals,
            progress=config.progress,
            attributes=description,
        )

    folder = None if config.dir is None else Path(config.dir).expanduser()
    statistics, reused = load_or_fit(fingerprint, folder, fit)
    return FittedStatistics(statistics, fingerprint, reused)


def given_statistics(path: str) -> FittedStatistics:
    """Reads the statistics that a configuration gives by path."""
    if not Path(path).expanduser().exists():
        raise ConfigError(f"{path}: no statistics there (config: data.statistics.path)")
    return FittedStatistics(DatasetStatistics(Path(path).expanduser()), None, True)


def fit_normalizer(
    training_split: Callable[[], Any],
    source: Any,
    basis_info: BasisInfo | None,
    config: Statistics,
    settings: NormalizerSettings,
) -> tuple[FittedStatistics, Normalizer]:
    """Returns the statistics of a training split, given, cached or fitted, and the normaliser that follows.

    Args:
        training_split: Opens it; not called where statistics are given.
        source: Where it comes from, of `ofdft_norm.config`.
        basis_info: The basis; None for samples without density coefficients.
        config: How to fit, and where to keep results.
        settings: What the normaliser is made of.

    Raises:
        ConfigError: If the settings do not fit the data.
        StatisticsError: See `DatasetStatistics.from_dataset`.
    """
    if basis_info is None:
        return fit_energies(training_split(), source, settings)
    if config.path is not None:
        fitted = given_statistics(config.path)
    else:
        fitted = statistics_of(training_split(), basis_info, config, {"source": repr(source)[:2000]})
    normalizer = build_normalizer(
        fitted.statistics,
        basis_info,
        settings.reference,
        settings.rescaling,
        config.weigher_key,
        settings.energy_scale,
        settings.energy_scale_per_atom,
        settings.unseen_elements,
    )
    return fitted, normalizer


def fit_energies(
    dataset: Any, source: WrappedData, settings: NormalizerSettings
) -> tuple[FittedStatistics, Normalizer]:
    """Fits samples that have energies (and forces) but no density coefficients.

    Args:
        dataset: The training split.
        source: Names of its fields.
        settings: A linear reference or none, no rescaling, an energy scale.

    Returns:
        Statistics of the energies before and after referencing, and the normaliser.

    Raises:
        ConfigError: If the settings need density coefficients.
    """
    reference = settings.reference
    if isinstance(reference, AtomicReference) or settings.rescaling is not None:
        raise ConfigError(
            "the atomic reference and rescaling need density coefficients, and the samples have none (no "
            "data.source.basis_info is given): choose data/reference=linear (or fixed, none) and data/rescaling=none"
        )
    references = None if reference is None else linear_references(reference)
    if reference is not None and references is None:
        references = fit_linear_references(
            [source.energy_field],
            dataset,
            batch_size=128,
            max_num_elements=reference.max_num_elements,
            shuffle=False,
            ridge=reference.ridge,
            atomic_numbers_field=source.atomic_numbers_field,
            unseen_elements=reference.unseen_elements,
        )[source.energy_field]
    name = None if reference is None else reference.statistics_name
    statistics = energy_statistics(dataset, source.energy_field, None if references is None else references.energy)
    scale = resolve_energy_scale(settings.energy_scale, statistics, WEIGHER_KEY, name, settings.energy_scale_per_atom)
    normalizer = Normalizer(
        reference=references, energy_scale=scale, energy_field=source.energy_field, forces_field=source.forces_field
    )
    return FittedStatistics(statistics, None, False), normalizer
