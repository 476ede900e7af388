"""Linear element references: an energy linear in the composition ([OC22], as fairchem ships it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.of_data import get_field, molecule_index
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.guards import molecules_of_atoms
from ofdft_norm.normalization.reference import Reference
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
from ofdft_norm.statistics.references import (
    GIVEN_REFERENCE,
    REFERENCE_BY_FIELD,
    REFERENCE_WITH_RIDGE,
    CountBy,
    linear_reference_name,
)
from ofdft_norm.units import EnergyUnit

UnseenPolicy = Literal["error", "zero"]

EXTRA_STATE = "_extra_state"  # torch's name for what get_extra_state returns

# Entry 0 belongs to no element; what rounding leaves there in published lists, -8e-19, is nothing.
_NOTHING = 1e-12


class LinearReferencesConfig(Settings):
    """A reference energy for each element (`LinearReferences`), fitted on the training split or given.

    Attributes:
        values: Given energies by element symbol or atomic number, or a list by atomic number; None: fitted.
        file: A file with given energies, see `read_reference_file`; None: fitted.
        target: Which references of a file that has those of several targets.
        unit: What given energies, those of a base included, are in: ``hartree``, ``eV`` or ``kcal/mol``; None: in
            `data.unit`.
        base: A file with references, or a checkpoint, that the fit corrects by as little as it can: what the data do
            not determine, and elements they do not have, keep its values. None: the fit starts from nothing.
        by: Field of the samples that names the data set each is of: every data set gets references of its own
            (`DatasetReferences`), fitted in passes that are not remembered. None: all have the same.
        ridge: Relative ridge of the fit, of the correction where there is a base; 0: the solution of minimum norm.
        count_by: What counts once in the fit: every ``molecule``, with the mean of its samples, or every ``sample``.
        unseen_elements: ``error`` refuses atoms of elements without a reference, ``zero`` gives them none.
        max_num_elements: Largest atomic number.
    """

    values: Mapping[str | int, float] | Sequence[float | None] | str | None = None
    file: str | None = None
    target: str | None = None
    unit: EnergyUnit | None = None
    base: str | None = None
    by: str | None = None
    ridge: NonNegative = 0.0
    count_by: CountBy = "molecule"
    unseen_elements: UnseenPolicy = "error"
    max_num_elements: AtomicNumber = 118
    config_key = "data.reference"

    def __post_init__(self) -> None:
        given = [name for name in ("values", "file", "base") if getattr(self, name) is not None]
        if self.by is not None and given:
            raise ConfigError(
                f"data.reference.by fits references for each data set, but data.reference gives {given}: keep one of "
                "them (data.reference.by=null)"
            )
        if self.base is not None and (self.values is not None or self.file is not None):
            raise ConfigError(
                "data.reference.base is corrected by a fit, but data.reference gives values or a file, which are not "
                "fitted: keep one of them (data.reference.base=null)"
            )
        if self.values is not None and self.file is not None:
            raise ConfigError(
                "data.reference gives both values and file: keep one of them (data.reference.values=null)"
            )

    @property
    def statistics_name(self) -> str:
        """Name of this reference among the statistics."""
        if self.values is not None or self.file is not None:
            return GIVEN_REFERENCE
        if self.by is not None:
            return REFERENCE_BY_FIELD
        return REFERENCE_WITH_RIDGE if self.ridge > 0 else linear_reference_name(self.count_by)


class LinearReferences(Reference):
    """E_ref = sum over atoms of ref_Z: removes or adds a composition model of a target.

    Args:
        element_references: Reference of each atomic number [hartree, or the target's unit], up to any largest; index 0
            is unused, elements that were not seen are 0. None: all zero.
        max_num_elements: Largest atomic number where `element_references` is None; else its length tells it.
        seen_elements: As long, bool, which elements have a reference; by default those whose reference
            is not 0 (all, if `element_references` is None).
        unseen_elements: ``"error"`` refuses atoms of elements without a reference, ``"zero"`` gives them 0.
        atomic_numbers_field: Field of the batch that holds the atomic numbers; where it is missing, PyG's ``z`` is
            used.
        fit_report: How the references were fitted, if they were; part of the state dict, as plain types.

    Raises:
        StatisticsError: If the references are no vector, or not finite.
        ConfigError: If `unseen_elements` is unknown.

    Example:
        >>> references = LinearReferences(torch.tensor([0.0, -0.5]))
        >>> references(torch.tensor([-0.25]), Data(z=torch.tensor([1, 1]))).item()
        -1.25
    """

    own_entries = ("seen_elements", EXTRA_STATE)
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
        self.unseen_elements = unseen_policy(unseen_elements)
        self.atomic_numbers_field = atomic_numbers_field
        self.fit_report = fit_report
        if element_references is None:
            self.register_float64("element_references", torch.zeros(max_num_elements + 1))
            seen = torch.ones(max_num_elements + 1, dtype=torch.bool)
        else:
            self.register_float64("element_references", element_references)
            self._check_references()
            seen = self.element_references != 0
        self.register_buffer("seen_elements", seen if seen_elements is None else seen_elements.clone().bool())
        if self.seen_elements.shape != self.element_references.shape:
            raise StatisticsError(
                f"seen_elements has shape {tuple(self.seen_elements.shape)}, expected that of element_references, "
                f"{tuple(self.element_references.shape)}"
            )

    def _check_references(self) -> None:
        values = self.element_references
        if values.ndim != 1 or len(values) < 2:
            raise StatisticsError(
                f"element_references has shape {tuple(values.shape)}, expected a vector: index 0 is unused, one entry "
                "for each element from hydrogen on"
            )
        if not torch.isfinite(values).all():
            raise StatisticsError("element_references holds values that are not finite")

    @property
    def max_num_elements(self) -> int:
        """Largest atomic number that has an entry."""
        return len(self.element_references) - 1

    def atomic_numbers(self, batch: Data) -> Tensor:
        """Returns the atomic numbers of a sample or batch, (n_atom,) int64.

        Args:
            batch: A sample or batch.

        Raises:
            BatchError: If it has none.
        """
        numbers = get_field(batch, self.atomic_numbers_field)
        numbers = get_field(batch, "z") if numbers is None else numbers
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
        self.check_numbers(self.atomic_numbers(sample_or_batch), sample_or_batch)

    def check_numbers(self, numbers: Tensor, sample_or_batch: Data | None = None) -> None:
        """Refuses atomic numbers, as `check_elements` does.

        Args:
            numbers: (n_atom,) atomic numbers.
            sample_or_batch: Whose they are, for the message.

        Raises:
            NormalizationError: If there is no reference for some of them.
        """
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
            whose = "" if sample_or_batch is None else f"{molecules_of_atoms(sample_or_batch, unseen)}: "
            raise NormalizationError(
                f"{whose}no reference energy for the elements {elements}: none of their atoms was seen in fitting "
                f"(references exist for {have}); leave such molecules out; or fit on some, give values for these "
                "elements (config: data.reference.values), or let them pass with unseen_elements = 'zero' (argument "
                "unseen_elements, in load_references_from_config beside the target's file, values or state_dict, or in "
                "fit; config: data.reference.unseen_elements), and train again"
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
        base: LinearReferences | None = None,
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
            base: References that are corrected, see `LinearReferencesConfig`; the report says how far they moved.

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
        references, seen = _of_base(base, max_num_elements)
        start = references[numbers]
        if ridge > 0 or base is not None:
            problem = stored_linear_problem(dataset_statistics, weigher_key, count_by)
            left, right = problem[:-1, :-1], problem[:-1, -1]
            values = (start + solve_least_squares(left, right - left @ start, ridge).x).numpy()
        references[numbers] = torch.as_tensor(np.where(n_atoms > 0, values, start), dtype=torch.float64)
        seen[torch.as_tensor(numbers)[torch.as_tensor(n_atoms > 0)]] = True
        report = report_from_statistics(dataset_statistics, weigher_key, numbers, count_by, ridge, target)
        if base is not None:
            moved = references[report.atomic_numbers] - _of_base(base, max_num_elements)[0][report.atomic_numbers]
            report = replace(report, moved=moved.tolist())
        return cls(references, max_num_elements, seen, unseen_elements, atomic_numbers_field, report)

    def summary(self, unit: str = "") -> ReferenceSummary:
        """Returns each element's value and what the fit knows of it; `str()` of it is a table.

        Args:
            unit: The target's unit, shown in the table's head.

        Example:
            >>> print(LinearReferences(torch.tensor([0.0, -0.5])).summary("hartree"))
            element  reference [hartree]
            H                  -0.500000
              element: each has one energy, times its number of atoms in a molecule
              reference: the energy of one atom, which is subtracted from the labels
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
            destination.pop(prefix + EXTRA_STATE, None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        references = state_dict.get(prefix + "element_references")
        if references is not None:
            # fairchem's state dicts hold the references alone, for as many elements as they like
            seen = local_metadata.get("seen_elements", references.reshape(-1) != 0)
            state_dict.setdefault(prefix + "seen_elements", seen)
            if references.shape != self.element_references.shape:
                self.element_references = self.element_references.new_zeros(references.shape)
                self.seen_elements = self.seen_elements.new_zeros(references.shape)
        state_dict.setdefault(prefix + EXTRA_STATE, local_metadata.get(EXTRA_STATE))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _of_base(base: LinearReferences | None, max_num_elements: int) -> tuple[Tensor, Tensor]:
    """Returns copies of references and of which elements have one, for as many elements as asked for."""
    references = torch.zeros(max_num_elements + 1, dtype=torch.float64)
    seen = torch.zeros(max_num_elements + 1, dtype=torch.bool)
    if base is not None:
        n = min(len(references), len(base.element_references))
        references[:n], seen[:n] = base.element_references[:n].cpu(), base.seen_elements[:n].cpu()
        if base.seen_elements[n:].any():
            raise StatisticsError(
                f"the base has elements beyond max_num_elements = {max_num_elements} "
                "(config: data.reference.max_num_elements)"
            )
    return references, seen


def unseen_policy(value: str) -> UnseenPolicy:
    """Returns what happens to elements without a reference.

    Args:
        value: ``error`` or ``zero``.

    Raises:
        ConfigError: If it is unknown.
    """
    if value not in ("error", "zero"):
        raise ConfigError(
            f"unseen_elements = {value!r}: expected 'error' or 'zero' (config: data.reference.unseen_elements)"
        )
    return cast(UnseenPolicy, value)


def without_entry_0(value: float) -> float:
    """Returns 0 for the entry 0 of references by atomic number.

    Args:
        value: What stands there.

    Raises:
        StatisticsError: If it is more than what rounding leaves.
    """
    if abs(value) < _NOTHING:
        return 0.0
    raise StatisticsError(
        f"references by atomic number have the value {value} at index 0, which belongs to no element and which other "
        "programs ignore: put 0 there, or, where the list begins with hydrogen, a 0 in front of it "
        "(config: data.reference.values, data.reference.file)"
    )
