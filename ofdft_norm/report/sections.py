"""The sections of a report, each from what it needs."""

from __future__ import annotations

import csv
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.elements import symbol
from ofdft_norm.data.irreps import SHELL_LETTERS
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.example.label_errors import error_name
from ofdft_norm.example.plots import AFTER, BEFORE, gradient_ranges
from ofdft_norm.example.results import HEADINGS, MODEL
from ofdft_norm.example.results import MEANINGS as RESULT_MEANINGS
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.lambda_sources import MEANINGS as SOURCES_MEANINGS
from ofdft_norm.normalization.lambda_sources import lambda_sources, sources_rows
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.summary import ENERGY_MEANINGS, SEEN_MEANINGS, energy_rows, seen_rows
from ofdft_norm.report.figures import (
    energy_histogram_figure,
    error_figure,
    gradient_figures,
    log_histogram_figure,
    picture,
)
from ofdft_norm.report.measured import SPLITS, Measured
from ofdft_norm.report.page import Section, Table
from ofdft_norm.statistics.arrays import WORST_MOLECULES
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.units import shown
from ofdft_norm.version import package_version

_MOST_MOLECULES = 40  # that are shown one by one
_PACKAGES = ("torch", "lightning", "torch_geometric", "hydra-core", "numpy", "zarr")
_MEANINGS = {
    "split": "part of the data",
    "molecules": "molecules in it",
    "samples": "their densities",
    "element": "an element of the training split",
    "linear reference": "its energy in the fit of one energy for each element, which are to add up to the labels",
    "std. error": "of the linear reference, as the scatter of the residuals says",
    "atomic reference": "its energy in the atomic reference, beside the mean gradient times the coefficients",
    "molecule": "its name",
    "formula": "its atoms",
    "SCF": "SCF iteration of its worst sample",
    "residual": "that sample's label minus the references",
    "shells": "all functions of an element's angular momentum",
    "dimensions": "how many functions that is",
    "rescaled": "so many of them have a lambda other than 1",
    "min λ": "smallest lambda, which multiplies a coefficient and divides its gradient",
    "median λ": "lambda of the dimension in the middle",
    "max λ": "largest lambda",
    "max |g| before": "largest gradient component of any sample, after data.pre_transforms",
    "max |g'| after": "the same after reference and rescaling",
    "out of range": "how far a coefficient of the worst sample leaves the training range, in units of its width",
    "in": "that coefficient: element, shell and component",
    "model's E MAE": "mean absolute energy error of the molecule's samples",
}


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    Attributes:
        statistics: Of the training split.
        normalizer: Made of them.
        basis_info: The basis.
        weigher_key: Whose statistics it was made of.
    """

    statistics: DatasetStatistics
    normalizer: Normalizer
    basis_info: BasisInfo
    weigher_key: str


def seen_table(subject: Subject) -> Table:
    """What the statistics were fitted on.

    Args:
        subject: Statistics, normaliser and basis.
    """
    header, *rows = seen_rows(subject.statistics, subject.basis_info)
    return Table("what the statistics were fitted on, by sample weigher", header, rows, SEEN_MEANINGS)


def data_section(datamodule: OFDFTDataModule, subject: Subject, measured: Measured, missing: str) -> Section:
    """The splits, what was fitted on, and which molecules are held out.

    Args:
        datamodule: The run's data.
        subject: Statistics, normaliser and basis.
        measured: What was read and predicted.
        missing: Why samples could not be read; empty: they could.
    """
    text = [f"Labels: {datamodule.source}.", f"Split: {datamodule.split}."]
    if missing:
        return Section("data", "Data set and split", [*text, missing], [seen_table(subject)])
    rows = []
    for name in ("train", *SPLITS):
        if name in datamodule.raw_datasets.names():
            dataset = datamodule.raw_datasets[name]
            rows.append([name, str(getattr(dataset, "n_molecules", "-")), f"{len(dataset):,}"])
    for split in SPLITS:
        held_out = sorted(molecule for s, molecule in measured.excess if s == split)
        if 0 < len(held_out) <= _MOST_MOLECULES:
            text.append(f"{split}: {', '.join(held_out)}.")
    tables = [Table("samples of each split, with or without label", ["split", "molecules", "samples"], rows, _MEANINGS)]
    return Section("data", "Data set and split", text, [*tables, seen_table(subject)])


def references_section(subject: Subject) -> Section:
    """What references leave of the energies, one energy for each element with its error, and the worst molecules.

    Args:
        subject: Statistics, normaliser and basis.
    """
    statistics, key, unit = subject.statistics, subject.weigher_key, shown(subject.normalizer.unit).symbol
    found = [table for weigher in statistics.weigher_keys() if (table := energy_rows(statistics, weigher))[1:]]
    caption = "energies before and after each reference, by sample weigher"
    tables = [Table(caption, header, rows, ENERGY_MEANINGS) for header, *rows in found]
    if f"{key}/linear_ref_atom_type_bias" in statistics:
        summary = LinearReferences.from_dataset_statistics(statistics, subject.basis_info, key).summary()
        rows = [
            [e.symbol, f"{e.value:.5f}", "-" if e.standard_error is None else f"{e.standard_error:.3f}"]
            for e in summary.elements
        ]
        if f"{key}/atom_ref_atom_type_bias" in statistics:
            of_atoms = statistics.load_statistic(key, "atom_ref_atom_type_bias")
            places = subject.basis_info.atom_indices(np.array([e.atomic_number for e in summary.elements]))
            rows = [[*row, f"{of_atoms[place]:.5f}"] for row, place in zip(rows, places, strict=True)]
        header = ["element", f"linear reference [{unit}]", f"std. error [{unit}]", f"atomic reference [{unit}]"]
        tables.append(Table("one energy for each element", header[: len(rows[0])] if rows else header, rows, _MEANINGS))
    rows = []
    for worst in statistics.attributes.get(WORST_MOLECULES["linear_ref"], {}).get(key, []):
        iteration = "-" if worst["scf_iteration"] is None else str(worst["scf_iteration"])
        rows.append([worst["name"], worst["formula"], iteration, f"{worst['residual']:+.3f}"])
    if rows:
        header = ["molecule", "formula", "SCF", f"residual [{unit}]"]
        tables.append(Table("molecules that the linear reference fits worst", header, rows, _MEANINGS))
    name = "none" if subject.normalizer.reference is None else type(subject.normalizer.reference).__name__
    return Section("references", "References", [f"The normaliser's reference: {name}."], tables)


def lambda_section(subject: Subject, normalisation: str) -> Section:
    """Lambda by element and shell, and the largest gradients before and after.

    Args:
        subject: Statistics, normaliser and basis.
        normalisation: Which normalisation it is, in words.
    """
    statistics, normalizer, basis_info = subject.statistics, subject.normalizer, subject.basis_info
    figures = gradient_figures(statistics, normalizer, basis_info, subject.weigher_key)
    pictures = [picture(figure, caption, i) for i, (figure, caption) in enumerate(figures)]
    text = [f"Normalised by {normalisation}."]
    if normalizer.rescaling is None:
        return Section("lambda", "Lambda", [*text, "Nothing is rescaled: lambda is 1 everywhere."], [], pictures)
    branches = normalizer.rescaling.branches()
    text.append(
        f"Lambda of {sum(branches.values())} dimensions is set by: "
        + ", ".join(f"{n} {name}" for name, n in branches.items())
        + f". The dashed line is s_grad = {normalizer.rescaling.s_grad:.4g} {shown(normalizer.unit).symbol}."
    )
    before, after = gradient_ranges(statistics, normalizer, subject.weigher_key)
    scale = normalizer.rescaling.lambda_z.cpu().numpy()
    rows = []
    for number, index in zip(basis_info.atomic_numbers, basis_info.atom_ind_to_basis_function_ind, strict=True):
        for l in np.unique(basis_info.l_per_basis_func[index]):
            own = index[basis_info.l_per_basis_func[index] == l]
            numbers = [scale[own].min(), np.median(scale[own]), scale[own].max(), before[own].max(), after[own].max()]
            name = f"{symbol(int(number))} {SHELL_LETTERS[l]}"
            rows.append([name, str(len(own)), str(int((scale[own] != 1).sum())), *(f"{x:.3g}" for x in numbers)])
    largest = [f"max |g| before [{shown(subject.normalizer.unit).symbol}]", "max |g'| after"]
    header = ["shells", "dimensions", "rescaled", "min λ", "median λ", "max λ", *largest]
    return Section(
        "lambda",
        "Lambda",
        text,
        [Table("lambda by element and shell", header, rows, _MEANINGS)],
        pictures,
        pictures_first=True,
    )


def sources_section(subject: Subject) -> Section:
    """Which molecules lambda hangs on.

    Args:
        subject: Statistics, normaliser and basis.
    """
    title = "What sets lambda"
    if subject.normalizer.rescaling is None:
        return Section("sources", title, ["Nothing is rescaled."])
    found = lambda_sources(subject.statistics, subject.normalizer.rescaling, subject.basis_info, subject.weigher_key)
    if found is None:
        return Section(
            "sources", title, ["The statistics do not say: they are of an older version or another program."]
        )
    molecules = found.molecules()
    text = [
        f"{sum(m.n_dimensions for m in molecules)} lambdas are set by the largest gradient of one sample each, of "
        f"{len(molecules)} molecules. The ratio is lambda over what it would be without that molecule, the mean "
        "gradient being kept: a large one says that the scale hangs on this molecule alone."
    ]
    header, *rows = sources_rows(found, subject.basis_info, 15)
    return Section(
        "sources",
        title,
        text,
        [Table("molecules without which a lambda changes most, and that set most", header, rows, SOURCES_MEANINGS)],
    )


def histogram_section(measured: Measured, missing: str) -> Section:
    """Distributions before and after normalisation.

    Args:
        measured: What was read and predicted.
        missing: Why samples could not be read; empty: they could.
    """
    title = "Before and after"
    if missing:
        return Section("histograms", title, [missing])
    figures = []
    for name, quantity in (("coeffs", "coefficient"), ("gradient_label", "gradient")):
        caption = (
            f"{quantity}s of labelled training samples, before and after; the leftmost bin has all that are smaller"
        )
        figures.append((log_histogram_figure(*measured.histograms[name], quantity), caption))
    label = f"energy [{shown(measured.unit).symbol}]"
    figures.append((energy_histogram_figure(measured.energies[0], BEFORE, label), "energies before"))
    figures.append((energy_histogram_figure(measured.energies[1], AFTER, "normalised energy"), "energies after"))
    pictures = [picture(figure, caption, 100 + i) for i, (figure, caption) in enumerate(figures)]
    text = [f"{len(measured.energies[0]):,} labelled samples of the training split."]
    return Section("histograms", title, text, pictures=pictures)


def results_section(folder: Path, measured: Measured, missing: str) -> Section:
    """Errors of the model and the baselines, with their standard errors over molecules, and molecule by molecule.

    Args:
        folder: The run's folder.
        measured: What was read and predicted.
        missing: Why samples could not be read; empty: they could.
    """
    title = "Results"
    if missing:
        return Section("results", title, [missing])
    written: dict[tuple[str, str], dict[str, str]] = {}
    if (folder / "results.csv").is_file():
        with (folder / "results.csv").open(newline="") as file:
            written = {(row["split"], row["predictor"]): row for row in csv.DictReader(file)}
    rest, small = [name for name in HEADINGS if name != "energy_mae"], shown(measured.unit).small
    rows, pictures = [], []
    for number, ((split, predictor), by_molecule) in enumerate(measured.errors.items()):
        if not by_molecule:
            continue
        means = np.array([np.abs(e).mean() for e in by_molecule.values()])
        samples = np.concatenate(list(by_molecule.values()))
        error = f"{means.std(ddof=1) / len(means) ** 0.5:.1f}" if len(means) > 1 else "?"
        own = written.get((split, predictor), {})
        others = [_cell(own.get(error_name(quantity, measured.unit))) for quantity in rest]
        counts = [str(len(means)), str(len(samples))]
        rows.append([f"{split}: {predictor}", *counts, f"{np.abs(samples).mean():.1f} ± {error}", *others])
        if predictor == MODEL:
            worst = sorted(by_molecule.items(), key=lambda item: -abs(item[1].mean()))[:_MOST_MOLECULES]
            figure = error_figure([name for name, _ in worst], [e for _, e in worst], small)
            pictures.append(
                picture(figure, f"{split}: the model's energy errors by molecule, mean and range", 200 + number)
            )
    header = [f"errors in {small}", "molecules", "samples", "E MAE", *(HEADINGS[name] for name in rest)]
    text = ["± is the standard error over molecules: samples of one molecule err alike, and few molecules say little."]
    return Section("results", title, text, [Table("", header, rows, {**_MEANINGS, **RESULT_MEANINGS})], pictures)


def _cell(value: str | None) -> str:
    return "-" if value is None or np.isnan(float(value)) else f"{float(value):.1f}"


def range_section(measured: Measured, missing: str) -> Section:
    """Held-out molecules that leave the training range, with their errors.

    Args:
        measured: What was read and predicted.
        missing: Why samples could not be read; empty: they could.
    """
    title = "Out of range"
    if missing:
        return Section("range", title, [missing])
    worst = sorted(measured.excess.items(), key=lambda item: -item[1][0])[:_MOST_MOLECULES]
    rows = [
        [
            molecule,
            split,
            f"{excess:.2f}",
            dimension or "-",
            f"{np.abs(measured.errors[split, MODEL][molecule]).mean():.1f}",
        ]
        for (split, molecule), (excess, dimension) in worst
    ]
    n_far = sum(excess > 1 for excess, _ in measured.excess.values())
    text = [
        f"{n_far} of {len(measured.excess)} held-out molecules have a labelled sample with a coefficient that leaves "
        "the range of the training split by more than the range's width. There a model extrapolates."
    ]
    header = ["molecule", "split", "out of range", "in", f"model's E MAE [{shown(measured.unit).small}]"]
    return Section("range", title, text, [Table("held-out molecules, by their worst sample", header, rows, _MEANINGS)])


def versions_section(statistics: DatasetStatistics, run: dict[str, Any]) -> Section:
    """Versions of what made the statistics, the run and the report.

    Args:
        statistics: Statistics of the training split.
        run: Content of the run's ``run.yaml``; empty where there is none.
    """
    rows = [["this report", f"ofdft_norm {package_version()}"]]
    if run:
        rows.append(["the run", f"ofdft_norm {run.get('package_version')}"])
        rows.append(["statistics' fingerprint", str(run.get("statistics_fingerprint"))[:12]])
    for name in ("created_by", "created_at", "statistics_version"):
        if name in statistics.attributes:
            rows.append([f"statistics: {name.replace('_', ' ')}", str(statistics.attributes[name])])
    rows.append(["Python", platform.python_version()])
    for package in _PACKAGES:
        try:
            rows.append([package, version(package)])
        except PackageNotFoundError:
            rows.append([package, "?"])
    return Section("versions", "Versions", [], [Table("", ["what", "version"], rows)])
