"""Linear element references: an energy linear in the composition ([OC22], as fairchem ships it)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.of_data import molecule_index
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.reference import Reference
from ofdft_norm.normalization.reference_files import read_reference_file
from ofdft_norm.normalization.reference_summary import (
    FitReport,
    ReferenceSummary,
    report_from_statistics,
    stored_linear_problem,
    summarize_references,
)
from ofdft_norm.settings import AtomicNumber, NonNegative, Settings
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.least_squares import solve_least_squares
from ofdft_norm.statistics.references import CountBy, linear_reference_name

UnseenPolicy = Literal["error", "zero"]

_EXTRA_STATE = "_extra_state"  # torch's name for what get_extra_state returns


class LinearReferencesConfig(Settings):
    """A reference energy for each element (`LinearReferences`), fitted on the training split or given.

    Attributes:
        values: Given energies [hartree] by element symbol or atomic number; None: fitted.
        file: A .pt or .npz file with `element_references` [hartree]; None: fitted.
        ridge: Relative ridge of the fit; 0: the solution of minimum norm.
        count_by: What counts once in the fit: every ``molecule``, with the mean of its samples, or every ``sample``.
        unseen_elements: ``error`` refuses atoms of elements without a reference, ``zero`` gives them none.
        max_num_elements: Largest atomic number.
    """

    values: Mapping[str | int, float] | None = None
    file: str | None = None
    ridge: NonNegative = 0.0
    count_by: CountBy = "molecule"
    unseen_elements: UnseenPolicy = "error"
    max_num_elements: AtomicNumber = 118
    config_key = "data.reference"

    def __post_init__(self) -> None:
        if self.values is not None and self.file is not None:
            raise ConfigError(
                "data.reference gives both values and file: keep one of them (data.reference.values=null)"
            )

    @property
    def statistics_name(self) -> str:
        """Name of this reference among the statistics."""
        return linear_reference_name(self.count_by)


class LinearReferences(Reference):
    """E_ref = sum over atoms of ref_Z: removes or adds a composition model of a target.

    Args:
        element_references: (max_num_elements + 1,) reference of each atomic number [hartree, or the target's unit];
            index 0 is unused, elements that were not seen are 0. None: all zero.
        max_num_elements: Largest atomic number.
        seen_elements: (max_num_elements + 1,) bool, which elements have a reference; by default those whose reference
            is not 0 (all, if `element_references` is None).
        unseen_elements: ``"error"`` refuses atoms of elements without a reference, ``"zero"`` gives them 0.
        atomic_numbers_field: Field of the batch that holds the atomic numbers; where it is missing, PyG's ``z`` is
            used.
        fit_report: How the references were fitted, if they were; part of the state dict, as plain types.

    Raises:
        StatisticsError: If the references have another length or are not finite.
        ConfigError: If `unseen_elements` is unknown.

    Example:
        >>> references = LinearReferences(torch.tensor([0.0, -0.5]), max_num_elements=1)
        >>> references(torch.tensor([-0.25]), Data(z=torch.tensor([1, 1]))).item()
        -1.25
    """

    element_references: Tensor
    seen_elements: Tensor
    fit_report: FitReport | None

    def __init__(
        self,
        element_references: Tensor | None = None,
        max_num_elements: int = MAX_ATOMIC_NUMBER,
        seen_elements: Tensor | None = None,
        unseen_elements: UnseenPolicy = "error",
        atomic_numbers_field: str = "atomic_numbers",
        fit_report: FitReport | None = None,
    ) -> None:
        super().__init__()
        if unseen_elements not in ("error", "zero"):
            raise ConfigError(
                f"unseen_elements = {unseen_elements!r}: expected 'error' or 'zero' "
                "(config: data.reference.unseen_elements)"
            )
        self.unseen_elements = unseen_elements
        self.atomic_numbers_field = atomic_numbers_field
        self.fit_report = fit_report
        if element_references is None:
            self.register_float64("element_references", torch.zeros(max_num_elements + 1))
            seen = torch.ones(max_num_elements + 1, dtype=torch.bool)
        else:
            self.register_float64("element_references", element_references)
            seen = self.element_references != 0
        if self.element_references.shape != (max_num_elements + 1,):
            raise StatisticsError(
                f"element_references has shape {tuple(self.element_references.shape)}, expected "
                f"({max_num_elements + 1},): index 0 is unused, one entry for each element up to max_num_elements"
            )
        if not torch.isfinite(self.element_references).all():
            raise StatisticsError("element_references holds values that are not finite")
        self.register_buffer("seen_elements", seen if seen_elements is None else seen_elements.clone().bool())

    @property
    def max_num_elements(self) -> int:
        """Largest atomic number that has an entry."""
        return len(self.element_references) - 1

    def atomic_numbers(self, batch: Data) -> Tensor:
        """Returns the atomic numbers of a sample or batch, (n_atom,) int64.

        Raises:
            BatchError: If it has none.
        """
        numbers = batch.get(self.atomic_numbers_field)
        numbers = batch.get("z") if numbers is None else numbers
        if numbers is None:
            raise BatchError(
                f"element references need the field {self.atomic_numbers_field!r} (or 'z'), which the sample lacks "
                "(config: data.source.atomic_numbers_field)"
            )
        return numbers.long()

    def fields_of(self, sample_or_batch: Data) -> dict[str, Tensor]:
        """Returns the atomic numbers, and each atom's molecule."""
        return {
            "atomic_numbers": self.atomic_numbers(sample_or_batch),
            "batch": molecule_index(sample_or_batch, "pos"),
        }

    def energy_of(self, fields: Mapping[str, Tensor], n_molecules: int) -> Tensor:
        """Returns sum over atoms of ref_Z, (n_molecules,) float64, unchecked."""
        energies = self.element_references[fields["atomic_numbers"]]
        return self.element_references.new_zeros(n_molecules).index_add(0, fields["batch"], energies)

    def check_elements(self, sample_or_batch: Data) -> None:
        """Refuses atoms of elements that have no reference, or are beyond `max_num_elements`.

        Raises:
            BatchError: If the sample has no atomic numbers.
            NormalizationError: If there are such atoms.
        """
        self.check_numbers(self.atomic_numbers(sample_or_batch))

    def check_numbers(self, numbers: Tensor) -> None:
        """Refuses atomic numbers, as `check_elements` does."""
        outside = (numbers < 1) | (numbers > self.max_num_elements)
        if outside.any():
            raise NormalizationError(
                f"atomic numbers {sorted(set(numbers[outside].tolist()))} are outside 1 ... {self.max_num_elements} "
                "(config: data.reference.max_num_elements)"
            )
        unseen = ~self.seen_elements[numbers]
        if self.unseen_elements == "error" and unseen.any():
            elements = sorted(set(numbers[unseen].tolist()))
            have = self.seen_elements.nonzero().squeeze(1).tolist()
            raise NormalizationError(
                f"no reference energy for the elements {elements}: none of their atoms was seen in fitting (references "
                f"exist for {have}); fit on molecules with these elements, give their values "
                "(config: data.reference.values), or set data.reference.unseen_elements=zero"
            )

    def _apply_refs(self, target: Tensor, batch: Data, sign: int, reshaped: bool = True) -> Tensor:
        energy = self.energy(batch)
        if target.shape not in ((len(energy),), (len(energy), 1)):
            raise BatchError(
                f"the target has shape {tuple(target.shape)}, expected ({len(energy)},) or ({len(energy)}, 1)"
            )
        return target.to(torch.float64) + sign * energy.reshape(target.shape)

    def dereference(self, target: Tensor, batch: Data, reshaped: bool = True) -> Tensor:
        """Removes the references.

        Args:
            target: (n_molecules,) or (n_molecules, 1).
            batch: The molecules.
            reshaped: Kept for fairchem's callers; the target's own shape decides.

        Returns:
            The target less the references, in float64, in the target's shape.
        """
        return self._apply_refs(target, batch, -1, reshaped)

    def forward(self, target: Tensor, batch: Data, reshaped: bool = True) -> Tensor:
        """Adds the references; arguments and result as in `dereference`."""
        return self._apply_refs(target, batch, 1, reshaped)

    @classmethod
    def from_dataset_statistics(
        cls,
        dataset_statistics: DatasetStatistics,
        basis_info: BasisInfo | None = None,
        weigher_key: str = "has_energy_label",
        max_num_elements: int = MAX_ATOMIC_NUMBER,
        unseen_elements: UnseenPolicy = "error",
        atomic_numbers_field: str = "atomic_numbers",
        ridge: float = 0.0,
        count_by: CountBy = "molecule",
        target: str | None = None,
    ) -> LinearReferences:
        """Takes the references from a data set's statistics.

        Args:
            dataset_statistics: The statistics, with ``linear_ref_atom_type_bias`` and ``n_atoms``, both (n_types,), and
                for a ridge ``linear_ref_factor``; where every sample counts once, ``linear_ref_by_sample_...`` and
                ``energy_factor``.
            basis_info: The basis, whose elements those are; None: the statistics' attributes name the elements.
            weigher_key: Whose statistics to use.
            max_num_elements: See the class.
            unseen_elements: See the class.
            atomic_numbers_field: See the class.
            ridge: Relative ridge of the fit, see `fit_linear_references`; 0: the solution of minimum norm.
            count_by: Whether every molecule counts once, with the mean of its samples, or every sample.
            target: Name of the energy, for the report.

        Raises:
            StatisticsError: If a statistic is missing, does not fit the elements, or there is an element beyond
                `max_num_elements`.
        """
        name = linear_reference_name(count_by)
        numbers = dataset_statistics.elements(basis_info)
        values = dataset_statistics.load_statistic(weigher_key, f"{name}_atom_type_bias")
        n_atoms = dataset_statistics.load_statistic(weigher_key, "n_atoms")
        if not values.shape == n_atoms.shape == (len(numbers),):
            raise StatisticsError(
                f"{dataset_statistics.path or 'statistics'}: element references for {values.shape[0]} and atom "
                f"counts for {n_atoms.shape[0]} elements, but the basis has {len(numbers)} "
                "(config: data.statistics.path, data.source.basis_info)"
            )
        if max(numbers) > max_num_elements:
            raise StatisticsError(
                f"there is the element {max(numbers)}, beyond max_num_elements = {max_num_elements} "
                "(config: data.reference.max_num_elements)"
            )
        if ridge > 0:
            problem = stored_linear_problem(dataset_statistics, weigher_key, count_by)
            values = solve_least_squares(problem[:-1, :-1], problem[:-1, -1], ridge).x.numpy()
        references = torch.zeros(max_num_elements + 1, dtype=torch.float64)
        seen = torch.zeros(max_num_elements + 1, dtype=torch.bool)
        seen[numbers] = torch.as_tensor(n_atoms > 0)
        references[numbers] = torch.as_tensor(np.where(n_atoms > 0, values, 0.0), dtype=torch.float64)
        report = report_from_statistics(dataset_statistics, weigher_key, numbers, count_by, ridge, target)
        return cls(references, max_num_elements, seen, unseen_elements, atomic_numbers_field, report)

    def summary(self, unit: str = "") -> ReferenceSummary:
        """Returns each element's value and what the fit knows of it; `str()` of it is a table.

        Args:
            unit: The target's unit, shown in the table's head.

        Example:
            >>> print(LinearReferences(torch.tensor([0.0, -0.5]), max_num_elements=1).summary("hartree"))
            element  reference [hartree]  std. error  atoms  molecules
            H                  -0.500000           -      -          -
            values as given: no fit is known
        """
        return summarize_references(self.element_references.cpu(), self.seen_elements.cpu(), self.fit_report, unit)

    # --- state ----------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any] | None:
        """Returns the fit report in plain types; state dicts of references without a report have no such entry."""
        return None if self.fit_report is None else self.fit_report.to_plain()

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """Takes a fit report in plain types."""
        self.fit_report = None if not state else FitReport.from_plain(state)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.fit_report is None:
            destination.pop(prefix + _EXTRA_STATE, None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        references = state_dict.get(prefix + "element_references")
        if references is not None and prefix + "seen_elements" not in state_dict:
            # fairchem's state dicts hold the references alone
            state_dict[prefix + "seen_elements"] = references.reshape(-1) != 0
        state_dict.setdefault(prefix + _EXTRA_STATE, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def create_element_references(
    file: str | Path | None = None, state_dict: Mapping[str, Any] | None = None
) -> LinearReferences:
    """Creates a reference module from a file or a state dict.

    Args:
        file: A ``.pt`` file with a state dict, or an ``.npz`` file with ``element_references`` (or, in legacy files,
            ``coeff``). Nothing is unpickled.
        state_dict: A state dict with ``element_references``.

    Returns:
        The references.

    Raises:
        ConfigError: If both or neither are given.
        StatisticsError: If the file cannot be read or holds no references.
    """
    if (file is None) == (state_dict is None):
        raise ConfigError("create_element_references needs either a file or a state_dict (config: data.reference.file)")
    if file is not None:
        return _from_state(read_reference_file(Path(file)), str(file))
    return _from_state(dict(state_dict or {}), "state_dict")


def _from_state(state: Mapping[str, Any], where: str) -> LinearReferences:
    if "element_references" not in state:
        raise StatisticsError(f"{where}: lacks 'element_references'; it has {sorted(state)}")
    references = _vector(state["element_references"], f"{where}: 'element_references'").to(torch.float64)
    seen = state.get("seen_elements")
    report = state.get(_EXTRA_STATE)
    return LinearReferences(
        references,
        max_num_elements=len(references) - 1,
        seen_elements=None if seen is None else _vector(seen, f"{where}: 'seen_elements'"),
        fit_report=FitReport.from_plain(report) if report else None,
    )


def _vector(value: Any, where: str) -> Tensor:
    """Returns one real number for each atomic number; a column or a row is a vector too."""
    try:
        tensor = torch.as_tensor(value).cpu().to_dense()
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise StatisticsError(f"{where} holds no numbers: {value!r:.80}") from None
    if tensor.is_complex():
        raise StatisticsError(f"{where} is complex ({tensor.dtype}), expected real numbers")
    if tensor.numel() < 2 or tensor.numel() != max(tensor.shape):
        raise StatisticsError(
            f"{where} has shape {tuple(tensor.shape)}, expected a vector of one value for each atomic number, from 0"
        )
    return tensor.reshape(-1)
