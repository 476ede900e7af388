"""Errors of a trained model beside those of baselines, as a table and as CSV."""

from __future__ import annotations

import copy
import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import write_text, written_whole
from ofdft_norm.data.sample import molecule_index
from ofdft_norm.data.sources import Source
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import LabelFileError, counted
from ofdft_norm.example.metrics import EnergyForceErrors, LabelErrors, PhysicalErrors
from ofdft_norm.normalization.linear_references import LinearReferences
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.weighers import has_label
from ofdft_norm.tables import text_table
from ofdft_norm.transforms.project_gradient import project_gradient
from ofdft_norm.units import conversion, shown

# takes a normalised batch; returns what the metric's `update` takes: denormalised energies (n_molecules,), and
# differences of gradients (n_basis,) or forces (n_atom, 3)
Predictor = Callable[[Data], tuple[Tensor, Tensor]]
XCEnergies = dict[tuple[str, int], float]  # by molecule and SCF iteration
ErrorsByMolecule = dict[str, list[float]]  # of the energies of its samples

CONSTANT_PER_ELEMENT = "constant per element"
REFERENCE_ONLY = "reference only"
COMPOSITION_AND_XC = "composition and E_xc"
MODEL = "model"

# headings, in two lines, of the errors that a table shows; the CSV file has all errors
HEADINGS: dict[type[PhysicalErrors], dict[str, tuple[str, str]]] = {
    LabelErrors: {
        "energy_mae": ("energy", "MAE"),
        "energy_median": ("energy", "median"),
        "energy_mae_within_molecule": ("energy MAE without", "molecular offsets"),
        "gradient_mae": ("gradient", "MAE"),
        "gradient_norm": ("gradient", "norm"),
    },
    EnergyForceErrors: {
        "energy_mae": ("energy", "MAE"),
        "energy_mae_per_atom": ("energy MAE", "per atom"),
        "forces_mae": ("forces MAE", "per angstrom"),
    },
}
MAX_FILES = 10_000  # the baseline of E_xc reads every energy, which would take longer than training the example


@dataclass(frozen=True)
class ResultRow:
    """Errors of one predictor on the labelled samples of one split."""

    split: str
    predictor: str
    n_molecules: int
    n_samples: int
    errors: dict[str, float]  # by the names of the metric
    unit: str = "hartree"
    metric: type[PhysicalErrors] = LabelErrors


# --- baselines --------------------------------------------------------------------------------------------------------


def reference_only(normalizer: Normalizer) -> Predictor:
    """Predicts the normaliser's reference: E' = 0, and g' = 0 or F' = 0."""

    def predict(batch: Data) -> tuple[Tensor, Tensor]:
        energy = normalizer.denormalize_energy(torch.zeros_like(batch.energy_reference), batch)
        if normalizer.basis_info is None:
            return energy, torch.zeros_like(batch.pos, dtype=torch.float64)
        return energy, normalizer.gradient_difference(torch.zeros_like(batch.coeffs), batch)

    return predict


def constant_per_element(references: LinearReferences, normalizer: Normalizer) -> Predictor:
    """Predicts the sum of one energy for each element; its gradient is zero."""

    def predict(batch: Data) -> tuple[Tensor, Tensor]:
        original = normalizer.denormalize(batch)
        return references.energy(batch), project_gradient(-original.gradient_label, original)

    return predict


def composition_and_xc(xc_energies: XCEnergies, batches: Iterable[Data], normalizer: Normalizer) -> Predictor:
    """Predicts E = sum over atoms of a_Z + b E_xc(p) + c, by least squares over the labelled training samples.

    E_xc(p) follows from the density, as the kinetic energy does: a network with the density as input should be better.
    Gradients are NaN: it predicts none.
    """
    n_types = cast(BasisInfo, normalizer.basis_info).n_types

    def features(batch: Data) -> Tensor:
        """Returns (n_molecules, n_types + 2): the number of atoms of each element, E_xc (NaN: unknown), and 1."""
        samples = zip(batch.mol_id, batch.scf_iteration.reshape(-1).tolist(), strict=True)
        xc = torch.tensor([xc_energies.get(sample, torch.nan) for sample in samples], dtype=torch.float64)
        atoms, one = (molecule_index(batch, "pos"), batch.atom_ind), torch.ones((), dtype=torch.float64)
        counts = xc.new_zeros(len(xc), n_types).index_put(atoms, one, accumulate=True)
        return torch.cat([counts, xc[:, None], torch.ones_like(xc)[:, None]], dim=1)

    def predict(batch: Data) -> tuple[Tensor, Tensor]:
        return features(batch) @ weights, torch.full_like(batch.coeffs, torch.nan, dtype=torch.float64)

    rows, energies = [], []
    for batch in batches:
        labelled = batch.has_energy_label.reshape(-1)
        rows.append(features(batch)[labelled])
        energies.append(normalizer.denormalize_energy(batch.energy_label.reshape(-1), batch)[labelled])
    # gelsd handles rank-deficient compositions: the solution has minimum norm
    weights = torch.linalg.lstsq(torch.cat(rows), torch.cat(energies)[:, None], driver="gelsd").solution[:, 0]
    return predict


def read_xc_energies(source: Source, unit: str) -> XCEnergies | None:
    """Reads E_xc, in a unit, of every labelled sample of label files or packed labels, by molecule and SCF iteration.

    Returns None for other sources, for more than `MAX_FILES` label files, and for labels without both energies.
    """
    if source.energy_key is None or len(source.everything()) > MAX_FILES:
        return None
    try:
        both, kinetic = (_read_energies(source, key) for key in ("e_kin_plus_xc", "e_kin"))
    except LabelFileError:
        return None
    factor = conversion(source.unit or unit, unit)
    return {sample: factor * (energy - kinetic[sample]) for sample, energy in both.items()}


def _read_energies(source: Source, key: str) -> XCEnergies:
    of_key: Source = replace(cast(Any, source), energy_key=key)
    dataset: Any = of_key.open("all", source.everything(), ())
    energies: XCEnergies = {}
    for molecule in range(dataset.n_molecules):
        batch = dataset.molecules([molecule], ("energy_label", "has_energy_label", "mol_id", "scf_iteration"))
        labelled = batch.has_energy_label
        iterations, values = batch.scf_iteration[labelled].tolist(), batch.energy_label[labelled].tolist()
        energies |= {(batch.mol_id[0], i): energy for i, energy in zip(iterations, values, strict=True)}
    return energies


def baselines(datamodule: OFDFTDataModule) -> dict[str, Predictor]:
    """Returns predictors that a model should be better than, fitted on the training split, by name."""
    basis_info, normalizer = datamodule.basis_info, copy.deepcopy(datamodule.normalizer)
    if basis_info is None:
        return {REFERENCE_ONLY: reference_only(normalizer)}
    unseen: Literal["zero", "error"] = "zero" if datamodule.settings.unseen_elements == "identity" else "error"
    references = LinearReferences.from_dataset_statistics(
        datamodule.statistics, basis_info, datamodule.weigher_key, unseen_elements=unseen
    )
    predictors: dict[str, Predictor] = {
        CONSTANT_PER_ELEMENT: constant_per_element(references, normalizer),
        REFERENCE_ONLY: reference_only(normalizer),
    }
    xc_energies = read_xc_energies(datamodule.source, datamodule.unit)
    if xc_energies is not None:
        batches = split_batches(datamodule, "train")
        predictors[COMPOSITION_AND_XC] = composition_and_xc(xc_energies, batches, normalizer)
    return predictors


# --- measuring --------------------------------------------------------------------------------------------------------


def split_batches(datamodule: OFDFTDataModule, split: str) -> Iterable[Data]:
    """Yields the normalised batches of ``train``, ``val`` or ``test`` on the CPU, outside of a trainer's loop."""
    loader = getattr(datamodule, f"{split}_dataloader")()
    return (datamodule.on_after_batch_transfer(batch, 0) for batch in loader)


def evaluate(
    predictors: Mapping[str, Predictor], batches: Iterable[Data], normalizer: Normalizer, split: str
) -> list[ResultRow]:
    """Returns the errors of predictors on the labelled samples of a split, measured in this process alone."""
    metric: type[PhysicalErrors] = EnergyForceErrors if normalizer.basis_info is None else LabelErrors
    # under DDP, samplers repeat samples to even out the ranks, and the other ranks may have ended
    metrics = {name: metric(sync_on_compute=False) for name in predictors}
    for batch in batches:
        for name, predict in predictors.items():
            metrics[name].update(normalizer, batch, *predict(batch))
    errors = {name: {error: float(value) for error, value in m.compute().items()} for name, m in metrics.items()}
    return [ResultRow(split, n, *m.sizes(), errors[n], normalizer.unit, metric) for n, m in metrics.items()]


def results_table(model: Predictor, datamodule: OFDFTDataModule, splits: Sequence[str]) -> list[ResultRow]:
    """Returns the errors of the baselines and of a `MeasuredModule`'s `compare`, the model last, for each split."""
    predictors, normalizer = {**baselines(datamodule), MODEL: model}, copy.deepcopy(datamodule.normalizer)
    found = (evaluate(predictors, split_batches(datamodule, s), normalizer, s) for s in splits)
    return [row for rows in found for row in rows]


def energy_errors(predict: Predictor, batches: Iterable[Data], normalizer: Normalizer) -> ErrorsByMolecule:
    """Returns predicted minus labelled energies of all labelled samples; samples without a name are numbered."""
    errors: ErrorsByMolecule = defaultdict(list)
    n_seen = 0
    for batch in batches:
        labelled = has_label(batch, required=False).tolist()
        names = batch.get("mol_id") or [f"sample {n_seen + i}" for i in range(len(labelled))]
        n_seen += len(labelled)
        true = normalizer.denormalize_energy(batch[normalizer.energy_field].reshape(-1), batch)
        differences = (predict(batch)[0].detach() - true).tolist()
        for name, difference, counts in zip(names, differences, labelled, strict=True):
            if counts:
                errors[str(name)].append(difference)
    return errors


# --- table and file ---------------------------------------------------------------------------------------------------


def format_table(rows: Sequence[ResultRow]) -> str:
    """Returns the rows as a text table, split by split; ``-`` where a predictor predicts nothing."""
    unit, headings = rows[0].unit, HEADINGS[rows[0].metric]
    noun = "molecule" if rows[0].metric is LabelErrors else "structure"
    names = dict(zip(rows[0].metric.QUANTITIES, rows[0].metric.names(unit), strict=True))
    cells = [[f"errors in {shown(unit).small}", *(second for _, second in headings.values())]]
    for split in dict.fromkeys(row.split for row in rows):
        of_split = [row for row in rows if row.split == split]
        cells.append([f"{split} ({counted(of_split[0].n_molecules, noun)})", *[""] * len(headings)])
        cells += [[row.predictor, *(_cell(row.errors[names[quantity]]) for quantity in headings)] for row in of_split]
    return text_table(["", *(first for first, _ in headings.values())], cells)


def _cell(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.{1 if error < 1e4 else 0}f}"


def write_csv(rows: Sequence[ResultRow], path: str | Path) -> None:
    """Writes the rows as CSV, at full precision; replaces an existing file."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        names = rows[0].metric.names(rows[0].unit)
        writer.writerow(["split", "predictor", "n_molecules", "n_samples", *names])
        for row in rows:
            writer.writerow([row.split, row.predictor, row.n_molecules, row.n_samples, *row.errors.values()])


def read_csv(path: str | Path, unit: str) -> list[ResultRow]:
    """Reads the rows of `write_csv`."""
    with Path(path).open(newline="") as file:
        header, *lines = csv.reader(file)
    metric, rows = next(metric for metric in HEADINGS if list(metric.names(unit)) == header[4:]), []
    for split, predictor, n_molecules, n_samples, *values in lines:
        errors = dict(zip(header[4:], map(float, values), strict=True))
        rows.append(ResultRow(split, predictor, int(n_molecules), int(n_samples), errors, unit, metric))
    return rows


class TableOfRuns(Callback):
    """Ends a sweep with one table of its runs, on the screen and as ``results.txt`` in the sweep's folder.

    Runs are named by the overrides in which they differ; the errors of the baselines are those of the first run.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads the results of the runs; Hydra calls this."""
        folder, runs = Path(config.hydra.sweep.dir), {}
        for path in folder.glob("*/results.csv"):
            hydra = OmegaConf.load(path.parent / ".hydra" / "hydra.yaml").hydra
            unit = OmegaConf.load(path.parent / "config.yaml").data.unit
            overrides = dict(text.split("=", 1) for text in hydra.overrides.task)
            runs[int(hydra.job.num)] = overrides, read_csv(path, unit)
        if not runs:
            return
        given = dict.fromkeys(key for overrides, _ in runs.values() for key in overrides)
        keys = [key for key in given if len({overrides.get(key) for overrides, _ in runs.values()}) > 1]
        rows = [row for row in runs[min(runs)][1] if row.predictor in (CONSTANT_PER_ELEMENT, COMPOSITION_AND_XC)]
        for _, (overrides, results) in sorted(runs.items()):
            name = ", ".join(overrides.get(key, "-") for key in keys)
            rows += [replace(row, predictor=name) for row in results if row.predictor == MODEL]
        table = f"{counted(len(runs), 'run')}, by {', '.join(keys)}\n{format_table(rows)}\n"
        write_text(folder / "results.txt", table)
        print(f"{table}folder of all runs: {folder.absolute()}")
