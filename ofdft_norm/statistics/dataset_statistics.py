"""The store of a data set's statistics: named arrays, in memory and in a zarr v2 directory or zip file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.files import remove_left_overs, set_aside
from ofdft_norm.data.zarr_v2 import ZarrReader
from ofdft_norm.errors import BasisError, MissingStatisticError, MissingStatisticsFileError, StatisticsError
from ofdft_norm.statistics.arrays import EXTREME_SAMPLES, WORST_MOLECULES
from ofdft_norm.statistics.distributed import current_ranks
from ofdft_norm.statistics.fit import fit_statistics
from ofdft_norm.statistics.sample_weighers import HasEnergyLabelSampleWeigher, SampleWeigher, check_keys
from ofdft_norm.statistics.zarr_store import is_zip, put_array, write_arrays

Array = npt.NDArray[Any]

_NUMBERS = "iuf"  # NumPy's kinds of integers and floating-point numbers


class DatasetStatistics:
    """Statistics of a data set, stored as STRUCTURES25 stores them.

    Keys are ``"<weigher>/<field>/<statistic>"`` and ``"<weigher>/<statistic>"``, such as
    ``"has_energy_label/coeffs/mean"``; per-dimension statistics have shape (n_basis,), per-element ones (n_types,).

    Args:
        path: A zarr v2 directory, or a zip file of one. If it exists, its arrays are read into memory; if not, the
            first `save_statistic` creates it, and reading before is a `FileNotFoundError`. None: kept in memory alone.
        create_store: False: the directory must exist.

    Raises:
        MissingStatisticsFileError: If `create_store` is False and there is no such directory; a `FileNotFoundError`.
        StatisticsError: If the directory is no zarr group, or truncated, or holds numbers that are not finite; or if it
            is missing and a process was stopped while it replaced it.

    Example:
        >>> import numpy as np
        >>> statistics = DatasetStatistics(None)
        >>> statistics.save_statistic("constant", "coeffs/mean", np.zeros(3))
        >>> statistics.keys_recursive()
        ['constant/coeffs/mean']
    """

    def __init__(self, path: str | Path | None = None, create_store: bool | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.attributes: dict[str, Any] = {}
        self._arrays: dict[str, Array] = {}
        if self.path is None:
            return
        if self.path.exists():
            self._load(self.path)
        elif (old := set_aside(self.path)) is not None:
            raise StatisticsError(
                f"{self.path} is missing: a process that was replacing it was stopped; its former content is {old}: "
                "rename that folder, or delete it (config: data.statistics.path)"
            )
        elif create_store is False:
            self._require_file()

    def _require_file(self) -> None:
        if self.path is not None and not self._arrays and not self.path.exists():
            raise MissingStatisticsFileError(f"{self.path}: there are no statistics (config: data.statistics.path)")

    def _load(self, path: Path) -> None:
        try:
            with ZarrReader(path) as reader:
                self._arrays = {name: reader.read(name) for name in reader.arrays()}
                self.attributes = reader.attributes()
                is_group = (path / ".zgroup").exists() or (path / "zarr.json").exists() or path.is_file()
        except Exception as error:
            raise StatisticsError(
                f"{path}: cannot be read as dataset statistics: {error}; delete it, or give another one "
                "(config: data.statistics.path)"
            ) from error
        if not is_group or not self._arrays:
            raise StatisticsError(
                f"{path} holds no dataset statistics: expected a zarr v2 directory with arrays such as "
                "'has_energy_label/coeffs/mean' (config: data.statistics.path)"
            )
        _check_attributes(path, self.attributes)
        damaged = [k for k, a in self._arrays.items() if a.dtype.kind not in _NUMBERS or not np.isfinite(a).all()]
        if damaged:
            raise StatisticsError(
                f"{path}: {damaged} hold no finite numbers: the statistics are truncated; delete them and fit again, "
                "or give other ones (config: data.statistics.path)"
            )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], attributes: Mapping[str, Any] | None = None) -> DatasetStatistics:
        """Builds statistics in memory from a mapping of keys to arrays.

        Args:
            arrays: Arrays by key, ``weigher/statistic``.
            attributes: What was fitted, when and how, as plain data.
        """
        statistics = cls(None)
        statistics._arrays = {key: np.asarray(value) for key, value in arrays.items()}
        statistics.attributes = dict(attributes or {})
        return statistics

    def with_arrays(self, arrays: Mapping[str, Array]) -> DatasetStatistics:
        """Returns a copy with more arrays, or others; what stands at the path stays as it is.

        Args:
            arrays: Arrays by key, ``weigher/statistic``.
        """
        statistics = DatasetStatistics.from_arrays({**self._arrays, **arrays}, self.attributes)
        statistics.path = self.path
        return statistics

    def to_arrays(self) -> dict[str, Array]:
        """Returns copies of all arrays by key, as they are stored: what `from_arrays` takes."""
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
        """Fits statistics in one pass over a data set, and writes them.

        Samples of weight 0 change nothing; energies and gradients of samples without label are never used. A molecule
        counts once in the energy references, however many samples it has; samples without `mol_id` are molecules of
        their own. Samples that do not come molecule by molecule may scatter those of one molecule: the fit then keeps
        sums for every molecule, n_basis numbers for each weigher.

        Args:
            path: Where to write; must not exist. None: memory only. Under torch.distributed only rank 0 writes.
            dataset: A data set (`OFDataset`: read molecule by molecule, sharded over ranks; any other data set of
                samples: read in order, sharded over ranks, only the fields that the fit needs), or a loader (read as it
                comes, on every rank alike).
            basis_info: The basis; None: samples that have energies alone, of which only the references that are linear
                in the composition are fitted, over the elements that occur.
            atom_ref_fit_sample_weighers: Weighers for coefficients, gradients and atomic references.
            initial_guess_sample_weighers: Weighers for the statistics of `initial_guess_delta`.
            with_bias: Whether the atomic reference has a constant.
            min_atoms_per_type: An element that is seen, but on fewer atoms than this, is an error.
            n_batches: Use only the first batches (of 32 molecules, or of 512 samples, or the loader's).
            residuals: Whether a second pass over energies and coefficients measures what the references leave
                (`abs_max` and `mae`).
            progress: Whether rank 0 shows a progress bar.
            attributes: Written beside the fit's own.
            energy_field: Field of the energies.
            atomic_numbers_field: Field of the atomic numbers; where a sample lacks it, PyG's ``z`` is used.

        Returns:
            The statistics, on every rank.

        Raises:
            StatisticsError: If the data set is empty, a weigher gives no sample weight, or atoms are too few.
            LabelFileError: If a label is malformed; under torch.distributed, on every rank.
        """
        check_keys([*atom_ref_fit_sample_weighers, *initial_guess_sample_weighers])
        arrays, fit_attributes = fit_statistics(
            dataset,
            basis_info,
            list(atom_ref_fit_sample_weighers),
            list(initial_guess_sample_weighers),
            with_bias=with_bias,
            min_atoms_per_type=min_atoms_per_type,
            n_batches=n_batches,
            residuals=residuals,
            progress=progress,
            energy_field=energy_field,
            atomic_numbers_field=atomic_numbers_field,
        )
        statistics = cls.from_arrays(arrays, {**fit_attributes, **(attributes or {})})
        if path is not None:
            statistics._save_once(Path(path))
        return statistics

    def _save_once(self, path: Path) -> None:
        """Writes from rank 0; if that fails, every rank stops."""
        ranks = current_ranks()
        error: Exception | None = None
        try:
            if ranks.rank == 0:
                self.save_to(path)
        except Exception as caught:
            error = caught
        ranks.raise_together(error)
        self.path = path

    def elements(self, basis_info: BasisInfo | None = None) -> list[int]:
        """Returns the atomic numbers that per-element statistics are of.

        Args:
            basis_info: The basis; None: they are stored.

        Raises:
            StatisticsError: If they are neither stored nor given.
        """
        stored = self.attributes.get("atomic_numbers") if basis_info is None else basis_info.atomic_numbers
        if stored is None:
            raise StatisticsError(
                f"{self.path or 'statistics'}: which elements they are of is not stored in these statistics; pass "
                "basis_info (config: data.source.basis_info)"
            )
        return [int(z) for z in stored]

    def keys_recursive(self) -> list[str]:
        """Returns all keys, sorted.

        Raises:
            MissingStatisticsFileError: If nothing was saved and there is nothing at the path; a `FileNotFoundError`.
        """
        self._require_file()
        return sorted(self._arrays)

    def weigher_keys(self) -> list[str]:
        """Returns the keys of all weighers, sorted."""
        return sorted({key.split("/", 1)[0] for key in self._arrays})

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def load_statistic(self, weigher_key: str, statistic_key: str) -> Array:
        """Returns one statistic.

        STRUCTURES25 writes the uncentred root mean square of energy residuals under ``std``; in files without
        ``rms`` it is taken as what it is, and ``std`` is computed from it and the mean.

        Args:
            weigher_key: For example ``"has_energy_label"``.
            statistic_key: For example ``"coeffs/mean"`` or ``"gradient_max_after_atom_ref"``.

        Raises:
            MissingStatisticError: If there is no such statistic; the message lists the keys that exist. A `KeyError`.
            MissingStatisticsFileError: If nothing was saved and there is nothing at the path; a `FileNotFoundError`.
        """
        self._require_file()
        key = f"{weigher_key}/{statistic_key}"
        folder, _, name = key.rpartition("/")
        foreign = "/energy_minus_" in f"/{folder}" and (
            f"{folder}/rms" not in self._arrays and f"{folder}/std" in self._arrays
        )
        if foreign and name == "rms":
            return self._arrays[f"{folder}/std"].copy()
        if foreign and name == "std":
            mean_square = np.square(self._arrays[f"{folder}/std"])
            return np.asarray(np.sqrt(np.maximum(mean_square - np.square(self._arrays[f"{folder}/mean"]), 0)))
        if key not in self._arrays:
            raise MissingStatisticError(self._missing_key_message(weigher_key, statistic_key))
        return self._arrays[key].copy()

    def _missing_key_message(self, weigher_key: str, statistic_key: str) -> str:
        where = f"{self.path or 'these statistics'}"
        if weigher_key not in self.weigher_keys():
            return (
                f"{where}: no statistics for the weigher {weigher_key!r}; there are {self.weigher_keys()} "
                "(config: data.statistics.weigher_key, data.statistics.weighers)"
            )
        prefix = weigher_key + "/"
        have = [key.removeprefix(prefix) for key in self.keys_recursive() if key.startswith(prefix)]
        return f"{where}: the weigher {weigher_key!r} has no statistic {statistic_key!r}; it has {have}"

    def save_statistic(self, weigher_key: str, statistic_key: str, data: Any, overwrite: bool = False) -> None:
        """Stores one statistic, in memory and, where the statistics have a path, on disk.

        Args:
            weigher_key: For example ``"has_energy_label"``.
            statistic_key: For example ``"coeffs/mean"``.
            data: The array. Storing what is already stored, to the last bit, does nothing.
            overwrite: Whether different data under the same key may be replaced.

        Raises:
            StatisticsError: If the data are no numbers, or others stand under the key and `overwrite` is False.
        """
        key, array = f"{weigher_key}/{statistic_key}", np.array(data)
        if array.dtype.kind not in _NUMBERS:
            raise StatisticsError(f"{key!r} is given as {array.dtype}, expected real numbers")
        old = self._arrays.get(key)
        if old is not None:
            if old.shape == array.shape and old.dtype == array.dtype and old.tobytes() == array.tobytes():
                return
            if not overwrite:
                raise StatisticsError(
                    f"{self.path or 'statistics'}: {key!r} is already stored with other values; pass overwrite=True "
                    "to replace it"
                )
        if self.path is not None and is_zip(self.path):
            write_arrays(self.path, {**self._arrays, key: array}, self.attributes)
        elif self.path is not None:
            put_array(self.path, key, array)
        self._arrays[key] = array

    def save_to(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes all statistics to a new zarr v2 directory, or a zip file of one: whole, or not at all.

        This object's own `path` stays: `save_statistic` goes on writing there, or nowhere.

        Args:
            path: The directory; a name that ends in ``.zip`` is a file, which is written in a tenth of the time. If the
                same statistics stand there already, those stay.
            overwrite: Whether what stands there may be replaced; readers find the former content, or this.

        Raises:
            StatisticsError: If something stands there that differs, and `overwrite` is False.
        """
        path = Path(path)
        try:
            if not overwrite and path.is_file():
                raise FileExistsError(path)
            write_arrays(path, self._arrays, self.attributes, overwrite)
        except OSError:  # something stands there, perhaps since a moment ago
            if overwrite or not path.exists():
                raise
            if not self._is_stored_at(path):
                raise StatisticsError(
                    f"{path} already holds other statistics; pass overwrite=True to replace them"
                ) from None
        remove_left_overs(path)

    def _is_stored_at(self, path: Path) -> bool:
        try:
            return DatasetStatistics(path).equals(self)
        except StatisticsError:
            return False

    def equals(self, other: DatasetStatistics) -> bool:
        """Whether both hold the same keys with the same values, to rounding in the last digits.

        Args:
            other: Other statistics.
        """
        return self._arrays.keys() == other._arrays.keys() and all(
            a.shape == other._arrays[k].shape and np.allclose(a, other._arrays[k], rtol=1e-9, atol=0, equal_nan=True)
            for k, a in self._arrays.items()
        )

    def __repr__(self) -> str:
        lines = [f"DatasetStatistics({self.path or 'in memory'})"]
        shown: list[str] = []
        for key in sorted(self._arrays):
            parts = key.split("/")
            for depth, part in enumerate(parts):
                if shown[: depth + 1] != parts[: depth + 1]:
                    shape = f" {self._arrays[key].shape}" if depth == len(parts) - 1 else ""
                    lines.append("  " * (depth + 1) + part + shape)
            shown = parts
        return "\n".join(lines)


def _check_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Refuses attributes of a directory that cannot be what a fit has written; those of others are not looked at."""
    mappings = {"basis_info": dict | None, **dict.fromkeys((EXTREME_SAMPLES, *WORST_MOLECULES.values()), dict)}
    wrong = [k for k, kind in mappings.items() if not isinstance(attributes.get(k, {}), kind)]
    elements = attributes.get("atomic_numbers", [])
    if not isinstance(elements, list) or not all(type(z) is int and 1 <= z <= MAX_ATOMIC_NUMBER for z in elements):
        wrong.append("atomic_numbers")
    problem = f"attribute {wrong[0]!r} is {str(attributes[wrong[0]])[:100]}" if wrong else ""
    if not wrong and attributes.get("basis_info") is not None:
        try:
            BasisInfo(**attributes["basis_info"])
        except (TypeError, BasisError) as error:
            problem = f"attribute 'basis_info': {error}"
    if problem:
        raise StatisticsError(
            f"{path}: {problem}: the statistics are damaged, or were not written by this package; give other ones "
            "(config: data.statistics.path)"
        )
