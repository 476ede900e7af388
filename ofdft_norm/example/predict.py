"""Predictions of a checkpoint for samples, as a table and as a file."""

import csv
import inspect
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import get_class, instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from ofdft_norm.checkpoint import name_errors, read_checkpoint
from ofdft_norm.data.basis import name_dimension
from ofdft_norm.data.files import find_package_version, import_optional, write_whole
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, format_count
from ofdft_norm.example.callbacks import CHECKPOINT_KEY, quiet_lightning
from ofdft_norm.example.density_module import DensityModule
from ofdft_norm.example.metrics import MODEL_KEY, get_atomic_numbers
from ofdft_norm.example.potential import PotentialModule
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.weighers import find_labelled
from ofdft_norm.tables import format_rows
from ofdft_norm.transforms.coordinates import change_coordinates, find_transforms, read_coordinates
from ofdft_norm.units import find_angstrom_per_bohr, find_factor, find_unit

Columns = dict[str, npt.NDArray[Any]]
TABLE = ("mol_id", "scf_iteration", "energy", "energy_label", "range_excess", "range_dimension")

# models that a checkpoint may name; the class of any other model must be given
KNOWN_MODELS: dict[str, type[LightningModule]] = {
    f"{model.__module__}.{model.__qualname__}": model for model in (DensityModule, PotentialModule)
}


def predict(cfg: DictConfig) -> Columns:
    """Predicts for all samples of a source, as ``configs/predict.yaml`` configures it; writes and prints predictions.

    Returns the arrays of the npz file in the source's order, see `PredictionCollector`.
    """
    path, output = Path(cfg.ckpt_path), Path(cfg.output)
    encode = _check_output(output, cfg.overwrite)
    quiet_lightning()
    collector = PredictionCollector(cfg.coordinates)
    checkpoint = read_checkpoint(path)
    with name_errors(path):
        model = load_model(checkpoint, cfg.model._target_)
        datamodule: OFDFTDataModule = instantiate(cfg.data, _partial_=True)(checkpoint)
    # models differentiate their energy, which inference mode forbids
    switches: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "inference_mode"), False)
    trainer = Trainer(accelerator=cfg.accelerator, devices=1, callbacks=[collector], **switches)
    trainer.predict(model, datamodule=datamodule, return_predictions=False)
    columns, facts = collector.arrays(), {"energy_name": datamodule.energy_name, "unit": datamodule.unit}
    facts |= {"length_unit": datamodule.source.length_unit, "checkpoint": str(path)}
    with write_whole(output) as unfinished:
        unfinished.write_bytes(encode(columns, facts))
    print(format_table(columns, datamodule.unit, cfg.head))
    warn_of_extrapolation(columns, cfg.range_tolerance)
    print(f"{format_count(len(columns['energy']), 'prediction')}: {output}")
    return columns


def _check_output(output: Path, overwrite: bool) -> Callable[[Columns, Mapping[str, Any]], bytes]:
    """Returns the function that encodes the output's format; raises ConfigError if it cannot be written."""
    formats = {".npz": to_npz, ".csv": to_csv, ".xyz": to_xyz}
    if output.suffix not in formats:
        raise ConfigError(f"output = {str(output)!r}: expected a file name that ends in .npz, .csv or .xyz")
    if output.suffix == ".xyz":
        import_optional("ase", "ase")
    if output.exists() and not (overwrite and output.is_file()):
        raise ConfigError(f"{output}: exists already; overwrite=true replaces a file (config: output, overwrite)")
    return formats[output.suffix]


def load_model(checkpoint: Mapping[str, Any], target: str | None) -> LightningModule:
    """Builds the model of a checkpoint.

    `target` is the name of its class; None: the class that the checkpoint names, if it is a model of this package. No
    other name in a checkpoint is imported.
    """
    of_run = checkpoint.get(CHECKPOINT_KEY, {}).get("config", {}).get("model", {}).get("_target_")
    recorded = checkpoint.get(MODEL_KEY, of_run)
    known = KNOWN_MODELS.get(recorded or "")
    if target is None and known is None:
        what = "does not record its model's class" if recorded is None else f"is of a model {recorded}"
        raise ConfigError(f"the checkpoint {what}: give it (config: model._target_={recorded or 'package.ClassName'})")
    model_class: Any = known if target is None else get_class(target)
    if known is not None and not issubclass(model_class, known):
        raise ConfigError(f"the checkpoint is of a model {recorded}, not of {target} (config: model._target_)")
    names = inspect.signature(model_class.__init__).parameters
    arguments = {name: value for name, value in checkpoint.get("hyper_parameters", {}).items() if name in names}
    model: LightningModule = model_class(**arguments)
    model.on_load_checkpoint(cast(Any, checkpoint))
    model.load_state_dict(checkpoint["state_dict"])
    return model


class PredictionCollector(Callback):
    """Collects the results of `predict_step` and their samples as arrays.

    `predict_step` must return a dict with `energy`, (n_molecules,), and optionally `gradient`, (n_basis,), and
    `forces`, (n_atom, 3), in the unit of the normaliser. `arrays` returns, one entry for each sample: `mol_id`,
    `scf_iteration` (-1: not known), `energy`, `energy_label` (NaN: none), `coordinates` of the coefficients,
    `range_excess`, the distance from the training range in units of its width (NaN: not known), `range_dimension`, the
    coefficient with that distance, `n_atoms`, `n_basis` (0: no gradient). The arrays `atomic_numbers`, `pos`,
    `gradient` and `forces` are concatenated over samples. Gradients are in `coordinates`; None: those of the samples.
    """

    def __init__(self, coordinates: str | None = None) -> None:
        if coordinates is not None:
            find_transforms(coordinates)  # refuses unknown names
        self.coordinates = coordinates
        self._columns: dict[str, list[Any]] = defaultdict(list)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Adds a batch's predictions."""
        if not isinstance(outputs, dict) or "energy" not in outputs:
            raise ConfigError(
                f"{type(pl_module).__name__}.predict_step returned a {type(outputs).__name__}; expected a dict with "
                "'energy' and optionally 'gradient' and 'forces' (config: model._target_)"
            )
        n, normalizer = len(outputs["energy"]), cast(Any, pl_module).normalizer
        coordinates = read_coordinates(batch) if batch.get("coeffs") is not None else ""
        gradient, n_basis = outputs.get("gradient"), [0] * n
        if gradient is not None:
            gradient = change_coordinates(gradient, batch, True, coordinates, self.coordinates or coordinates)
            n_basis = batch.coeffs_ptr.diff().tolist()
        excess, dimension = _find_range_excess(normalizer, batch, n)
        columns = {
            "mol_id": batch.get("mol_id") or [""] * n,
            "scf_iteration": [-1] * n if batch.get("scf_iteration") is None else batch.scf_iteration.reshape(-1),
            "energy": outputs["energy"].double(),
            "energy_label": _read_labels(normalizer, batch),
            "coordinates": [self.coordinates or coordinates] * n,
            "range_excess": excess,
            "range_dimension": dimension,
            "n_atoms": batch.ptr.diff(),
            "n_basis": n_basis,
            "atomic_numbers": get_atomic_numbers(batch),
            "pos": batch.pos.double(),
            "gradient": torch.empty(0) if gradient is None else gradient.double(),
            "forces": torch.empty(0, 3) if outputs.get("forces") is None else outputs["forces"].double(),
        }
        for name, values in columns.items():
            self._columns[name].append(values.cpu().numpy() if isinstance(values, torch.Tensor) else np.array(values))

    def arrays(self) -> Columns:
        """Returns all predictions so far as arrays."""
        return {name: np.concatenate(parts) for name, parts in self._columns.items()}


def _read_labels(normalizer: Normalizer, batch: Any) -> torch.Tensor:
    """Returns the samples' energies; NaN if they have none."""
    labels, energy = torch.full_like(batch.energy_reference, torch.nan), batch.get(normalizer.energy_field)
    if energy is None:
        return labels
    labelled = find_labelled(batch, required=False).to(labels.device)
    return torch.where(labelled, normalizer.denormalize_energy(energy.reshape(-1), batch), labels)


def _find_range_excess(normalizer: Normalizer, batch: Any, n: int) -> tuple[list[float], list[str]]:
    """Returns the distance of each sample from the training range, and the name of the coefficient with it."""
    found, basis_info = normalizer.range_excess(batch), normalizer.basis_info
    if found is None or basis_info is None:
        return [float("nan")] * n, [""] * n
    excess, dimensions = found.excess.tolist(), found.dimension.tolist()
    return excess, [name_dimension(basis_info, i) if e > 0 else "" for e, i in zip(excess, dimensions, strict=True)]


def warn_of_extrapolation(columns: Columns, tolerance: float) -> None:
    """Warns, once, of samples that are outside of the training range by more than `tolerance` of its width."""
    excess, names = columns["range_excess"], columns["mol_id"]
    far = sorted(np.flatnonzero(excess > tolerance), key=lambda i: -excess[i])
    worst: dict[str, int] = {}
    for i in far:  # the farthest sample of each molecule
        worst.setdefault(str(names[i]), int(i))
    named = [
        f"{name!r} by {excess[i]:.1f} (SCF {columns['scf_iteration'][i]}, {columns['range_dimension'][i]})"
        for name, i in list(worst.items())[:5]
    ]
    if far:
        rank_zero_warn(
            f"{len(far)} of {format_count(len(excess), 'sample')}, of {format_count(len(worst), 'molecule')}, have "
            f"coefficients outside of the training range by more than {tolerance:g} of its width; errors may be large: "
            f"{'; '.join(named)}{'; ...' if len(worst) > 5 else ''} (config: range_tolerance)"
        )


def format_table(columns: Columns, unit: str, head: int) -> str:
    """Returns the first predictions as a text table; columns that no prediction fills are left out."""
    names, iterations, energies, labels, excess, dimensions = (columns[name][:head] for name in TABLE)
    units = find_unit(unit)
    cells = {
        "molecule": list(names),
        "SCF": ["" if iteration < 0 else str(iteration) for iteration in iterations],
        f"energy [{units.symbol}]": [f"{energy:.6f}" for energy in energies],
        f"error [{units.small}]": [_format_number(error, 3) for error in units.factor * (energies - labels)],
        "range excess": [_format_number(distance, 2) for distance in excess],
        "dimension": list(dimensions),
    }
    kept = {heading: texts for heading, texts in cells.items() if heading == "molecule" or any(texts)}
    return format_rows(list(kept), zip(*kept.values(), strict=True))


def _format_number(value: float, decimals: int) -> str:
    return "" if np.isnan(value) else f"{value:.{decimals}f}"


def to_csv(columns: Columns, facts: Mapping[str, Any]) -> bytes:
    """Returns energies, labels and distances from the training range as CSV, a row for each sample."""
    text, suffix = io.StringIO(), facts["unit"].replace("/", "_per_")
    writer = csv.writer(text)
    writer.writerow([f"{name}_{suffix}" if name.startswith("energy") else name for name in TABLE])
    for row in zip(*(columns[name].tolist() for name in TABLE), strict=True):
        known = zip(TABLE, row, strict=True)  # NaN, and iteration -1: not known
        writer.writerow(["" if v != v or (name, v) == ("scf_iteration", -1) else v for name, v in known])
    return text.getvalue().encode()


def to_npz(columns: Columns, facts: Mapping[str, Any]) -> bytes:
    """Returns the arrays as npz, with their units as JSON."""
    unit, length = facts["unit"], facts["length_unit"]
    units = {
        **dict.fromkeys(("energy", "energy_label"), unit),
        "gradient": f"{unit}, derivative with respect to the density coefficients in the coordinates of the sample",
        "forces": f"{unit}/{length}",
        "pos": length,
        "range_excess": "distance of a coefficient from the training range, in units of its width; 0: inside",
    }
    texts = {"units": json.dumps(units), "checkpoint": facts["checkpoint"], "package_version": find_package_version()}
    file = io.BytesIO()
    np.savez_compressed(file, **cast(Any, {**columns, **texts}))
    return file.getvalue()


def to_xyz(columns: Columns, facts: Mapping[str, Any]) -> bytes:
    """Returns extended XYZ: positions in angstrom; total energies and forces in eV under ASE's keys.

    Other energies, and all labels, have keys of their own that end in their unit, such as ``e_kin_hartree``.
    """
    ase, singlepoint = import_optional("ase", "ase"), import_optional("ase.calculators.singlepoint", "ase")
    angstrom = 1.0 if facts["length_unit"] == "angstrom" else find_angstrom_per_bohr()
    name, suffix, ev = facts["energy_name"], facts["unit"].replace("/", "_per_"), find_factor(facts["unit"], "eV")
    forces = columns["forces"] if len(columns["forces"]) else np.full_like(columns["pos"], np.nan)
    frames = []
    ends = np.cumsum(columns["n_atoms"])[:-1]
    atoms = (np.split(array, ends) for array in (columns["atomic_numbers"], angstrom * columns["pos"], forces))
    rows = zip(*(columns[column].tolist() for column in TABLE), strict=True)
    for numbers, pos, force, row in zip(*atoms, rows, strict=True):
        frame, info = ase.Atoms(numbers, pos), dict(zip(TABLE, row, strict=True))
        energy, label = info.pop("energy"), info.pop("energy_label")
        if name is None:
            results = {"energy": ev * energy} | ({} if np.isnan(force).all() else {"forces": ev / angstrom * force})
            frame.calc = singlepoint.SinglePointCalculator(frame, **results)
            info |= {"energy_label_eV": ev * label}
        else:
            info |= {f"{name}_{suffix}": energy, f"{name}_label_{suffix}": label}
        # unknown: NaN, which is not equal to itself, "", and iteration -1
        unknown = {key for key, v in info.items() if v != v or v == "" or (key, v) == ("scf_iteration", -1)}
        frame.info = {key: value for key, value in info.items() if key not in unknown}
        frames.append(frame)
    text = io.StringIO()
    import_optional("ase.io", "ase").write(text, frames, format="extxyz")
    return text.getvalue().encode()
