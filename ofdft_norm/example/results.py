"""What a trained model is worth: its errors beside those of baselines, as a table."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.files import written_whole
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, counted
from ofdft_norm.example.label_errors import LabelErrors, error_name
from ofdft_norm.example.xc_baseline import CompositionAndXC, read_xc_energies
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.sample_weighers import has_label
from ofdft_norm.tables import text_table
from ofdft_norm.units import shown

Prediction = tuple[Tensor, Tensor]
# takes a normalised batch, returns energies (n_molecules,) and gradients (n_basis,) of original coefficients
Predictor = Callable[[Data], Prediction]

CONSTANT_PER_ELEMENT = "constant per element"
REFERENCE_ONLY = "reference only"
COMPOSITION_AND_XC = "composition and E_xc"
MODEL = "model"

# what a table shows of the errors, and what that is; files hold all of them
HEADINGS = {
    "energy_mae": "E MAE",
    "energy_median": "E median",
    "energy_mae_within_molecule": "E within molecule",
    "gradient_mae": "gradient MAE",
    "gradient_norm": "gradient norm",
}
MEANINGS = {
    "val": "held out of training; of checkpoints that are saved, the best has the smallest energy error here",
    "test": "held out of training, and of the choice of the checkpoint",
    "E MAE": "mean absolute error of the energy, over all samples",
    "E median": "median of the same errors",
    "E within molecule": "what remains of E MAE when each molecule's mean error is subtracted: errors along the "
    "densities of a molecule",
    "gradient MAE": "mean absolute error of the gradient after projection, over all components",
    "gradient norm": "norm of a sample's error of the gradient after projection, mean over samples",
    CONSTANT_PER_ELEMENT: "one energy for each element, fitted to the training split; the gradient is zero",
    REFERENCE_ONLY: "the normaliser's reference alone, as if the network said zero: what normalisation is worth",
    COMPOSITION_AND_XC: "one energy for each element and a multiple of the exchange-correlation energy, fitted to "
    "the training split; no gradient (-)",
    MODEL: "the trained model",
}
# among trained models, the others are called so
WITHOUT_NETWORK = {
    f"{name}, no network": MEANINGS[name] for name in (CONSTANT_PER_ELEMENT, REFERENCE_ONLY, COMPOSITION_AND_XC)
}


@dataclass(frozen=True)
class ResultRow:
    """Errors of one predictor on one split.

    Attributes:
        split: ``val`` or ``test``.
        predictor: Which predictor.
        n_molecules: Molecules that the split's labelled samples belong to.
        n_samples: Labelled samples.
        errors: By the names of `LabelErrors`.
        unit: Unit of the energies.
    """

    split: str
    predictor: str
    n_molecules: int
    n_samples: int
    errors: dict[str, float]
    unit: str = "hartree"


@dataclass(frozen=True)
class SplitEnergies:
    """Energies of a split's labelled samples, as predicted and as labelled.

    Attributes:
        molecules: Name of the molecule of each sample.
        predicted: (n,) float64.
        true: (n,) float64.
        reference: (n,) float64, the normaliser's reference energies.
        unit: What they are in.
    """

    molecules: list[str]
    predicted: Tensor
    true: Tensor
    reference: Tensor
    unit: str = "hartree"


def constant_per_element(references: LinearReferences) -> Predictor:
    """Predicts a sum of one energy for each element, which has no gradient.

    Args:
        references: Fitted on the training split.
    """

    def predict(batch: Data) -> Prediction:
        return references.energy(batch), torch.zeros_like(batch.coeffs, dtype=torch.float64)

    return predict


def reference_only(normalizer: Normalizer) -> Predictor:
    """Predicts what the normaliser's reference says: E' = 0 and g' = 0.

    Args:
        normalizer: The normaliser whose reference speaks.
    """

    def predict(batch: Data) -> Prediction:
        energy = normalizer.denormalize_energy(torch.zeros_like(batch.energy_reference), batch)
        return energy, normalizer.denormalize_gradient(torch.zeros_like(batch.coeffs), batch)

    return predict


def evaluate(
    predictors: dict[str, Predictor], batches: Iterable[Data], normalizer: Normalizer, split: str
) -> list[ResultRow]:
    """Measures predictors on the labelled samples of a split, in one pass, in this process.

    Args:
        predictors: By name.
        batches: The split's normalised batches, each sample once.
        normalizer: Their normaliser.
        split: Name of the split.

    Returns:
        A row for each predictor.
    """
    # results are measured by one process: under DDP, samplers repeat samples to even out the ranks
    metrics = {name: LabelErrors(sync_on_compute=False) for name in predictors}
    for batch in batches:
        for name, predict in predictors.items():
            metrics[name].update(normalizer, batch, *predict(batch))
    return [
        ResultRow(split, name, metric.n_molecules, metric.n_samples, _floats(metric.compute()), normalizer.unit)
        for name, metric in metrics.items()
    ]


def _floats(errors: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in errors.items()}


def predicted_energies(predict: Predictor, batches: Iterable[Data], normalizer: Normalizer) -> SplitEnergies:
    """Collects predicted, true and reference energies of all labelled samples.

    Samples that name no molecule are molecules of their own.

    Args:
        predict: Returns energies and gradients of a batch.
        batches: Normalised batches.
        normalizer: The normaliser that they went through.
    """
    molecules: list[str] = []
    columns: list[Tensor] = []
    n_seen = 0
    for batch in batches:
        labelled = has_label(batch, required=False).bool()
        energy = predict(batch)[0].detach()
        names = batch.get("mol_id") or [f"sample {n_seen + i}" for i in range(len(labelled))]
        n_seen += len(labelled)
        molecules += [str(name) for name, counts in zip(names, labelled.tolist(), strict=True) if counts]
        true = normalizer.denormalize_energy(batch[normalizer.energy_field].reshape(-1), batch)
        columns.append(torch.stack([energy, true, batch.energy_reference]).cpu()[:, labelled])
    predicted, true, reference = torch.cat(columns, dim=1) if columns else torch.zeros(3, 0, dtype=torch.float64)
    return SplitEnergies(molecules, predicted, true, reference, normalizer.unit)


def split_batches(datamodule: OFDFTDataModule, split: str, device: torch.device | str = "cpu") -> Iterable[Data]:
    """Yields the normalised batches of ``train``, ``val`` or ``test``, on the given device.

    Args:
        datamodule: Where the batches come from.
        split: Name of the part.
        device: Where they are wanted.
    """
    loader = getattr(datamodule, f"{split}_dataloader")()
    # outside of a trainer, which calls this hook itself
    return (datamodule.on_after_batch_transfer(batch.to(device), 0) for batch in loader)


def baselines(datamodule: OFDFTDataModule, device: torch.device | str = "cpu") -> dict[str, Predictor]:
    """Returns what a model is to beat, fitted on the training split, by name.

    Args:
        datamodule: The data; the constant for each element comes from the statistics of its training split.
        device: Where batches are.

    Raises:
        ConfigError: If the data have no density basis.
        StatisticsError: If the statistics have no linear references.
    """
    basis_info = datamodule.basis_info
    if basis_info is None:
        raise ConfigError(
            "a results table needs density coefficients, but the data have no basis (config: data.source)"
        )
    references = LinearReferences.from_dataset_statistics(
        datamodule.statistics,
        basis_info,
        datamodule.statistics_config.weigher_key,
        unseen_elements="zero" if datamodule.settings.unseen_elements == "identity" else "error",
    ).to(device)
    # a copy: the data module's own stays on the CPU, where its workers use it
    normalizer = copy.deepcopy(datamodule.normalizer).to(device)
    predictors = {CONSTANT_PER_ELEMENT: constant_per_element(references), REFERENCE_ONLY: reference_only(normalizer)}
    xc_energies = read_xc_energies(datamodule)
    if xc_energies is not None:
        batches = split_batches(datamodule, "train", device)
        predictors[COMPOSITION_AND_XC] = CompositionAndXC.fitted(xc_energies, batches, normalizer, basis_info.n_types)
    return predictors


def results_table(
    model: Predictor,
    datamodule: OFDFTDataModule,
    splits: Sequence[str] = ("val", "test"),
    device: torch.device | str = "cpu",
) -> list[ResultRow]:
    """Measures a model and the baselines on held-out splits.

    Args:
        model: The trained model.
        datamodule: Its data, see `baselines`.
        splits: Which splits.
        device: Where the model is.

    Returns:
        A row for each predictor, the model last, for each split.

    Raises:
        ConfigError: If the data have no density basis.
        StatisticsError: If the statistics have no linear references.
    """
    predictors = {**baselines(datamodule, device), MODEL: model}
    normalizer = copy.deepcopy(datamodule.normalizer).to(device)
    rows = []
    for split in splits:
        rows += evaluate(predictors, split_batches(datamodule, split, device), normalizer, split)
    return rows


def format_table(rows: Sequence[ResultRow], meanings: Mapping[str, str] | None = None) -> str:
    """Returns the rows as a text table, split by split; ``-`` where a predictor says nothing.

    Args:
        rows: The rows, those of a split one after the other.
        meanings: Of predictors that `MEANINGS` does not have.
    """
    unit = rows[0].unit if rows else "hartree"
    cells: list[list[str]] = []
    for split in dict.fromkeys(row.split for row in rows):
        of_split = [row for row in rows if row.split == split]
        sizes = counted(of_split[0].n_molecules, "molecule"), counted(of_split[0].n_samples, "sample")
        cells.append([f"{split}: {', '.join(sizes)}", *[""] * len(HEADINGS)])
        for row in of_split:
            errors = (_cell(row.errors[error_name(quantity, unit)]) for quantity in HEADINGS)
            cells.append([row.predictor, *errors])
    header = [f"errors in {shown(unit).small}", *HEADINGS.values()]
    return text_table(header, cells, meanings={**MEANINGS, **(meanings or {})})


def _cell(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.{1 if error < 1e5 else 0}f}"


def write_csv(rows: Sequence[ResultRow], path: str | Path) -> None:
    """Writes the rows as CSV, at full precision: whole, or not at all.

    Args:
        rows: One row for each split and predictor.
        path: Where to; what was there is replaced.
    """
    with written_whole(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        names = LabelErrors.names(rows[0].unit if rows else "hartree")
        writer.writerow(["split", "predictor", "n_molecules", "n_samples", *names])
        for row in rows:
            errors = (repr(row.errors[name]) for name in names)
            writer.writerow([row.split, row.predictor, row.n_molecules, row.n_samples, *errors])


def read_csv(path: str | Path, unit: str) -> list[ResultRow]:
    """Reads what `write_csv` wrote.

    Args:
        path: The file.
        unit: Unit of the energies.
    """
    with Path(path).open(newline="") as file:
        return [
            ResultRow(
                row["split"],
                row["predictor"],
                int(row["n_molecules"]),
                int(row["n_samples"]),
                {name: float(row[name]) for name in LabelErrors.names(unit)},
                unit,
            )
            for row in csv.DictReader(file)
        ]
