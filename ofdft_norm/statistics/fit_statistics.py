"""The fit of all statistics in two passes: moments of each dimension, then one row for each sample."""

import datetime
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import MoleculeDataset
from ofdft_norm.data.files import find_package_version
from ofdft_norm.data.sample import find_molecule_index, get_field
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.settings import Positive, PositiveInt, Settings
from ofdft_norm.statistics.distributed import DEFAULT_MINUTES, find_ranks
from ofdft_norm.statistics.energy_table import N_WORST, Arrays, fit_table, read_energy_table
from ofdft_norm.statistics.moments import Moments, WeighedBatch
from ofdft_norm.statistics.reading import Reader, SampleBatch, make_reader
from ofdft_norm.statistics.references import ATOM_REFERENCES, LINEAR_REFERENCES, REFERENCES, make_reference_gradient
from ofdft_norm.statistics.weighers import (
    HasEnergyLabelSampleWeigher,
    SampleWeigher,
    check_keys,
    find_labelled,
    weigh_samples,
)
from ofdft_norm.transforms.coordinates import read_coordinates

# Fields of energies and atomic numbers.
FIELDS = ("energy_label", "atomic_numbers")
# Increased when a change of code changes the results of a fit: part of the fingerprint of cached statistics.
STATISTICS_VERSION = 7
# Attribute of statistics with `Moments.holders` of the gradient, by weigher.
GRADIENT_HOLDERS = "gradient_holders"


class StatisticsConfig(Settings):
    """How statistics of the training split are fitted, and where results are kept.

    Attributes:
        dir: Folder of fitted statistics, one file for each fingerprint; None: ``$OFDFT_NORM_CACHE``, else
            ``~/.cache/ofdft_norm/statistics``.
        path: Statistics to use instead of a fit.
        weigher_key: Key of the weigher that selects the statistics of the normaliser.
        weighers: Sample weighers of coefficients, gradients and references.
        initial_guess_weighers: Sample weighers of the initial guess's deviation from the ground state.
        with_bias: Whether the atomic reference has a constant.
        min_atoms_per_type: An element with fewer atoms than this is an error.
        n_batches: Fit on the first batches of 32 molecules only; None: on all molecules.
        residuals: Whether `mae` and `abs_max` of residuals and the worst molecules are found.
        fingerprint: ``mtime`` recognises label files by size and modification time, ``contents`` by their contents.
        rank_timeout: Minutes that ranks wait for one another.
        progress: Whether a progress bar is shown.
    """

    dir: str | None = None
    path: str | None = None
    weigher_key: str = "has_energy_label"
    weighers: Sequence[SampleWeigher] = (HasEnergyLabelSampleWeigher(),)
    initial_guess_weighers: Sequence[SampleWeigher] = ()
    with_bias: bool = True
    min_atoms_per_type: PositiveInt = 1
    n_batches: PositiveInt | None = None
    residuals: bool = True
    fingerprint: Literal["mtime", "contents"] = "mtime"
    rank_timeout: Positive = DEFAULT_MINUTES
    progress: bool = True
    config_key = "data.statistics"

    def __post_init__(self) -> None:
        keys = [w.summary_string() for w in self.weighers]
        if self.path is None and self.weigher_key not in keys:
            what = f"data.statistics.weigher_key = {self.weigher_key!r} is not among the fitted weighers {keys}"
            raise ConfigError(f"{what} (config: data.statistics.weighers)")


def fit_statistics(
    dataset: Any, basis_info: BasisInfo | None, config: StatisticsConfig, fields: tuple[str, str] = FIELDS
) -> tuple[Arrays, dict[str, Any]]:
    """Returns the arrays and attributes of `DatasetStatistics`, the same bits on every rank."""
    energy_field, atomic_numbers_field = fields
    ranks = find_ranks(config.rank_timeout)
    with ranks.exchange():
        if isinstance(dataset, MoleculeDataset):
            dataset.verify()
        options: Any = {"atomic_numbers": atomic_numbers_field, "progress": config.progress}
        reader = make_reader(dataset, ranks, config.n_batches, **options)
    weighers, n = [*config.weighers, *config.initial_guess_weighers], len(config.weighers)
    check_keys(weighers)
    keys = [weigher.summary_string() for weigher in weighers]
    arrays: Arrays = {}
    holders: dict[str, Any] = {}
    gradients = coordinates = None
    if basis_info is not None:
        arrays, holders, coordinates = _fit_moments(reader, basis_info, weighers, n)
        _refuse_non_finite(arrays)
        means = [arrays[f"{key}/gradient_label/mean"] for key in keys[:n]]
        gradients = np.array(
            [[make_reference_gradient(name, gbar, basis_info) for name in ATOM_REFERENCES] for gbar in means]
        )
    table = read_energy_table(reader, weighers, [energy_field], basis_info, gradients)
    names = LINEAR_REFERENCES if basis_info is None else REFERENCES
    n_worst = N_WORST if config.residuals else None
    found, worst = fit_table(table, keys, names, with_bias=config.with_bias, n_worst=n_worst)
    arrays |= found
    _refuse_non_finite(arrays)
    _check_atoms(arrays, keys, table.elements.tolist(), config.min_atoms_per_type, basis_info is not None)
    attributes = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "created_by": f"ofdft_norm {find_package_version()}",
        "statistics_version": STATISTICS_VERSION,
        "basis_info": None if basis_info is None else basis_info.to_dict(),
        "atomic_numbers": table.elements.tolist(),
        "with_bias": config.with_bias,
        "n_batches": config.n_batches,
        "coordinates": coordinates,
        GRADIENT_HOLDERS: holders,
        **worst,
    }
    return reader.ranks.gather((arrays, attributes))[0]  # the same bits on every rank


def _fit_moments(
    reader: Reader, basis_info: BasisInfo, weighers: Sequence[SampleWeigher], n: int
) -> tuple[Arrays, dict[str, Any], str | None]:
    """Makes the first pass; the weighers from the n-th on are those of the initial guess.

    Returns arrays, `Moments.holders` of the gradient by weigher, and the coordinates.
    """
    coordinates: set[str] = set()
    # rows of weights: n of labelled samples, n of all samples, 1 that counts every sample, the initial guess's
    gradient = Moments("gradient_label", slice(0, n), basis_info.n_basis)
    coeffs = Moments("coeffs", slice(n, 2 * n + 1), basis_info.n_basis)
    delta = Moments("initial_guess_delta", slice(2 * n + 1, n + 1 + len(weighers)), basis_info.n_basis)

    def update(batch: SampleBatch) -> None:
        if get_field(batch.data, "coordinates") is not None:
            coordinates.add(read_coordinates(batch.data))
        weights = weigh_samples(weighers, batch.data).numpy()
        labelled = weights[:n] * find_labelled(batch.data).numpy()
        everything = np.ones((1, batch.n_samples))
        values = batch.vector("coeffs")
        with np.errstate(all="ignore"):
            if not np.isfinite(values.sum()):  # values of samples with weight 0 are arbitrary
                sums = np.bincount(find_molecule_index(batch.data).cpu().numpy(), values, batch.n_samples)
                everything[0, ~weights[:n].any(0) & ~np.isfinite(sums)] = 0
        weighed = WeighedBatch(batch, np.concatenate([labelled, weights[:n], everything, weights[n:]]), basis_info)
        for moments in (gradient, coeffs, delta):
            moments.update(weighed)

    fields = ["coordinates", "coeffs", "gradient_label", *(["ground_state_coeffs"] if len(weighers) > n else [])]
    result = coordinates, gradient, coeffs, delta
    names, *of_ranks = zip(*reader.for_each(update, result, "statistics: moments", weighers, fields), strict=True)
    for moments, parts in zip((gradient, coeffs, delta), of_ranks, strict=True):
        moments.merge(parts)
    coordinates = set().union(*names)
    if len(coordinates) > 1:
        raise StatisticsError(f"samples of the training split have the coordinates {sorted(coordinates)}, expected one")
    arrays: Arrays = {}
    holders: dict[str, Any] = {}
    limits = {name: coeffs.compute_results(n)[name] for name in ("minimum", "maximum")}
    scalar = basis_info.l_per_basis_func == 0
    for k, key in enumerate(w.summary_string() for w in weighers[:n]):
        of_gradient = gradient.compute_results(k)
        gbar, low, high = (of_gradient[name] for name in ("mean", "minimum", "maximum"))
        largest = np.maximum(high - gbar, gbar - low)
        by_folder = {"coeffs": coeffs.compute_results(k), "coeffs_range": limits, "gradient_label": of_gradient}
        arrays |= {f"{key}/{folder}/{name}": v for folder, found in by_folder.items() for name, v in found.items()}
        arrays[f"{key}/gradient_max_after_atom_ref"] = largest
        arrays[f"{key}/gradient_max_after_scalar_atom_ref"] = np.where(scalar, largest, of_gradient["abs_max"])
        holders[key] = gradient.holders[:, k].tolist()
    for k, weigher in enumerate(weighers[n:]):
        key, of_delta = f"{weigher.summary_string()}/initial_guess_delta", delta.compute_results(k)
        arrays |= {f"{key}/{name}": of_delta[name] for name in ("mean", "std", "abs_max")}
    return arrays, holders, next(iter(coordinates), None)


def _refuse_non_finite(arrays: Arrays) -> None:
    bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise StatisticsError(f"{bad} are not finite: the labels are too large to be squared (config: data.source)")


def _check_atoms(arrays: Arrays, keys: Sequence[str], elements: Sequence[int], min_atoms: int, expected: bool) -> None:
    """Refuses too few atoms of an element; warns of elements of the basis without atoms."""
    for key in keys:
        atoms = dict(zip(elements, arrays[f"{key}/n_atoms"].tolist(), strict=True))
        few = {z: n for z, n in atoms.items() if 0 < n < min_atoms}
        if few:
            what = f"the weigher {key!r} saw too few atoms of some elements (atomic number: atoms): {few}"
            settings = "data.split, data.statistics.min_atoms_per_type"
            raise StatisticsError(f"{what}; expected at least {min_atoms} of each (config: {settings})")
        absent = [z for z, n in atoms.items() if n == 0]
        if absent and expected:
            what = f"the basis has the elements {absent}, but the weigher {key!r} found no atom of them"
            effect = "normalising such an atom is an error unless unseen_elements='identity'"
            warnings.warn(f"{what}: {effect} (config: data.unseen_elements)", stacklevel=2)
