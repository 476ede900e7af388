"""Predictions of a checkpoint for samples, as a table and as a file."""

from __future__ import annotations

import io
import json
import pydoc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import get_class, instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from ofdft_norm.checkpoint import check_checkpoint_file, read_from
from ofdft_norm.data.files import written_whole
from ofdft_norm.data.irreps import dimension_name
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, counted
from ofdft_norm.example.messages import say_once
from ofdft_norm.example.run_record import CHECKPOINT_KEY
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.tables import text_table
from ofdft_norm.transforms.basis_transforms import change_coordinates, coordinates_of, transforms_of
from ofdft_norm.units import angstrom_per_bohr, conversion, shown
from ofdft_norm.version import package_version

MEANINGS = {
    "molecule": "name of the molecule or structure",
    "SCF": "SCF iteration of the density; empty where samples have none",
    "energy": "what the model predicts, references included",
    "label": "the sample's own energy; empty where it has none",
    "error": "energy minus label",
    "excess": "how far a coefficient leaves the range of the training split, in units of that range's width",
    "in": "the coefficient that leaves it most: element, shell and component",
}


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one sample.

    Attributes:
        mol_id: Name of the molecule.
        scf_iteration: Index of the density along its SCF path; -1 where it is not known.
        atomic_numbers: (n_atom,).
        pos: (n_atom, 3) as the sample has them.
        energy: As the sample's label, in `unit`.
        energy_label: NaN where the sample has none.
        gradient: (n_basis,) empty where the model predicts none.
        forces: (n_atom, 3) [`unit` per length unit of `pos`]; empty where the model predicts none.
        coordinates: What the coefficients are given in that the gradient is the derivative with respect to.
        range_excess: How far the sample leaves the training range, in units of that range; NaN where it is not known.
        range_dimension: The coefficient where that is; empty inside of the range.
        unit: Unit of energies.
    """

    mol_id: str
    scf_iteration: int
    atomic_numbers: npt.NDArray[np.int64]
    pos: npt.NDArray[np.float64]
    energy: float
    energy_label: float
    gradient: npt.NDArray[np.float64]
    forces: npt.NDArray[np.float64]
    coordinates: str
    range_excess: float
    range_dimension: str
    unit: str


@dataclass(frozen=True)
class Meaning:
    """What a file has to say of predictions besides their numbers.

    Attributes:
        energy: Name of the energy that is predicted, such as ``e_kin``; None: the total energy.
        length_unit: Unit of positions, ``bohr`` or ``angstrom``.
        checkpoint: Where the model comes from.
    """

    energy: str | None
    length_unit: str
    checkpoint: str


class PredictionCollector(Callback):
    """Collects the results of `predict_step`, with the samples that they belong to.

    `predict_step` is to return a dict with `energy`, (n_molecules,), and optionally `gradient`, (n_basis,), and
    `forces`, (n_atom, 3), in the unit of the normaliser.

    Args:
        coordinates: What to bring gradients to, ``raw`` or names of changes of basis; None: those of the samples.

    Raises:
        ConfigError: If there are no such coordinates.
    """

    def __init__(self, coordinates: str | None = None) -> None:
        if coordinates is not None:
            transforms_of(coordinates)
        self.coordinates = coordinates
        self.predictions: list[Prediction] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes a batch's predictions.

        Raises:
            ConfigError: If `predict_step` returned something else.
        """
        if not isinstance(outputs, dict) or "energy" not in outputs:
            raise ConfigError(
                f"{type(pl_module).__name__}.predict_step returned a {type(outputs).__name__}; expected a dict with "
                "'energy' and optionally 'gradient' and 'forces' (config: model._target_)"
            )
        own = coordinates_of(batch) if batch.get("coeffs") is not None else ""
        coordinates = own if self.coordinates is None else self.coordinates
        if outputs.get("gradient") is not None:
            gradient = change_coordinates(outputs["gradient"], batch, True, coordinates_of(batch), coordinates)
            outputs = {**outputs, "gradient": gradient}
        excess = range_excess(cast(Any, trainer).datamodule.normalizer, batch)
        labels, unit = _labels(pl_module, batch), cast(Any, pl_module).normalizer.unit
        self.predictions += split_batch(outputs, batch, labels, coordinates, excess, unit)


def _labels(module: Any, batch: Any) -> torch.Tensor:
    """Returns the samples' energies, NaN where they have none."""
    labels = torch.full_like(batch.energy_reference, torch.nan)
    energy = batch.get(module.normalizer.energy_field)
    if energy is None:
        return labels
    energies = module.normalizer.denormalize_energy(energy.reshape(-1), batch)
    labelled = batch.get("has_energy_label")
    return energies if labelled is None else torch.where(labelled.reshape(-1), energies, labels)


def range_excess(normalizer: Normalizer, batch: Any) -> list[tuple[float, str]]:
    """Returns, for each sample of a batch, how far it leaves the training range, and in which dimension.

    Args:
        normalizer: The normaliser that the batch went through.
        batch: A normalised batch.
    """
    found = normalizer.range_excess(batch)
    if found is None:
        return [(float("nan"), "")] * len(batch.energy_reference)
    pairs = zip(found.excess.tolist(), found.dimension.tolist(), strict=True)
    basis_info = normalizer.basis_info
    names = ((e, str(d) if basis_info is None else dimension_name(basis_info, d)) for e, d in pairs)
    return [(excess, name if excess > 0 else "") for excess, name in names]


def warn_of_extrapolation(predictions: Sequence[Prediction], tolerance: float) -> None:
    """Warns, once, of predictions for samples that leave the training range by more than `tolerance` of its width.

    Args:
        predictions: Predictions of all samples.
        tolerance: Largest excess that passes, in units of the range's width.
    """
    far = [p for p in predictions if p.range_excess > tolerance]
    if not far:
        return
    worst = {p.mol_id: p for p in sorted(far, key=lambda p: p.range_excess)}
    shown = sorted(worst.values(), key=lambda p: -p.range_excess)[:5]
    named = [f"{p.mol_id!r} by {p.range_excess:.1f} (SCF {p.scf_iteration}, {p.range_dimension})" for p in shown]
    names = "; ".join([*named, "..."] if len(worst) > len(shown) else named)
    rank_zero_warn(
        f"{len(far)} of {counted(len(predictions), 'sample')}, of {counted(len(worst), 'molecule')}, have coefficients "
        f"that leave the range of the training split by more than {tolerance:g} of its width; models extrapolate "
        f"there, and errors may be large: {names} (config: range_tolerance)"
    )


def split_batch(
    outputs: dict[str, torch.Tensor],
    batch: Any,
    labels: torch.Tensor,
    coordinates: str,
    excess: Sequence[tuple[float, str]],
    unit: str,
) -> Iterator[Prediction]:
    """Yields the prediction of each sample of a batch.

    Args:
        outputs: What the model returned, by name; (n_molecules,), (n_basis,) or (n_atom, 3).
        batch: The normalised batch.
        labels: (n_molecules,) labelled energies; NaN where there is none.
        coordinates: What the gradients are given in.
        excess: What `range_excess` returned.
        unit: Unit of the energies.
    """
    n = len(labels)
    names = batch.get("mol_id") or [""] * n
    iterations = batch.get("scf_iteration")
    atoms = [int(i) for i in batch.ptr]
    numbers = batch.z if batch.get("atomic_numbers") is None else batch.atomic_numbers
    gradient, forces, functions = outputs.get("gradient"), outputs.get("forces"), [0] * (n + 1)
    if gradient is not None:
        functions = [int(i) for i in batch.coeffs_ptr]
    for i in range(n):
        own = slice(atoms[i], atoms[i + 1])
        own_gradient = torch.empty(0) if gradient is None else gradient[functions[i] : functions[i + 1]]
        yield Prediction(
            names[i],
            -1 if iterations is None else int(iterations[i]),
            numbers[own].cpu().numpy(),
            batch.pos[own].double().cpu().numpy(),
            float(outputs["energy"][i]),
            float(labels[i]),
            own_gradient.double().cpu().numpy(),
            np.empty((0, 3)) if forces is None else forces[own].double().cpu().numpy(),
            coordinates,
            *excess[i],
            unit,
        )


def predict(cfg: DictConfig) -> list[Prediction]:
    """Predicts for all samples of a source, writes the file and prints the first of them.

    Args:
        cfg: With `ckpt_path`, `model._target_`, `data`, `output`, `coordinates`, `head`, `range_tolerance`,
            `accelerator`; see ``configs/predict.yaml``.

    Returns:
        The predictions, in the source's order.

    Raises:
        ConfigError: If the checkpoint is missing, or `output` is neither .npz nor .xyz.
    """
    checkpoint, output = Path(cfg.ckpt_path), Path(cfg.output)
    if not checkpoint.is_file():
        raise ConfigError(f"{checkpoint}: no such checkpoint (config: ckpt_path)")
    check_checkpoint_file(checkpoint)
    say_once()
    writer = _writer(output)
    model_class: Any = get_class(cfg.model._target_)
    _check_model(checkpoint, model_class, cfg.model._target_)
    model = model_class.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    datamodule: OFDFTDataModule = instantiate(cfg.data, checkpoint_path=str(checkpoint))
    source, default = datamodule.source, "angstrom" if datamodule.basis_info is None else "bohr"
    meaning = Meaning(datamodule.energy_name, getattr(source, "length_unit", default), str(checkpoint))
    collector = PredictionCollector(cfg.coordinates)
    trainer = Trainer(
        accelerator=cfg.accelerator,
        devices=1,
        callbacks=[collector],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        inference_mode=False,  # models differentiate their energy
    )
    trainer.predict(model, datamodule=datamodule, return_predictions=False)
    with written_whole(output) as unfinished, unfinished.open("wb") as file:
        writer(file, collector.predictions, meaning)
    print(table(collector.predictions, cfg.head))
    warn_of_extrapolation(collector.predictions, cfg.range_tolerance)
    where = getattr(source, "paths", None)
    print(f"samples: {type(source).__name__}{'' if where is None else f' of {where}'} (config: data/source)")
    print(f"{counted(len(collector.predictions), 'prediction')}: {output}")
    return collector.predictions


def _check_model(checkpoint: Path, model_class: Any, name: str) -> None:
    """Refuses to read a checkpoint into a model of another class than that of the run that wrote it, if it says so."""
    with read_from(checkpoint):
        record = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get(CHECKPOINT_KEY) or {}
        trained = (record.get("config", {}).get("model") or {}).get("_target_")
    trained_class: Any = pydoc.locate(trained) if trained else None  # None: moved since, or not installed
    if trained_class is not None and not issubclass(model_class, trained_class):
        raise ConfigError(
            f"{checkpoint}: is of a model {trained}, but predictions were asked of {name} (config: "
            f"model._target_={trained})"
        )


def table(predictions: list[Prediction], head: int) -> str:
    """Returns the first predictions as a text table: energies in their unit, errors in a small one, such as mHa.

    What no sample has, such as SCF iterations of atomistic data, is no column.

    Args:
        predictions: Predictions of all samples.
        head: Number of rows at most.
    """
    unit = predictions[0].unit if predictions else "hartree"
    rows = []
    for p in predictions[:head]:
        error = shown(unit).factor * (p.energy - p.energy_label)
        scf = "" if p.scf_iteration < 0 else str(p.scf_iteration)
        label = ["", ""] if np.isnan(error) else [f"{p.energy_label:.6f}", f"{error:.3f}"]
        excess = "" if np.isnan(p.range_excess) else f"{p.range_excess:.2f}"
        rows.append([p.mol_id, scf, f"{p.energy:.6f}", *label, excess, p.range_dimension])
    units = [f"energy [{unit}]", f"label [{unit}]", f"error [{shown(unit).small}]"]
    header = ["molecule", "SCF", *units, "excess", "in"]
    kept = [column for column in range(len(header)) if column == 0 or any(row[column] for row in rows)]
    return text_table([header[c] for c in kept], [[row[c] for c in kept] for row in rows], meanings=MEANINGS)


def _writer(output: Path) -> Any:
    writers = {".npz": write_npz, ".xyz": write_xyz}
    if output.suffix not in writers:
        raise ConfigError(f"output = {str(output)!r}: expected a file name that ends in .npz or .xyz")
    if output.suffix == ".xyz" and find_spec("ase") is None:
        raise ConfigError(
            f"output = {str(output)!r}: extended XYZ needs ASE; install it with: pip install 'ofdft-norm[ase]', or "
            "write .npz (config: output)"
        )
    return writers[output.suffix]


def write_npz(file: IO[bytes], predictions: list[Prediction], meaning: Meaning) -> None:
    """Writes arrays, those of different samples one after the other; `units` says in JSON what they are in.

    Args:
        file: Binary file that is open for writing.
        predictions: Predictions of all samples.
        meaning: What the energies are, and in which unit.
    """
    unit = predictions[0].unit
    units = {
        "energy": unit,
        "energy_label": unit,
        "gradient": f"{unit}, derivative with respect to the density coefficients in the coordinates of the sample",
        "forces": f"{unit}/{meaning.length_unit}",
        "coordinates": "what density coefficients are given in; raw: the density basis as it is",
        "pos": meaning.length_unit,
        "range_excess": "how far a coefficient leaves the training range, in units of that range's width; 0: inside",
        "range_dimension": "element, shell and component of that coefficient",
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "mol_id": np.array([p.mol_id for p in predictions], dtype=np.str_),
        "scf_iteration": np.array([p.scf_iteration for p in predictions]),
        "energy": np.array([p.energy for p in predictions]),
        "energy_label": np.array([p.energy_label for p in predictions]),
        "n_atoms": np.array([len(p.atomic_numbers) for p in predictions]),
        "n_basis": np.array([len(p.gradient) for p in predictions]),
        "atomic_numbers": np.concatenate([p.atomic_numbers for p in predictions]),
        "pos": np.concatenate([p.pos for p in predictions]),
        "gradient": np.concatenate([p.gradient for p in predictions]),
        "forces": np.concatenate([p.forces for p in predictions]),
        "coordinates": np.array([p.coordinates for p in predictions], dtype=np.str_),
        "range_excess": np.array([p.range_excess for p in predictions]),
        "range_dimension": np.array([p.range_dimension for p in predictions], dtype=np.str_),
        "units": np.array(json.dumps(units)),
        "checkpoint": np.array(meaning.checkpoint),
        "package_version": np.array(package_version()),
    }
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_xyz(file: IO[bytes], predictions: list[Prediction], meaning: Meaning) -> None:
    """Writes extended XYZ as ASE reads it: positions in angstrom; total energies and forces in eV, under ASE's keys.

    Other energies have keys of their own that end in their unit, such as ``e_kin_hartree``, and so have all labels.

    Args:
        file: Binary file that is open for writing.
        predictions: Predictions of all samples.
        meaning: What the energies are, and in which unit.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    angstrom = 1.0 if meaning.length_unit == "angstrom" else angstrom_per_bohr()
    frames = []
    for p in predictions:
        atoms = Atoms(p.atomic_numbers, p.pos * angstrom)
        atoms.info = {"mol_id": p.mol_id, **({} if p.scf_iteration < 0 else {"scf_iteration": p.scf_iteration})}
        if meaning.energy is None:
            ev = conversion(p.unit, "eV")
            results = {"energy": ev * p.energy, **({"forces": ev / angstrom * p.forces} if len(p.forces) else {})}
            atoms.calc = SinglePointCalculator(atoms, **results)
            labels = {"energy_label_eV": ev * p.energy_label}
        else:
            suffix = p.unit.replace("/", "_per_")
            atoms.info[f"{meaning.energy}_{suffix}"] = p.energy
            labels = {f"{meaning.energy}_label_{suffix}": p.energy_label}
        known = {**labels, "range_excess": p.range_excess}
        atoms.info.update({name: value for name, value in known.items() if not np.isnan(value)})
        if p.range_dimension:
            atoms.info["range_dimension"] = p.range_dimension
        frames.append(atoms)
    text = io.StringIO()
    write(text, frames, format="extxyz")
    file.write(text.getvalue().encode())
