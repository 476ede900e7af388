"""The store of a data set's statistics: named arrays, in memory and in a file, and typed views of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis import BasisInfo, convert_basis
from ofdft_norm.data.files import write_whole
from ofdft_norm.data.zarr_v2 import ZarrGroup, write_zarr_arrays
from ofdft_norm.errors import MissingStatisticError, MissingStatisticsFileError, StatisticsError
from ofdft_norm.statistics import fit_statistics as fit
from ofdft_norm.statistics.distributed import find_ranks
from ofdft_norm.statistics.energy_table import WORST_MOLECULES, WorstMolecule
from ofdft_norm.statistics.fit_statistics import GRADIENT_HOLDERS, StatisticsConfig
from ofdft_norm.statistics.references import CountBy, reduce_linear_problem
from ofdft_norm.statistics.weighers import HasEnergyLabelSampleWeigher, SampleWeigher

Array = npt.NDArray[Any]

_NUMBERS = "iuf"  # NumPy's kinds of integers and floating-point numbers
_ATTRIBUTES = "attributes"  # entry of npz files
_EQUAL = 1e-13  # relative; energies that differ by less are equal but for rounding


class DatasetStatistics:
    """Statistics of a data set, stored as STRUCTURES25 stores them.

    Keys are ``"<weigher>/<field>/<statistic>"`` and ``"<weigher>/<statistic>"``, such as
    ``"has_energy_label/coeffs/mean"``; per-dimension statistics have shape (n_basis,), per-element ones (n_types,).
    ``statistics["has_energy_label"]`` has them as typed objects, see `WeigherStatistics`.

    Args:
        path: A zarr v2 directory, a zip file of one, or an npz file; its arrays are read into memory. None: kept in
            memory alone.
        create_store: True: the path need not exist; the first `save_statistic` writes it.

    Raises:
        MissingStatisticsFileError: If the path does not exist, and `create_store` is not True; a `FileNotFoundError`.
        StatisticsError: If the file holds no statistics, or is truncated, or holds numbers that are not finite.

    Examples:
        >>> import numpy as np
        >>> statistics = DatasetStatistics()
        >>> statistics.save_statistic("constant", "coeffs/mean", np.zeros(3))
        >>> statistics.keys_recursive()
        ['constant/coeffs/mean']
    """

    def __init__(self, path: str | Path | None = None, create_store: bool | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.attributes: dict[str, Any] = {}
        self._arrays: dict[str, Array] = {}
        found = path is not None and os.path.exists(path)  # pathlib's raises where the folder may not be read
        if self.path is None or (create_store and not found):
            return
        if not found:
            raise MissingStatisticsFileError(f"{path}: there are no statistics (config: data.statistics.path)")
        try:
            if self.path.suffix == ".npz":
                with self.path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                    self._arrays = dict(file)
                self.attributes = json.loads(self._arrays.pop(_ATTRIBUTES).tobytes())
            else:
                with ZarrGroup(self.path) as group:
                    self._arrays, self.attributes = {n: group.read(n) for n in group.arrays()}, group.attributes()
            _ = self.basis_info
            if not self._arrays:
                raise StatisticsError("it has no array such as 'has_energy_label/coeffs/mean'")
            for key, array in self._arrays.items():
                if array.dtype.kind not in _NUMBERS or not np.isfinite(array).all():
                    raise StatisticsError(f"{key!r} has values that are no finite numbers")
        except Exception as error:  # damaged files raise many types
            what = f"{path}: cannot be read as dataset statistics: {error}; delete the file, or give another one"
            raise StatisticsError(f"{what} (config: data.statistics.path)") from error

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], attributes: Mapping[str, Any] | None = None) -> DatasetStatistics:
        """Builds statistics in memory.

        Args:
            arrays: Arrays by key.
            attributes: Description of the fit, as plain data.
        """
        statistics = cls()
        statistics._arrays = {key: np.asarray(value) for key, value in arrays.items()}
        statistics.attributes = dict(attributes or {})
        return statistics

    def to_arrays(self) -> dict[str, Array]:
        """Returns copies of all arrays by key."""
        return {key: np.array(array) for key, array in self._arrays.items()}

    @classmethod
    def from_dataset(
        cls,
        path: str | Path | None,
        dataset: Any,
        basis_info: BasisInfo | None,
        atom_ref_fit_sample_weighers: Sequence[SampleWeigher] = (HasEnergyLabelSampleWeigher(),),
        initial_guess_sample_weighers: Sequence[SampleWeigher] = (),
        with_bias: bool = True,
        min_atoms_per_type: int = 1,
        n_batches: int | None = None,
        residuals: bool = True,
        progress: bool = True,
        attributes: Mapping[str, Any] | None = None,
        energy_field: str = "energy_label",
        atomic_numbers_field: str = "atomic_numbers",
    ) -> DatasetStatistics:
        """Fits statistics in two passes over a data set, and writes them.

        Samples of weight 0 change nothing but `coeffs_range`; energies and gradients of samples without label are never
        used. A molecule counts once in the energy references, for any number of samples; samples without `mol_id` are
        separate molecules.

        Args:
            path: Where to write; must not exist. None: memory only. Under torch.distributed only rank 0 writes.
            dataset: A data set (`OFDataset`, `PackedDataset`: read molecule by molecule; any other data set of samples:
                read in order; both are divided among ranks), or a loader (read on every rank).
            basis_info: The basis; None: samples with energies alone. Only the references that are linear in the
                composition are fitted to them, over the elements that occur.
            atom_ref_fit_sample_weighers: Weighers for coefficients, gradients and references.
            initial_guess_sample_weighers: Weighers for the statistics of `initial_guess_delta`.
            with_bias: Whether the atomic reference has a constant.
            min_atoms_per_type: An element with fewer atoms is an error.
            n_batches: Use only the first batches (of 32 molecules, of 512 samples, or the loader's).
            residuals: Whether `abs_max` and `mae` of the residuals and the worst molecules are found.
            progress: Whether rank 0 shows a progress bar.
            attributes: Stored in addition to the fit's own.
            energy_field: Field of the energies.
            atomic_numbers_field: Field of the atomic numbers; if a sample lacks it, PyG's ``z`` is used.

        Returns:
            The statistics, on every rank.

        Raises:
            StatisticsError: If the data set is empty, a weigher gives no sample weight, or atoms are too few.
            LabelFileError: If a label is malformed; under torch.distributed, on every rank.
        """
        basis_info = None if basis_info is None else convert_basis(basis_info)
        config = StatisticsConfig(
            weigher_key=atom_ref_fit_sample_weighers[0].summary_string() if atom_ref_fit_sample_weighers else "",
            weighers=atom_ref_fit_sample_weighers,
            initial_guess_weighers=initial_guess_sample_weighers,
            with_bias=with_bias,
            min_atoms_per_type=min_atoms_per_type,
            n_batches=n_batches,
            residuals=residuals,
            progress=progress,
        )
        # through its module, where a test may replace it
        arrays, found = fit.fit_statistics(dataset, basis_info, config, (energy_field, atomic_numbers_field))
        statistics = cls.from_arrays(arrays, {**found, **(attributes or {})})
        if path is not None:
            ranks = find_ranks()
            with ranks.exchange():
                if ranks.rank == 0:
                    statistics.save_to(path)
            statistics.path = Path(path)
        return statistics

    @property
    def basis_info(self) -> BasisInfo | None:
        """The basis of the statistics, if they state it."""
        stored = self.attributes.get("basis_info")
        return None if stored is None else BasisInfo.from_dict(stored)

    def elements(self, basis_info: BasisInfo | None = None) -> list[int]:
        """Returns the atomic numbers of per-element statistics.

        Args:
            basis_info: The basis; None: the elements that are stored.

        Raises:
            StatisticsError: If they are neither stored nor given.
        """
        stored = self.attributes.get("atomic_numbers") if basis_info is None else basis_info.atomic_numbers
        if stored is None:
            what = f"{self.path or 'statistics'}: the elements are not stored: pass basis_info"
            raise StatisticsError(f"{what} (config: data.source.basis_info)")
        return list(map(int, stored))

    def keys_recursive(self) -> list[str]:
        """Returns all keys, sorted."""
        return sorted(self._arrays)

    def weigher_keys(self) -> list[str]:
        """Returns the keys of all weighers, sorted."""
        return sorted({key.split("/", 1)[0] for key in self._arrays})

    def __contains__(self, key: str) -> bool:
        """Returns whether there is a statistic or a weigher of this key."""
        return key in self._arrays or key in self.weigher_keys()

    def __getitem__(self, weigher_key: str) -> WeigherStatistics:
        """Returns the statistics of a weigher.

        Raises:
            MissingStatisticError: If there are none.
        """
        if not any(map(methodcaller("startswith", f"{weigher_key}/"), self._arrays)):
            raise self._missing(weigher_key, "")
        return WeigherStatistics(self, weigher_key)

    def load_statistic(self, weigher_key: str, statistic_key: str) -> Array:
        """Returns a copy of one statistic.

        STRUCTURES25 writes the uncentred root mean square of energy residuals under ``std``: in files without ``rms``,
        ``std`` is computed from it and the mean.

        Args:
            weigher_key: For example ``"has_energy_label"``.
            statistic_key: For example ``"coeffs/mean"`` or ``"gradient_max_after_atom_ref"``.

        Raises:
            MissingStatisticError: If there is no such statistic; the message lists the keys that exist. A `KeyError`.
        """
        array = self._find(weigher_key, statistic_key)
        if array is None:
            raise self._missing(weigher_key, statistic_key)
        return array

    def _find(self, weigher_key: str, statistic_key: str) -> Array | None:
        key = f"{weigher_key}/{statistic_key}"
        folder, _, name = key.rpartition("/")
        stored = self._arrays.get(f"{folder}/std")
        centred = f"{folder}/rms" in self._arrays or "/energy_minus_" not in folder
        if name in ("std", "rms") and stored is not None and not centred:
            mean = self._arrays[f"{folder}/mean"] if name == "std" else 0.0
            return np.sqrt(np.maximum(np.square(stored) - np.square(mean), 0))
        array = self._arrays.get(key)
        return None if array is None else array.copy()

    def _missing(self, weigher_key: str, statistic_key: str) -> MissingStatisticError:
        where, prefix = self.path or "these statistics", f"{weigher_key}/"
        have = [key.removeprefix(prefix) for key in self.keys_recursive() if key.startswith(prefix)]
        if have:
            message = f"the weigher {weigher_key!r} has no statistic {statistic_key!r}; it has {have}"
        else:
            message = f"no statistics for the weigher {weigher_key!r}; there are {self.weigher_keys()}"
        return MissingStatisticError(f"{where}: {message} (config: data.statistics.weigher_key)")

    def save_statistic(self, weigher_key: str, statistic_key: str, data: Any, overwrite: bool = False) -> None:
        """Stores one statistic, in memory and, if the statistics have a path, on disk.

        Args:
            weigher_key: For example ``"has_energy_label"``.
            statistic_key: For example ``"coeffs/mean"``.
            data: The array. Equal stored values, to the last bit, are kept.
            overwrite: Whether different data under the same key may be replaced.

        Raises:
            StatisticsError: If the data are no numbers, or others are stored under the key and `overwrite` is False.
        """
        key, array = f"{weigher_key}/{statistic_key}", np.array(data)
        if array.dtype.kind not in _NUMBERS:
            raise StatisticsError(f"{key!r} is given as {array.dtype}, expected real numbers")
        old = self._arrays.get(key)
        if old is not None:
            if old.dtype == array.dtype and old.shape == array.shape and old.tobytes() == array.tobytes():
                return
            if not overwrite:
                where = self.path or "these statistics"
                raise StatisticsError(f"{where}: {key!r} is already stored with other values; pass overwrite=True")
        if self.path is not None:
            _write(self.path, {**self._arrays, key: array}, self.attributes)
        self._arrays[key] = array

    def save_to(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes all statistics to a new file or folder, whole or not at all.

        This object's own `path` stays: `save_statistic` still writes there.

        Args:
            path: A zarr v2 directory; or a zip file of one (``.zip``), or an npz file (``.npz``), which is written in a
                tenth of the time. If the same statistics are stored there already, nothing happens.
            overwrite: Whether other content may be replaced.

        Raises:
            StatisticsError: If there is other content, and `overwrite` is False.
        """
        path = Path(path)
        if not overwrite and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            with contextlib.suppress(StatisticsError):
                if DatasetStatistics(path).equals(self):
                    return
            raise StatisticsError(f"{path} already holds other statistics; pass overwrite=True to replace them")
        _write(path, self._arrays, self.attributes)

    def equals(self, other: DatasetStatistics) -> bool:
        """Returns whether both hold the same keys with the same values, to rounding in the last digits.

        Args:
            other: Other statistics.
        """
        return self._arrays.keys() == other._arrays.keys() and all(
            a.shape == other._arrays[k].shape and np.allclose(a, other._arrays[k], rtol=1e-9, atol=0)
            for k, a in self._arrays.items()
        )

    def __repr__(self) -> str:
        return f"DatasetStatistics({self.path or 'in memory'}, weighers {self.weigher_keys()})"


def _write(path: Path, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
    if path.suffix != ".npz":
        write_zarr_arrays(path, arrays, attributes, replace=True)
        return
    content = np.frombuffer(json.dumps(dict(attributes)).encode(), dtype=np.uint8)
    with write_whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **{**arrays, _ATTRIBUTES: content})  # type: ignore[arg-type]


class FieldStatistics(NamedTuple):
    """Statistics of a per-function field, each (n_basis,)."""

    mean: Array
    std: Array
    abs_max: Array
    minimum: Array | None
    maximum: Array | None


class ResidualStatistics(NamedTuple):
    """Statistics of energies minus a reference, over samples; `mae` and `abs_max` if they were fitted."""

    mean: float
    std: float
    rms: float
    mae: float | None
    abs_max: float | None


class ReferenceStatistics(NamedTuple):
    """A fitted reference; unknown values are None or empty."""

    t_z: Array  # (n_types,) energies of the elements
    t_global: float
    rank: int | None  # number of these energies that the data determine
    condition_number: float | None
    residual: ResidualStatistics | None
    worst: list[WorstMolecule]  # at most one sample of each molecule


class WeigherStatistics:
    """The statistics of one weigher; None for values that statistics of other programs lack."""

    def __init__(self, statistics: DatasetStatistics, key: str) -> None:
        self.key, self._statistics = key, statistics
        # numbers of samples of positive weight, of labelled ones, and of molecules with labelled ones
        self.n_samples: int | None = self.get("n_samples")
        self.n_labelled_samples: int | None = self.get("n_labelled_samples")
        self.n_molecules: int | None = self.get("n_molecules")
        # (n_types,)
        self.n_atoms: Array | None = self.get("n_atoms")
        self.n_molecules_per_element: Array | None = self.get("n_molecules_per_element")
        self.n_labelled_samples_per_element: Array | None = self.get("n_labelled_samples_per_element")
        # `reduce_rows` of weighted rows [1 | composition | energy] of samples
        self.energy_factor: Array | None = self.get("energy_factor")
        # `mae` and `abs_max` are deviations from the mean energy
        self.energy = self.residual("none")
        # names of the molecules with the smallest, and with the largest gradient of each dimension
        self.gradient_holders: list[list[str]] | None = statistics.attributes.get(GRADIENT_HOLDERS, {}).get(key)

    def load(self, name: str) -> Array:
        """Returns an array; raises `MissingStatisticError` if there is none."""
        return self._statistics.load_statistic(self.key, name)

    def get(self, name: str) -> Any:
        """Returns an array, or a number; None where there is none."""
        value = self._statistics._find(self.key, name)
        return value if value is None or value.ndim else value.item()

    def _field(self, name: str) -> FieldStatistics:
        mean, std, abs_max = (self.load(f"{name}/{statistic}") for statistic in ("mean", "std", "abs_max"))
        return FieldStatistics(mean, std, abs_max, self.get(f"{name}/minimum"), self.get(f"{name}/maximum"))

    @property
    def coeffs(self) -> FieldStatistics:
        """Statistics of the coefficients."""
        return self._field("coeffs")

    @property
    def gradient_label(self) -> FieldStatistics:
        """Statistics of the gradients."""
        return self._field("gradient_label")

    @property
    def initial_guess_delta(self) -> FieldStatistics:
        """Statistics of coeffs - ground_state_coeffs."""
        return self._field("initial_guess_delta")

    def residual(self, name: str) -> ResidualStatistics | None:
        """Returns the statistics of energies minus a reference; of the energies themselves for ``none``."""
        folder = "energy" if name == "none" else f"energy_minus_{name}"
        mean, std = self.get(f"{folder}/mean"), self.get(f"{folder}/std")
        if std is None:
            return None
        rms = math.hypot(mean, std)
        return ResidualStatistics(mean, std, rms, self.get(f"{folder}/mae"), self.get(f"{folder}/abs_max"))

    def compute_r_squared(self, residual: ResidualStatistics | None) -> float | None:
        """Returns 1 - rms^2 / std^2 of residuals and energies; NaN where all energies are equal to rounding."""
        if residual is None or self.energy is None:
            return None
        equal = self.energy.std <= _EQUAL * abs(self.energy.mean)
        return math.nan if equal else 1 - (residual.rms / self.energy.std) ** 2

    def reference(self, name: str) -> ReferenceStatistics | None:
        """Returns one of `REFERENCES`."""
        t_z = self.get(f"{name}_atom_type_bias")
        if t_z is None:
            return None
        worst = self._statistics.attributes.get(WORST_MOLECULES.get(name, ""), {}).get(self.key, [])
        rank, condition_number = self.get(f"{name}_rank"), self.get(f"{name}_condition_number")
        found = [WorstMolecule(**entry) for entry in worst]
        t_global = self.get(f"{name}_global_bias") or 0.0
        return ReferenceStatistics(t_z, t_global, rank, condition_number, self.residual(name), found)

    def linear_problem(self, count_by: CountBy) -> Array | None:
        """Returns the (n_types + 1, n_types + 1) `references.reduce_linear_problem` of molecules, or of samples."""
        if count_by == "molecule":
            return self.get("linear_ref_factor")
        factor = self.energy_factor
        return None if factor is None else reduce_linear_problem(factor[:, 1:-1], factor[:, -1])
