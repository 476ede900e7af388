"""Linear element references: an energy linear in the composition ([OC22], as fairchem ships it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis import MAX_ATOMIC_NUMBER, BasisInfo
from ofdft_norm.data.sample import count_molecules, find_molecule_index, get_field, unwrap_name
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.base import OutputDtype, Reference, find_unknown, name_molecules
from ofdft_norm.normalization.reference_report import (
    FitReport,
    format_unit,
    load_linear_problem,
    name_element,
    report_fit,
    tabulate_elements,
)
from ofdft_norm.settings import AtomicNumber, NonNegative, Settings
from ofdft_norm.statistics.references import CountBy, name_linear_reference, solve_least_squares
from ofdft_norm.statistics.store import DatasetStatistics
from ofdft_norm.tables import format_rows
from ofdft_norm.units import EnergyUnit

UnseenPolicy = Literal["error", "zero"]

EXTRA_STATE = "_extra_state"  # torch's key for the result of get_extra_state


class LinearReferencesConfig(Settings):
    """A reference energy for each element (`LinearReferences`), fitted on the training split or given.

    Attributes:
        values: Given energies by element symbol or atomic number, or a list by atomic number; None: fitted.
        file: A file with given energies, see `read_reference_file`; None: fitted.
        target: Name of the target in a file with references of several targets.
        unit: Unit of given energies and of a base: ``hartree``, ``eV`` or ``kcal/mol``; None: `data.unit`.
        base: A file with references, or a checkpoint, to which the fit adds the smallest correction: values that the
            data do not determine, and elements that they lack, stay. None: the fit starts from 0.
        by: Field that names the data set of each sample: every data set gets its own references
            (`DatasetReferences`), fitted in passes that are not cached. None: one set of references.
        isolated_atoms: Frames of isolated atoms in the data give the references of their elements, and are left out of
            all parts, see `ASEFiles.isolated_atoms`. Other elements: ``fit`` fits them, with these references kept,
            ``error`` refuses them. None: such frames are samples like any other.
        ridge: Relative ridge of the fit, or of the correction of a base; 0: the solution of minimum norm.
        count_by: Rows of the fit: every ``molecule``, with the mean of its samples, or every ``sample``.
        unseen_elements: ``error`` refuses atoms of elements without a reference, ``zero`` gives them 0.
        max_num_elements: Largest atomic number.
    """

    values: Mapping[str | int, float] | Sequence[float | None] | str | None = None
    file: str | None = None
    target: str | None = None
    unit: EnergyUnit | None = None
    base: str | None = None
    by: str | None = None
    isolated_atoms: Literal["fit", "error"] | None = None
    ridge: NonNegative = 0.0
    count_by: CountBy = "molecule"
    unseen_elements: UnseenPolicy = "error"
    max_num_elements: AtomicNumber = 118
    config_key = "data.reference"

    def __post_init__(self) -> None:
        given = [name for name in ("by", "base", "values", "file", "isolated_atoms") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"data.reference has {' and '.join(given)}, which exclude each other: set one to null")


class LinearReferences(Reference):
    """E_ref = sum over atoms of ref_Z: removes or adds a composition model of a target.

    Args:
        element_references: Reference of each atomic number [hartree, or the target's unit]; index 0 is unused, elements
            that were not seen are 0. None: all zero.
        max_num_elements: Largest atomic number if `element_references` is None; else its length defines it.
        seen_elements: As long, bool: which elements have a reference; by default those with a reference that is not 0
            (all, if `element_references` is None).
        unseen_elements: ``"error"`` refuses atoms of elements without a reference, ``"zero"`` gives them 0.
        atomic_numbers_field: Field of the atomic numbers; if a sample lacks it, PyG's ``z`` is used.
        fit_report: How the references were fitted; part of the state dict, as plain types.
        output_dtype: Dtype of the results: ``float64`` (default); ``input``, the dtype of the target, for a layer of a
            float32 network, where float64 would raise "mat1 and mat2 must have the same dtype"; or a torch.dtype.
            Results are computed in float64; float32 results of large targets lose digits.

    Raises:
        StatisticsError: If the references are no vector, or not finite.
        ConfigError: If `unseen_elements` or `output_dtype` is unknown.

    Examples:
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
        output_dtype: OutputDtype = "float64",
    ) -> None:
        super().__init__()
        self.unseen_elements = check_unseen_policy(unseen_elements)
        self.atomic_numbers_field = atomic_numbers_field
        self.fit_report = fit_report
        self.set_output_dtype(output_dtype)
        given = torch.zeros(max_num_elements + 1) if element_references is None else element_references
        self.register_float64("element_references", given)
        values = self.element_references
        if values.ndim != 1 or len(values) < 2 or not torch.isfinite(values).all():
            shape = tuple(values.shape)
            raise StatisticsError(f"element_references has shape {shape}, expected a vector of finite numbers")
        seen = (values != 0) | (element_references is None) if seen_elements is None else seen_elements.clone().bool()
        self.register_buffer("seen_elements", seen)
        if seen.shape != values.shape:
            raise StatisticsError(f"seen_elements has shape {tuple(seen.shape)}, expected {tuple(values.shape)}")

    @classmethod
    def from_dataset_statistics(
        cls,
        dataset_statistics: DatasetStatistics,
        basis_info: BasisInfo | None = None,
        weigher_key: str = "has_energy_label",
        count_by: CountBy = "molecule",
        ridge: float = 0.0,
        base: LinearReferences | None = None,
        max_num_elements: int = MAX_ATOMIC_NUMBER,
        keep_base: bool = False,
        **options: Any,
    ) -> LinearReferences:
        """Takes the references from dataset statistics.

        Args:
            dataset_statistics: The statistics.
            basis_info: The basis, which defines the elements; None: those in the statistics' attributes.
            weigher_key: Key of the weigher of these statistics.
            count_by: Whether every ``molecule`` counts once, with the mean of its samples, or every ``sample``.
            ridge: Relative ridge of the fit, see `fit_linear_references`; 0: the solution of minimum norm.
            base: References to which the fit adds the smallest correction, see `LinearReferencesConfig`.
            max_num_elements: See the class.
            keep_base: Whether the references of the base stay, and only those of other elements are fitted.
            **options: `unseen_elements`, `atomic_numbers_field` and `output_dtype` of the class.

        Raises:
            StatisticsError: If a statistic is missing, does not fit the elements, or there is an element beyond
                `max_num_elements`.
        """
        name, numbers = name_linear_reference(count_by), dataset_statistics.elements(basis_info)
        values = dataset_statistics.load_statistic(weigher_key, f"{name}_atom_type_bias")
        n_atoms = dataset_statistics.load_statistic(weigher_key, "n_atoms")
        of_base = [] if base is None else base.seen_elements.nonzero().squeeze(1).tolist()
        if not len(values) == len(n_atoms) == len(numbers) or max([*numbers, *of_base]) > max_num_elements:
            raise StatisticsError(
                f"{dataset_statistics.path or 'the statistics'}: references of {len(values)} elements, the base of "
                f"{of_base}; expected {numbers}, up to max_num_elements = {max_num_elements} (config: data.reference)"
            )
        references = torch.zeros(max_num_elements + 1, dtype=torch.float64)
        seen = torch.zeros(max_num_elements + 1, dtype=torch.bool)
        if base is not None:
            n = min(len(references), len(base.element_references))
            references[:n], seen[:n] = base.element_references[:n].cpu(), base.seen_elements[:n].cpu()
        report = report_fit(dataset_statistics, weigher_key, numbers, count_by, ridge)
        present = n_atoms > 0
        if ridge > 0 or base is not None:
            problem = load_linear_problem(dataset_statistics, weigher_key, count_by)
            start, left, right = references[numbers].numpy(), problem[:-1, :-1], problem[:-1, -1]
            free = ~seen[numbers].numpy() if keep_base else np.full(len(start), True)  # elements that are fitted
            correction = np.zeros(len(start))
            correction[free] = solve_least_squares(left[:, free], right - left @ start, ridge).x
            if keep_base:
                report = replace(report, fitted=values[present].tolist())
            elif base is not None:
                report = replace(report, moved=correction[present].tolist())
            values = start + correction
        elements = torch.as_tensor(numbers)[torch.as_tensor(present)]
        references[elements], seen[elements] = torch.as_tensor(values[present], dtype=torch.float64), True
        return cls(references, seen_elements=seen, fit_report=report, **options)

    @property
    def max_num_elements(self) -> int:
        """Largest atomic number that has an entry."""
        return len(self.element_references) - 1

    def compute_energy(self, sample_or_batch: Data) -> Tensor:
        """Returns the sum over atoms of ref_Z, (n_molecules,) float64."""
        numbers = _read_atomic_numbers(sample_or_batch, self.atomic_numbers_field)
        return _sum_over_atoms(self.element_references[numbers], sample_or_batch)

    def check_elements(self, sample_or_batch: Data) -> None:
        """Raises NormalizationError for atoms of elements without a reference, or beyond `max_num_elements`."""
        numbers = _read_atomic_numbers(sample_or_batch, self.atomic_numbers_field)
        unknown = find_unknown(self.seen_elements, numbers)
        if unknown.any():
            self.check_numbers(numbers[unknown], name_molecules(sample_or_batch, unknown))

    def check_numbers(self, numbers: Tensor, where: str) -> None:
        """Raises NormalizationError for atomic numbers without a reference, or beyond `max_num_elements`."""
        outside = (numbers < 1) | (numbers > self.max_num_elements)
        unseen = numbers[outside | find_unknown(self.seen_elements, numbers)].unique().tolist()
        if outside.any() or (unseen and self.unseen_elements == "error"):
            known = self.seen_elements.nonzero().squeeze(1).tolist()
            raise NormalizationError(
                f"{where}: no reference energy for the elements {unseen}; expected {known}, at most "
                f"{self.max_num_elements} (config: data.reference.values, data.reference.unseen_elements=zero)"
            )

    def dereference(self, target: Tensor, batch: Data, reshaped: bool = True) -> Tensor:
        """Removes the references.

        Args:
            target: (n_molecules,) or (n_molecules, 1).
            batch: The molecules.
            reshaped: Kept for fairchem's callers; the result always has the target's shape.

        Returns:
            The target minus the references, in the target's shape and in `output_dtype`.

        Raises:
            BatchError: If the target has another shape, or is complex, or the batch lacks atomic numbers.
            NormalizationError: If there are atoms of elements without a reference.
        """
        return self._apply_refs(target, batch, -1)

    def forward(self, target: Tensor, batch: Data, reshaped: bool = True) -> Tensor:
        """Adds the references; arguments and result as in `dereference`."""
        return self._apply_refs(target, batch, 1)

    def _apply_refs(self, target: Tensor, batch: Data, sign: int) -> Tensor:
        energy = self.energy(batch)
        if target.is_complex() or target.shape not in ((len(energy),), (len(energy), 1)):
            what = f"dtype {target.dtype} and shape {tuple(target.shape)}, expected {tuple(energy.shape)} or a column"
            raise BatchError(f"the target has {what}, of real numbers")
        return self.as_output(target.to(torch.float64) + sign * energy.reshape(target.shape), target)

    def summary(self, unit: str = "") -> str:
        """Returns a table of the references with their standard errors, and lines about their fit.

        The headings show the `unit` of the target.

        Examples:
            >>> print(LinearReferences(torch.tensor([0.0, -0.5])).summary("hartree"))
            element  energy per atom [Ha]
            H                   -0.500000
            given values, not fitted
        """
        return tabulate_elements(self.element_references.cpu(), self.seen_elements.cpu(), self.fit_report, unit)

    def get_extra_state(self) -> dict[str, Any] | None:
        """Returns the fit report in plain types."""
        return None if self.fit_report is None else asdict(self.fit_report)

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """Takes a fit report in plain types."""
        self.fit_report = FitReport.from_plain(state) if state else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *args: Any) -> None:
        references = state_dict.get(prefix + "element_references")
        if references is not None:  # fairchem's state dicts have only these, of any length
            metadata = {"seen_elements": references.reshape(-1) != 0, EXTRA_STATE: None, **metadata}
            self.element_references = self.element_references.new_zeros(references.shape)
            self.seen_elements = self.seen_elements.new_zeros(references.shape)
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


class DatasetReferences(Reference):
    """E_ref = sum over atoms of ref_dZ; a field of the sample names the data set d.

    `fit_references_by_dataset` writes ref_dZ = ref_Z + shift_dZ and, if several shifts fit equally well, chooses the
    smallest.

    Args:
        references: (n_datasets, max_num_elements + 1) ref_dZ.
        names: Names of the data sets.
        common: (max_num_elements + 1,) ref_Z.
        field: Field of the samples that names the data set: a text or an integer.
        seen_elements: (n_datasets, max_num_elements + 1) bool: which elements have a reference.
        unseen_elements: See `LinearReferences`.
        atomic_numbers_field: See `LinearReferences`.

    Attributes:
        fit_reports: How the references of each data set were fitted; None: not known.
        residuals: mean, std, rms and mae of the residual energies of all data sets; empty: not known.
    """

    references: Tensor
    common: Tensor
    seen_elements: Tensor

    def __init__(
        self,
        references: Tensor,
        names: Sequence[str],
        common: Tensor,
        field: str = "dataset",
        seen_elements: Tensor | None = None,
        unseen_elements: UnseenPolicy = "error",
        atomic_numbers_field: str = "atomic_numbers",
    ) -> None:
        super().__init__()
        self.names, self.field = list(names), field
        self.unseen_elements = check_unseen_policy(unseen_elements)
        self.atomic_numbers_field = atomic_numbers_field
        self.fit_reports: list[FitReport | None] = [None] * len(self.names)
        self.residuals: dict[str, float] = {}
        self.register_float64("references", references)
        self.register_float64("common", common)
        self.register_buffer("seen_elements", (references != 0 if seen_elements is None else seen_elements).bool())

    def select_dataset(self, name: str) -> LinearReferences:
        """Returns the references of one data set."""
        i = self.names.index(name)
        return LinearReferences(
            self.references[i],
            seen_elements=self.seen_elements[i],
            unseen_elements=self.unseen_elements,
            atomic_numbers_field=self.atomic_numbers_field,
            fit_report=self.fit_reports[i],
        )

    def find_datasets(self, batch: Data) -> Tensor:
        """Returns the index of the data set of each atom; raises NormalizationError for unknown data sets."""
        value = get_field(batch, self.field)
        if value is None:
            raise BatchError(f"the sample lacks the field {self.field!r}, its data set (config: data.reference.by)")
        values = value.reshape(-1).tolist() if isinstance(value, Tensor) else value
        names = [values] if isinstance(values, str) else [str(unwrap_name(name)) for name in values]
        if unknown := sorted(set(names) - set(self.names)):
            where = f"field {self.field!r} (config: data.reference.by)"
            raise NormalizationError(f"{where} names the data sets {unknown}, expected {self.names}")
        molecule = find_molecule_index(batch, "pos")
        return torch.tensor([self.names.index(name) for name in names], device=molecule.device)[molecule]

    def compute_energy(self, sample_or_batch: Data) -> Tensor:
        """Returns the sum over atoms of ref_dZ, (n_molecules,) float64."""
        numbers = _read_atomic_numbers(sample_or_batch, self.atomic_numbers_field)
        return _sum_over_atoms(self.references[self.find_datasets(sample_or_batch), numbers], sample_or_batch)

    def check_elements(self, sample_or_batch: Data) -> None:
        """Raises NormalizationError for atoms of elements without a reference in their data set."""
        numbers = _read_atomic_numbers(sample_or_batch, self.atomic_numbers_field)
        of_atom = self.find_datasets(sample_or_batch)
        for i, name in enumerate(self.names):
            unknown = (of_atom == i) & find_unknown(self.seen_elements[i], numbers)
            if unknown.any():
                where = f"data set {name!r}: {name_molecules(sample_or_batch, unknown)}"
                self.select_dataset(name).check_numbers(numbers[unknown], where)

    def summary(self, unit: str = "") -> str:
        """Returns a table of the common references and the shifts of each data set, and the fit of each."""
        shifts, common = (self.references - self.common).cpu(), self.common.cpu()
        rows = [
            [name_element(z), self.names[i], f"{float(common[z]):.6f}", f"{float(shifts[i, z]):+.6f}"]
            for z, i in self.seen_elements.T.nonzero().tolist()
        ]
        header = ["element", "data set", f"common energy per atom{format_unit(unit)}", f"shift{format_unit(unit)}"]
        fits = (f"\n{name}:\n{self.select_dataset(name).summary(unit)}" for name in self.names)
        return "\n".join([format_rows(header, rows, n_left=2), *fits])

    def get_extra_state(self) -> dict[str, Any]:
        """Returns residuals and fit reports in plain types."""
        reports = [report and asdict(report) for report in self.fit_reports]
        return {"residuals": self.residuals, "fit_reports": reports}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the result of `get_extra_state`."""
        self.residuals = dict(state["residuals"])
        self.fit_reports = [report and FitReport.from_plain(report) for report in state["fit_reports"]]


def _read_atomic_numbers(batch: Data, field: str) -> Tensor:
    for name in (field, "z"):
        if (numbers := get_field(batch, name)) is not None:
            return numbers.long()
    raise BatchError(f"the sample lacks the field {field!r} (or 'z') (config: data.source.atomic_numbers_field)")


def _sum_over_atoms(energies: Tensor, batch: Data) -> Tensor:
    return energies.new_zeros(count_molecules(batch)).index_add(0, find_molecule_index(batch, "pos"), energies)


def check_unseen_policy(value: str) -> UnseenPolicy:
    """Returns the policy for elements without a reference; raises ConfigError for unknown policies."""
    if value not in ("error", "zero"):
        raise ConfigError(f"data.reference.unseen_elements = {value!r}: expected 'error' or 'zero'")
    return cast(UnseenPolicy, value)
