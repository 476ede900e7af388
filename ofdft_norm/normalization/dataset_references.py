"""References of their own for each of several data sets, whose energies are of different levels of theory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import MAX_ATOMIC_NUMBER
from ofdft_norm.data.elements import symbol
from ofdft_norm.data.of_data import get_field, molecule_index, only_name
from ofdft_norm.errors import BatchError, NormalizationError, StatisticsError
from ofdft_norm.normalization.element_references import LinearReferences, UnseenPolicy
from ofdft_norm.normalization.fit_linear_references import (
    check_fit_arguments,
    fields_of_fit,
    length_of,
    log_fit,
    measure_targets,
    solve_targets,
    target_accumulator,
    target_statistics,
    weigher_of,
)
from ofdft_norm.normalization.reference import Reference
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.distributed import Ranks, current_ranks
from ofdft_norm.statistics.fit import for_each_batch
from ofdft_norm.statistics.least_squares import solve_least_squares
from ofdft_norm.statistics.reading import SAMPLES_PER_BATCH, BatchSource, FitFields, sample_source
from ofdft_norm.statistics.references import CountBy, FittedReference, linear_reference_name
from ofdft_norm.statistics.sample_weighers import ProductSampleWeigher, SampleWeigher
from ofdft_norm.tables import text_table

_MEANINGS = {
    "common": "the energy of one atom of the element, for all data sets",
    "data set": "a data set with the element",
    "shift": "what one atom of the element has there beside the common energy",
}


class DatasetReferences(Reference):
    """E_ref = sum over atoms of ref_Z + shift_dZ, with d the data set that a field of the sample names.

    Energies alone tell ref_Z + shift_dZ, as far as the compositions of d do. Of all that fit alike the shifts are
    chosen smallest, so that what data set d leaves open is as in the others; of what no data set tells, nothing is
    added.

    Args:
        references: (ref + shift) of each data set, by its name.
        common: (max_num_elements + 1,) ref.
        field: Field of the samples that names the data set: a text or an integer for each.
        residuals: What all of them leave of the energies of the fit: mean, std, rms and perhaps mae.

    Raises:
        StatisticsError: If the data sets are none, or have different lengths.
    """

    common: Tensor

    def __init__(
        self,
        references: Mapping[str, LinearReferences],
        common: Tensor,
        field: str = "dataset",
        residuals: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.names = list(references)
        self.field = field
        self.residuals = dict(residuals or {})
        self.parts = nn.ModuleList(references.values())
        self.register_float64("common", common)
        lengths = {name: len(part.element_references) for name, part in references.items()}
        if set(lengths.values()) != {len(common)}:
            raise StatisticsError(f"references for {len(common)} atomic numbers, but those of data sets have {lengths}")

    @property
    def unseen_elements(self) -> UnseenPolicy:
        """What happens to elements that a data set has no reference of, see `LinearReferences`."""
        return self.part(self.names[0]).unseen_elements

    @property
    def atomic_numbers_field(self) -> str:
        """Field of the atomic numbers, see `LinearReferences`."""
        return self.part(self.names[0]).atomic_numbers_field

    def part(self, name: str) -> LinearReferences:
        """Returns the references of one data set.

        Args:
            name: Name of a data set of the fit.
        """
        return cast(LinearReferences, self.parts[self.names.index(name)])

    def dataset_of(self, sample_or_batch: Data) -> list[int]:
        """Returns the index of each molecule's data set.

        Args:
            sample_or_batch: Samples with the field that names their data set.

        Raises:
            BatchError: If the sample does not name it.
            NormalizationError: If it is none of the fit's.
        """
        names = dataset_names(sample_or_batch, self.field)
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise NormalizationError(
                f"field {self.field!r} names the data sets {unknown}, but there are references of {self.names}: fit on "
                "samples of them (config: data.reference.by)"
            )
        return [self.names.index(name) for name in names]

    def fields_of(self, sample_or_batch: Data) -> dict[str, Tensor]:
        """Returns the atomic numbers, each atom's molecule, and each molecule's data set."""
        fields = self.part(self.names[0]).fields_of(sample_or_batch)
        return {**fields, "dataset_index": torch.tensor(self.dataset_of(sample_or_batch)).to(fields["batch"])}

    def energy_of(self, fields: Mapping[str, Tensor], n_molecules: int) -> Tensor:
        """Returns sum over atoms of ref_Z + shift_dZ, (n_molecules,) float64, unchecked."""
        table = torch.stack([self.part(name).element_references for name in self.names])
        energies = table[fields["dataset_index"][fields["batch"]], fields["atomic_numbers"]]
        return table.new_zeros(n_molecules).index_add(0, fields["batch"], energies)

    def check_elements(self, sample_or_batch: Data) -> None:
        """Refuses atoms of elements that their data set has no reference of.

        Raises:
            NormalizationError: If an element has no reference in its molecule's data set.
        """
        numbers = self.part(self.names[0]).atomic_numbers(sample_or_batch)
        of_atom = torch.tensor(self.dataset_of(sample_or_batch)).to(numbers)[molecule_index(sample_or_batch, "pos")]
        for index, name in enumerate(self.names):
            try:
                self.part(name).check_numbers(numbers[of_atom == index])
            except NormalizationError as error:
                raise NormalizationError(f"data set {name!r}: {error}") from None

    def summary(self, unit: str = "") -> str:
        """Returns a table of the common references and each data set's shifts, and how each was fitted.

        Args:
            unit: Unit of the energies, for the headings.
        """
        seen = [self.part(name).seen_elements.cpu() for name in self.names]
        elements = [z for z in torch.stack(seen).any(0).nonzero().squeeze(1).tolist() if z > 0]
        common = self.common.cpu()
        rows = []
        for z in elements:
            element = [symbol(z) if z <= 118 else f"Z={z}", f"{float(common[z]):.6f}"]
            for name in (name for name, s in zip(self.names, seen, strict=True) if s[z]):
                rows.append([*element, name, f"{float(self.part(name).element_references[z] - common[z]):+.6f}"])
        header = ["element", *(f"{what} [{unit}]" if unit else what for what in ("common", "shift"))]
        header.insert(2, "data set")
        fits = [f"\n{name}: {self.part(name).summary(unit)}" for name in self.names]
        return "\n".join([text_table(header, rows, meanings=_MEANINGS), *fits])

    # --- state ----------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, float]:
        """Returns what the references leave of the energies of the fit."""
        return self.residuals

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Takes what `get_extra_state` returned."""
        self.residuals = dict(state)


def dataset_names(batch: Any, field: str) -> list[str]:
    """Returns the name of each sample's data set.

    Args:
        batch: A batch or a single sample.
        field: Name of the field.

    Raises:
        BatchError: If the samples do not have the field.
    """
    value = get_field(batch, field)
    if value is None:
        raise BatchError(
            f"the sample lacks the field {field!r}, which names its data set (argument by; config: data.reference.by)"
        )
    values = value.reshape(-1).tolist() if isinstance(value, Tensor) else value
    return [values] if isinstance(values, str) else [str(only_name(name)) for name in values]


def smallest_shifts(fitted: Sequence[FittedReference]) -> tuple[Tensor, list[Tensor]]:
    """Returns common references, and each data set's, of which the shifts between them are smallest.

    With r_d the data set's own solution of minimum norm and P_d the projector on what its compositions tell, every
    r_d + (1 - P_d) c fits alike, with the shift P_d (r_d - c); their squares are smallest for (sum P_d) c = sum r_d.

    Args:
        fitted: The fit of each data set.

    Returns:
        (n_types,) c, and (n_types,) for each data set.
    """
    open_directions = [f.solution.null_space for f in fitted if f.solution is not None]
    told = [torch.eye(n.shape[1], dtype=torch.float64) - n.T @ n for n in open_directions]
    common = solve_least_squares(torch.stack(told).sum(0), torch.stack([f.t_z for f in fitted]).sum(0)).x
    return common, [f.t_z + common - p @ common for f, p in zip(fitted, told, strict=True)]


class OfDatasetSampleWeigher(SampleWeigher):
    """Weight 1 for the samples of one data set, 0 for others. Key: ``<field>_is_<name>``.

    Args:
        field: Field that names a sample's data set.
        name: The data set.
    """

    def __init__(self, field: str, name: str) -> None:
        self.field, self.name = field, name
        self.fields = (field,)

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return torch.tensor([n == self.name for n in dataset_names(batch, self.field)], dtype=torch.float64)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics; a slash would end it."""
        return f"{self.field}_is_{self.name}".replace("/", "_")


def fit_references_by_dataset(
    targets: list[str],
    dataset: Any,
    by: str = "dataset",
    *,
    batch_size: int = SAMPLES_PER_BATCH,
    num_workers: int = 0,
    max_num_elements: int = MAX_ATOMIC_NUMBER,
    ridge: float = 0.0,
    weights: str | SampleWeigher | None = None,
    atomic_numbers_field: str = "atomic_numbers",
    unseen_elements: UnseenPolicy = "error",
    n_worst: int = 10,
    count_by: CountBy = "sample",
    distributed: bool = False,
) -> dict[str, DatasetReferences]:
    """Fits references of their own for each data set that a field of the samples names, see `DatasetReferences`.

    A pass over the names is followed by those of `fit_linear_references`, each data set with a weigher of its own.
    `count_by="molecule"` keeps sums for every molecule and data set.

    Args:
        targets: See `fit_linear_references`; so are the arguments below.
        dataset: Samples that also have the field `by`.
        by: Field that names a sample's data set: a text or an integer.
        batch_size: Samples that are read at a time.
        num_workers: See there.
        max_num_elements: See there.
        ridge: See there.
        weights: See there.
        atomic_numbers_field: See there.
        unseen_elements: What happens to elements that a data set does not have.
        n_worst: See there.
        count_by: See there.
        distributed: See there.

    Returns:
        The references of each target.

    Raises:
        ConfigError: If an argument is out of range.
        BatchError: If a sample lacks a field.
        StatisticsError: See `fit_linear_references`.
    """
    check_fit_arguments(targets, batch_size, None, max_num_elements, ridge, n_worst, count_by)
    ranks, indices = current_ranks() if distributed else Ranks(), range(length_of(dataset))
    size = max(batch_size, SAMPLES_PER_BATCH)
    where = {by: "argument by; config: data.reference.by"}
    names = _dataset_names(
        sample_source(dataset, ranks, FitFields((by,), (), atomic_numbers_field, where), indices, size, num_workers),
        ranks,
        by,
    )
    base = weigher_of(weights)
    weighers: list[SampleWeigher] = [ProductSampleWeigher(base, OfDatasetSampleWeigher(by, name)) for name in names]
    fields = fields_of_fit(targets, weighers[0], atomic_numbers_field, count_by)
    source = sample_source(dataset, ranks, fields, indices, size, num_workers)
    metric_kwargs = {"process_group": ranks.group, "sync_on_compute": source.sharded}
    accumulator = target_accumulator(weighers, targets, max_num_elements, count_by, metric_kwargs)
    for_each_batch(source, ranks, accumulator.update, "references: fitting", False)
    n_samples = accumulator.count_results()["n_samples"][accumulator.labelled.start :].tolist()
    if not all(n_samples):
        empty = [name for name, n in zip(names, n_samples, strict=True) if n == 0]
        raise StatisticsError(
            f"the data sets {empty} (field {by!r}) have no sample with a label and a positive weight: leave them out "
            "(argument weights, config: data.split)"
        )
    fitted = solve_targets(accumulator, count_by, ridge, None)
    statistics = target_statistics(accumulator, fitted, count_by)
    measure_targets(statistics, accumulator, fitted, count_by, n_worst, source, ranks, metric_kwargs)
    references = {}
    for t, target in enumerate(targets):
        parts = {
            name: LinearReferences.from_dataset_statistics(
                of_targets[t],
                None,
                weigher.summary_string(),
                max_num_elements=max_num_elements,
                unseen_elements=unseen_elements,
                atomic_numbers_field=atomic_numbers_field,
                ridge=ridge,
                count_by=count_by,
                target=target,
            )
            for name, weigher, of_targets in zip(names, weighers, statistics, strict=True)
        }
        common, values = smallest_shifts([of_targets[t] for of_targets in fitted])
        for part, value in zip(parts.values(), values, strict=True):
            part.element_references[1:] = torch.where(part.seen_elements[1:], value, 0.0)
            log_fit(part.fit_report, True)
        left = _together(weighers, [of_targets[t] for of_targets in statistics], linear_reference_name(count_by))
        references[target] = DatasetReferences(parts, torch.cat([common.new_zeros(1), common]), by, left)
    return references


def _dataset_names(source: BatchSource, ranks: Ranks, by: str) -> list[str]:
    """Returns the names of all data sets, over all processes."""
    found: set[str] = set()
    for_each_batch(source, ranks, lambda batch: found.update(dataset_names(batch, by)), "references: data sets", False)
    return sorted(set().union(*ranks.gathered(found))) if source.sharded else sorted(found)


def _together(
    weighers: Sequence[SampleWeigher], statistics: Sequence[DatasetStatistics], reference: str
) -> dict[str, float]:
    """Returns what references leave of the energies of all data sets together."""
    pairs = list(zip([weigher.summary_string() for weigher in weighers], statistics, strict=True))
    weights = [float(s.load_statistic(key, "energy_factor")[0, 0]) ** 2 for key, s in pairs]

    def mean(statistic: str, power: int = 1) -> float:
        values = [float(s.load_statistic(key, f"energy_minus_{reference}/{statistic}")) ** power for key, s in pairs]
        return float(np.average(values, weights=weights))

    centre, mean_square = mean("mean"), mean("rms", 2)
    std = math.sqrt(max(mean_square - centre**2, 0.0))
    return {"mean": centre, "rms": math.sqrt(mean_square), "std": std, "mae": mean("mae")}
