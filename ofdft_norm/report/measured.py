"""What a report takes from samples: distributions before and after normalisation, errors, distances from the range."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.example.prediction import range_excess
from ofdft_norm.example.results import MODEL, Predictor, baselines, split_batches
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.report.figures import LogHistogram
from ofdft_norm.units import shown

Array = npt.NDArray[np.float64]

SPLITS = ("val", "test")
_MOST_SAMPLES = 2000  # that histograms are made of


@dataclass
class Measured:
    """What samples show.

    Attributes:
        histograms: Before and after normalisation, of `coeffs` and `gradient_label` of training samples.
        energies: Before and after normalisation.
        errors: By split and predictor, for each molecule the errors of its energies, in the small unit, such as mHa.
        excess: By split and molecule, how far it leaves the training range at most, and where.
        unit: Unit of energies.
    """

    histograms: dict[str, tuple[LogHistogram, LogHistogram]] = field(default_factory=dict)
    energies: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    errors: dict[tuple[str, str], dict[str, Array]] = field(default_factory=dict)
    excess: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    unit: str = "hartree"


def measure(datamodule: OFDFTDataModule, predict: Predictor) -> Measured:
    """Reads training samples for histograms, and predicts the held-out ones.

    Args:
        datamodule: The run's data.
        predict: Returns energies and gradients of a batch.
    """
    measured, normalizer = Measured(unit=datamodule.unit), copy.deepcopy(datamodule.normalizer)
    factor = shown(datamodule.unit).factor
    n_seen = 0
    for batch in split_batches(datamodule, "train"):
        _add_to_histograms(measured, normalizer, batch)
        n_seen += len(batch.energy_reference)
        if n_seen >= _MOST_SAMPLES:
            break
    predictors = {**baselines(datamodule), MODEL: predict}
    for split in (s for s in SPLITS if s in datamodule.raw_datasets.names()):
        errors: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in predictors}
        for batch in split_batches(datamodule, split):
            labelled = batch.has_energy_label.reshape(-1).tolist()
            true = normalizer.denormalize_energy(batch.energy_label.reshape(-1), batch)
            of_batch = {name: factor * (p(batch)[0].detach() - true) for name, p in predictors.items()}
            for i, (excess, dimension) in enumerate(range_excess(normalizer, batch)):
                if labelled[i]:
                    molecule = batch.mol_id[i]
                    for name, values in of_batch.items():
                        errors[name][molecule].append(float(values[i]))
                    known = measured.excess.get((split, molecule), (-1.0, ""))
                    measured.excess[split, molecule] = max(known, (excess, dimension), key=lambda pair: pair[0])
        measured.errors.update({(split, n): {m: np.array(e) for m, e in by.items()} for n, by in errors.items()})
    return measured


def _add_to_histograms(measured: Measured, normalizer: Normalizer, batch: Any) -> None:
    functions = batch.has_energy_label.reshape(-1)[batch.coeffs_batch]
    for name in ("coeffs", "gradient_label"):
        before, after = measured.histograms.setdefault(name, (LogHistogram(), LogHistogram()))
        raw = normalizer.affine(name, batch).denormalize(batch[name])
        before.add(raw[functions].numpy())
        after.add(batch[name][functions].double().numpy())
    labelled, energy = batch.has_energy_label.reshape(-1), batch.energy_label.reshape(-1)
    measured.energies[0].extend(normalizer.denormalize_energy(energy, batch)[labelled].tolist())
    measured.energies[1].extend(energy[labelled].tolist())
