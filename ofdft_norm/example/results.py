"""Errors of a trained model and of baselines, as a table and as CSV."""

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.elements import find_symbol
from ofdft_norm.data.files import write_text, write_whole
from ofdft_norm.data.sample import find_molecule_index
from ofdft_norm.data.sources import Source
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import LabelFileError, format_count
from ofdft_norm.example.metrics import EnergyForceErrors, LabelErrors, PhysicalErrors, get_atomic_numbers, name_error
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.weighers import GroundStateOnlySampleWeigher, HasEnergyLabelSampleWeigher, find_labelled
from ofdft_norm.tables import format_rows
from ofdft_norm.units import find_factor, find_unit

# takes a normalised batch; returns what the metric's `update` takes, denormalised: energies (n_molecules,), and
# gradients (n_basis,), or forces (n_atom, 3) and stress (n_molecules, 6)
Predictor = Callable[[Data], tuple[Tensor, ...]]
Pairs = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # labels and predictions
StoredEnergies = dict[tuple[str, int], float]  # by molecule and SCF iteration

REFERENCE_ONLY = "reference only"
MODEL = "model"
# linear baselines: one energy for each element, a constant, and a multiple of each of these energies of the labels
BASELINES: dict[str, tuple[str, ...]] = {"composition": (), "composition + T_TF + T_vW": ("e_kin_tf", "e_kin_vw")}

# headings, in two lines, of the errors that a table shows; the CSV file has all errors
HEADINGS: dict[type[PhysicalErrors], dict[str, tuple[str, str]]] = {
    LabelErrors: {
        "energy_mae_ground_state": ("energy at the", "ground state"),
        "energy_mae_along_path": ("energy along", "the path"),
        "gradient_mae": ("gradient", "component"),
    },
    EnergyForceErrors: {
        "energy_mae": ("energy", "of a structure"),
        "energy_mae_per_atom": ("energy", "per atom"),
        "forces_mae": ("forces", "per angstrom"),
        "stress_mae": ("stress", "per A^3"),
    },
}
CHEMICAL_ACCURACY = 0.0016  # hartree: 1 kcal/mol
MAX_FILES = 10_000  # baselines read every stored energy, which would take longer than training the example


@dataclass(frozen=True)
class ResultRow:
    """Errors of one predictor on the labelled samples of one split, or of a `group` of them or of their atoms."""

    split: str
    predictor: str
    group: str  # element=... | config_type=... | "": all
    n_molecules: int
    n_samples: int
    errors: dict[str, float]  # by the names of the metric
    unit: str = "hartree"
    metric: type[PhysicalErrors] = LabelErrors


def make_reference_predictor(normalizer: Normalizer) -> Predictor:
    """Returns a predictor of the normaliser's reference: E' = 0, and g' = 0 or F' = 0."""

    def predict(batch: Data) -> tuple[Tensor, ...]:
        energy = normalizer.denormalize_energy(torch.zeros_like(batch.energy_reference), batch)
        if normalizer.basis_info is None:
            return energy, torch.zeros_like(batch.pos, dtype=torch.float64), energy.new_zeros(len(energy), 6)
        return energy, normalizer.denormalize_gradient(torch.zeros_like(batch.coeffs), batch)

    return predict


def fit_baseline(energies: Sequence[StoredEnergies], batches: Iterable[Data], normalizer: Normalizer) -> Predictor:
    """Returns a predictor of E = sum over atoms of a_Z + c + sum_i b_i E_i(p), fitted to the ground states of batches.

    E_i are stored energies of the densities. The fit is by least squares. Predicted gradients are NaN.
    """
    n_types = cast(BasisInfo, normalizer.basis_info).n_types

    def features(batch: Data) -> Tensor:
        """Returns the number of atoms of each element, 1, and the stored energies (NaN: unknown), float64."""
        samples = list(zip(batch.mol_id, batch.scf_iteration.reshape(-1).tolist(), strict=True))
        stored = [[known.get(sample, torch.nan) for known in energies] for sample in samples]
        atoms, one = (find_molecule_index(batch, "pos"), batch.atom_ind), torch.ones((), dtype=torch.float64)
        counts = one.new_zeros(len(samples), n_types).index_put(atoms, one, accumulate=True)
        return torch.cat([counts, one.expand(len(samples), 1), torch.tensor(stored, dtype=torch.float64)], dim=1)

    def predict(batch: Data) -> tuple[Tensor, Tensor]:
        return features(batch) @ weights, torch.full_like(batch.coeffs, torch.nan, dtype=torch.float64)

    weigher, rows, right = GroundStateOnlySampleWeigher() * HasEnergyLabelSampleWeigher(), [], []
    for batch in batches:
        used = weigher.get_weights(batch) > 0
        rows.append(features(batch)[used])
        right.append(normalizer.denormalize_energy(batch.energy_label.reshape(-1), batch)[used])
    # gelsd handles rank-deficient compositions: the solution has minimum norm
    weights = torch.linalg.lstsq(torch.cat(rows), torch.cat(right)[:, None], driver="gelsd").solution[:, 0]
    return predict


def read_energies(source: Source, key: str, unit: str) -> StoredEnergies | None:
    """Reads a stored energy, in a unit, of every labelled sample of label files or packed labels.

    Returns None for other sources, for more than `MAX_FILES` label files, and for labels without this energy.
    """
    if source.energy_key is None or len(members := source.everything()) > MAX_FILES:
        return None
    of_key: Source = replace(cast(Any, source), energy_key=key)
    factor, energies = find_factor(source.unit or unit, unit), StoredEnergies()
    try:
        dataset: Any = of_key.open("all", members, ())
        for molecule in range(dataset.n_molecules):
            batch = dataset.molecules([molecule], ("energy_label", "has_energy_label", "mol_id", "scf_iteration"))
            labelled = batch.has_energy_label
            iterations, values = batch.scf_iteration[labelled].tolist(), batch.energy_label[labelled].tolist()
            energies |= {(batch.mol_id[0], i): factor * energy for i, energy in zip(iterations, values, strict=True)}
    except LabelFileError:
        return None
    return energies


def fit_all_baselines(datamodule: OFDFTDataModule) -> dict[str, Predictor]:
    """Returns predictors that a model should be better than, fitted on the training split, by name."""
    normalizer, predictors = datamodule.normalizer, dict[str, Predictor]()
    if datamodule.basis_info is not None and datamodule.source.energy_key is not None:
        for name, keys in BASELINES.items():
            energies = [read_energies(datamodule.source, key, datamodule.unit) for key in keys]
            known = [energy for energy in energies if energy is not None]
            if len(known) == len(keys):
                predictors[name] = fit_baseline(known, iterate_batches(datamodule, "train"), normalizer)
    return {**predictors, REFERENCE_ONLY: make_reference_predictor(normalizer)}


def iterate_batches(datamodule: OFDFTDataModule, split: str) -> Iterable[Data]:
    """Yields the normalised batches of a part on the CPU, outside of a trainer's loop."""
    loader = datamodule.part_dataloader(split)
    return (datamodule.on_after_batch_transfer(batch, 0) for batch in loader)


def evaluate(
    predictors: Mapping[str, Predictor], batches: Iterable[Data], normalizer: Normalizer, split: str
) -> tuple[list[ResultRow], tuple[Pairs, Pairs]]:
    """Measures predictors on the labelled samples of a split, in this process alone.

    Returns the errors of each predictor, then the errors of the last one by `config_type` of the samples and by element
    (of derivatives only). Also returns labels and predictions of the last one: energies minus the reference, and
    components of derivatives.
    """
    kind: type[PhysicalErrors] = EnergyForceErrors if normalizer.basis_info is None else LabelErrors
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)  # rows and molecules, by predictor and group
    points = []
    for batch in batches:
        for name, predict in predictors.items():
            predicted = predict(batch)
            measured = kind.measure(normalizer, batch, *predicted)
            found[name, ""].append(measured[:2])
        points.append(measured[2:])
        for number in get_atomic_numbers(batch).unique().tolist():
            of_element = kind.measure(normalizer, batch, torch.nan * predicted[0], predicted[1], element=number)
            found[name, f"element={find_symbol(number)}"].append(of_element[:2])
        labelled = find_labelled(batch, required=False).tolist()
        types = np.array(list(compress(batch.get("config_type") or [""] * len(labelled), labelled)))
        for text in np.unique(types):
            of_type = torch.from_numpy(types == text)
            found[name, f"config_type={text}"].append([values[of_type] for values in measured[:2]])
    groups = Counter(group.partition("=")[0] for _, group in found)
    results = []
    for (name, group), several in sorted(found.items(), key=lambda item: bool(item[0][1])):
        if not group or groups[group.partition("=")[0]] > 1:
            rows, molecules = (torch.cat(values) for values in zip(*several, strict=True))
            errors = {error: float(v) for error, v in kind.compute_errors(normalizer.unit, rows, molecules).items()}
            sizes = len(molecules.unique()), len(rows)
            results.append(ResultRow(split, name, group, *sizes, errors, normalizer.unit, kind))
    energies, derivatives = (torch.cat(values, 1).numpy() for values in zip(*points, strict=True))
    return results, ((energies[0], energies[1]), (derivatives[0], derivatives[1]))


def format_table(rows: Sequence[ResultRow]) -> str:
    """Returns mean absolute errors as a text table, split by split; ``-`` where a predictor predicts nothing.

    Rows of the split ``val``, by which a checkpoint is chosen, are left out where there are others.
    """
    unit = rows[0].unit
    noun = ("geometry", "geometries") if rows[0].metric is LabelErrors else ("structure", "structures")
    names = dict(zip(rows[0].metric.QUANTITIES, rows[0].metric.names(unit), strict=True))
    known = {name for row in rows for name, value in row.errors.items() if not math.isnan(value)}
    headings = {quantity: text for quantity, text in HEADINGS[rows[0].metric].items() if names[quantity] in known}
    cells = [[f"mean absolute errors in {find_unit(unit).small}", *(second for _, second in headings.values())]]
    splits = list(dict.fromkeys(row.split for row in rows))
    for split in [split for split in splits if split != "val"] or splits:
        of_split = [row for row in rows if row.split == split]
        n = of_split[0].n_molecules
        cells.append([f"{split} ({n} {noun[n != 1]})", *[""] * len(headings)])
        for row in of_split:
            errors = (row.errors[names[quantity]] for quantity in headings)
            texts = ("-" if math.isnan(error) else f"{error:.{1 if error < 1e4 else 0}f}" for error in errors)
            cells.append([", ".join(filter(None, [row.predictor, row.group])), *texts])
    return format_rows(["", *(first for first, _ in headings.values())], cells)


def describe_accuracy(rows: Sequence[ResultRow]) -> str:
    """Returns a text with the distance from chemical accuracy at the ground states of each held-out split."""
    unit, texts = rows[0].unit, []
    limit = CHEMICAL_ACCURACY * find_factor("hartree", unit) * find_unit(unit).factor
    for row in rows:
        error = row.errors.get(name_error("energy_mae_ground_state", unit), math.nan)
        if row.predictor == MODEL and not row.group and row.split != "val" and not math.isnan(error):
            texts.append(f"{row.split} {error - limit:+.1f}")
    symbol = find_unit(unit).small
    return f"model minus chemical accuracy ({limit:.1f} {symbol}): {', '.join(texts)} {symbol}" if texts else ""


def write_csv(rows: Sequence[ResultRow], path: str | Path) -> None:
    """Writes the rows as CSV, at full precision; replaces an existing file."""
    with write_whole(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        names = rows[0].metric.names(rows[0].unit)
        writer.writerow(["split", "predictor", "group", "n_molecules", "n_samples", *names])
        for row in rows:
            sizes = row.n_molecules, row.n_samples
            writer.writerow([row.split, row.predictor, row.group, *sizes, *row.errors.values()])


def read_csv(path: str | Path, unit: str) -> list[ResultRow]:
    """Reads the rows of `write_csv`."""
    with Path(path).open(newline="") as file:
        header, *lines = csv.reader(file)
    metric, rows = next(metric for metric in HEADINGS if list(metric.names(unit)) == header[5:]), []
    for split, predictor, group, n_molecules, n_samples, *values in lines:
        errors = dict(zip(header[5:], map(float, values), strict=True))
        rows.append(ResultRow(split, predictor, group, int(n_molecules), int(n_samples), errors, unit, metric))
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
        rows = [row for row in runs[min(runs)][1] if row.predictor in BASELINES]
        for _, (overrides, results) in sorted(runs.items()):
            name = ", ".join(overrides.get(key, "-") for key in keys)
            rows += [replace(row, predictor=name) for row in results if row.predictor == MODEL and not row.group]
        table = f"{format_count(len(runs), 'run')}, by {', '.join(keys)}\n{format_table(rows)}\n"
        write_text(folder / "results.txt", table)
        print(f"{table}folder of all runs: {folder.absolute()}")
