"""What each normalisation is worth: arms that differ in it alone, tuned alike, on folds of molecules.

Every arm gets the same search over learning rate and input scale, on the validation part of the first fold; then it
trains with what was chosen on every fold with every seed. Each run leaves a JSON file, and is not repeated if that is.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

from ofdft_norm.config import LabelFiles
from ofdft_norm.config.readable_errors import config_dir
from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, counted
from ofdft_norm.example.arms import ARMS, GLOBAL_SCALE
from ofdft_norm.example.label_errors import error_name
from ofdft_norm.example.messages import say_once
from ofdft_norm.example.results import (
    MODEL,
    baselines,
    evaluate,
    split_batches,
)
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.units import check_unit, shown

log = logging.getLogger(__name__)

CURVES = ("energy_mae", "gradient_mae")  # validation errors that each run records after every epoch
FOLD_SEED = 0


@dataclass(frozen=True)
class AblationSettings:
    """What an ablation compares, and how long it may take.

    Attributes:
        output: Folder of the runs' results, the table and the plot.
        overrides: Hydra overrides of ``configs/train.yaml`` for every run, such as other labels.
        arms: Which of `ARMS`.
        epochs: Passes over the training split of each run.
        search_epochs: The same for the runs of the search.
        learning_rates: Those that the search tries for each arm.
        input_scales: Those that the search tries: inputs of the network are divided by them (``model.coeff_scale``).
        n_folds: The molecules are divided into so many test splits.
        seeds: Of initial weights and shuffling; every fold is trained with each.
        workers: Processes, of one thread each.
    """

    output: Path
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] = tuple(ARMS)
    epochs: int = 20
    search_epochs: int = 8
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    input_scales: tuple[float, ...] = (0.5, 2.0, 5.0, 20.0)
    n_folds: int = 5
    seeds: tuple[int, ...] = (0, 1)
    workers: int = 2

    def __post_init__(self) -> None:
        """Refuses values that no ablation can be made with.

        Raises:
            ConfigError: With the option's name, its value and what was expected.
        """
        unknown = set(self.arms) - set(ARMS)
        if unknown or not self.arms:
            raise ConfigError(f"--arms {list(self.arms)}: expected some of {list(ARMS)}")
        if self.n_folds < 3:
            raise ConfigError(f"--folds {self.n_folds}: expected at least 3, one each to train, validate and test on")
        for option, values in {
            "--epochs": [self.epochs],
            "--search-epochs": [self.search_epochs],
            "--learning-rates": self.learning_rates,
            "--input-scales": self.input_scales,
            "--workers": [self.workers],
        }.items():
            if not values or not all(math.isfinite(value) and value > 0 for value in values):
                raise ConfigError(f"{option} {values}: expected positive numbers")
        if not self.seeds or min(self.seeds) < 0:
            raise ConfigError(f"--seeds {list(self.seeds)}: expected numbers >= 0")


@dataclass(frozen=True)
class Run:
    """One training of an arm."""

    arm: str
    fold: int
    seed: int
    epochs: int
    learning_rate: float
    input_scale: float

    @property
    def name(self) -> str:
        """Name of the run's file, without its ending."""
        return (
            f"{self.arm.replace(' ', '_')}_fold{self.fold}_seed{self.seed}_epochs{self.epochs}"
            f"_rate{self.learning_rate:g}_scale{self.input_scale:g}"
        )


@dataclass(frozen=True)
class RunResult:
    """What one training reached.

    Attributes:
        run: The training.
        errors: By split, ``val`` and ``test``, then by the names of `LabelErrors`.
        curves: Validation errors after each epoch: those of `CURVES`, by their names in `LabelErrors`.
    """

    run: Run
    errors: dict[str, dict[str, float]]
    curves: dict[str, list[float]]


@dataclass(frozen=True)
class AblationResult:
    """All that an ablation found.

    Attributes:
        chosen: The learning rate and the input scale of each arm.
        runs: One result for each arm, fold and seed.
        baselines: Test errors of each predictor that is not trained, one dictionary for each fold.
        unit: Unit of the energies.
    """

    chosen: dict[str, tuple[float, float]]
    runs: list[RunResult]
    baselines: dict[str, list[dict[str, float]]]
    unit: str = "hartree"


def ablate(settings: AblationSettings) -> AblationResult:
    """Runs what is missing of an ablation, and returns all of it.

    Args:
        settings: What to compare.

    Raises:
        ConfigError: If the folder holds an ablation of other folds or labels, or the labels are not label files.
    """
    unit = _claim_folder(settings)
    search = [
        Run(arm, 0, settings.seeds[0], settings.search_epochs, learning_rate, input_scale)
        for arm in settings.arms
        for learning_rate in settings.learning_rates
        for input_scale in settings.input_scales
    ]
    found = _results(settings, search, unit)
    chosen = {arm: choose([result for result in found if result.run.arm == arm], unit) for arm in settings.arms}
    runs = [
        Run(arm, fold, seed, settings.epochs, *chosen[arm])
        for fold in range(settings.n_folds)
        for arm in settings.arms
        for seed in settings.seeds
    ]
    results = _results(settings, runs, unit)
    return AblationResult(chosen, results, _baselines(settings), unit)


def choose(search: Sequence[RunResult], unit: str = "hartree") -> tuple[float, float]:
    """Returns the learning rate and input scale with the smallest product of validation energy and gradient MAE.

    The product weighs both errors alike whatever their units; runs that diverged are passed over.

    Args:
        search: The runs of one arm.
        unit: Unit of the energies.

    Raises:
        ConfigError: If all of them diverged.
    """

    def score(result: RunResult) -> float:
        product = math.prod(result.errors["val"][name] for name in (error_name(quantity, unit) for quantity in CURVES))
        return product if math.isfinite(product) else math.inf

    best = min(search, key=score)
    if score(best) == math.inf:
        raise ConfigError(f"all runs of {best.run.arm!r} diverged: try smaller learning rates (--learning-rates)")
    return best.run.learning_rate, best.run.input_scale


def folds(names: Sequence[str], n_folds: int, seed: int = FOLD_SEED) -> list[dict[str, list[str]]]:
    """Divides molecules into folds: each is tested on once.

    Half of the following fold's test molecules validate, all others train.

    Args:
        names: The molecules' label files; their order does not matter.
        n_folds: How many folds.
        seed: Same seed and names, same folds.

    Returns:
        The names of ``train``, ``val`` and ``test`` of each fold.

    Raises:
        ConfigError: If there are too few molecules.

    Example:
        >>> for fold in folds(["a", "b", "c", "d", "e", "f"], n_folds=3, seed=1):
        ...     print([len(fold[split]) for split in ("train", "val", "test")])
        [3, 1, 2]
        [3, 1, 2]
        [3, 1, 2]
    """
    if len(names) < 2 * n_folds:
        raise ConfigError(
            f"{counted(len(names), 'molecule')} for {n_folds} folds: expected at least 2 in each (--folds)"
        )
    shuffled = np.random.default_rng(seed).permutation(sorted(names))
    groups = [group.tolist() for group in np.array_split(shuffled, n_folds)]
    divided = []
    for i, test in enumerate(groups):
        following = groups[(i + 1) % n_folds]
        val = following[: len(following) // 2]
        train = sorted(set(names) - set(test) - set(val))
        divided.append({"train": train, "val": sorted(val), "test": sorted(test)})
    return divided


def train_run(settings: AblationSettings, run: Run) -> RunResult:
    """Trains one run and measures its last weights.

    Args:
        settings: The ablation.
        run: The run.
    """
    say_once()
    torch.set_num_threads(1)
    seed_everything(run.seed, verbose=False)
    cfg = _composed(settings, run.arm, run.fold)
    datamodule: OFDFTDataModule = instantiate(cfg.data)
    datamodule.setup("fit")
    model = instantiate(cfg.model, learning_rate=run.learning_rate, **_scales(cfg, run, datamodule))
    curves = ValidationCurves(datamodule.unit)
    trainer: Trainer = instantiate(
        cfg.trainer,
        max_epochs=run.epochs,
        logger=False,
        callbacks=[curves],
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        default_root_dir=str(settings.output),
    )
    trainer.fit(model, datamodule=datamodule)
    predict, normalizer = {MODEL: model.cpu().eval().predict}, datamodule.normalizer
    errors = {
        split: evaluate(predict, split_batches(datamodule, split), normalizer, split)[0].errors
        for split in ("val", "test")
    }
    return RunResult(run, errors, curves.values)


class ValidationCurves(Callback):
    """Records the validation errors named in `CURVES` after every epoch."""

    def __init__(self, unit: str) -> None:
        self.values: dict[str, list[float]] = {error_name(quantity, unit): [] for quantity in CURVES}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes down what the model has logged."""
        for name, values in self.values.items():
            values.append(float(trainer.callback_metrics[f"val/{name}"]))


def _scales(cfg: DictConfig, run: Run, datamodule: OFDFTDataModule) -> dict[str, float]:
    """Returns the model's `coeff_scale`, and with one global scale its `gradient_weight`.

    In that arm the network sees p / std(p) and learns E / std(E); the loss measures gradients in units of std(g). The
    model's loss divides gradients by the energy scale, which the weight makes up for.
    """
    if run.arm != GLOBAL_SCALE:
        return {"coeff_scale": run.input_scale}
    statistics, key = datamodule.statistics, datamodule.weigher_key
    dims = datamodule.basis_info.basis_dim_per_atom if datamodule.basis_info is not None else np.ones(0)
    coeffs, gradient = (global_std(statistics, key, field, dims) for field in ("coeffs", "gradient_label"))
    weight = cfg.model.gradient_weight * float(datamodule.normalizer.energy_scale) / gradient
    return {"coeff_scale": run.input_scale * coeffs, "gradient_weight": weight}


def global_std(statistics: DatasetStatistics, weigher_key: str, field: str, dims: Any) -> float:
    """Returns the standard deviation of a field over all dimensions of all atoms.

    Args:
        statistics: Of the training split.
        weigher_key: Whose statistics.
        field: ``coeffs`` or ``gradient_label``.
        dims: (n_types,) number of basis functions of each element.
    """
    counts = np.repeat(statistics.load_statistic(weigher_key, "n_atoms"), dims)
    mean = statistics.load_statistic(weigher_key, f"{field}/mean")
    std = statistics.load_statistic(weigher_key, f"{field}/std")
    total_mean = np.average(mean, weights=counts)
    return float(np.sqrt(np.average(std**2 + (mean - total_mean) ** 2, weights=counts)))


def _claim_folder(settings: AblationSettings) -> str:
    """Writes the folds, and what the folder's runs have in common; refuses a folder of other runs; returns the unit."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        data = compose("train", overrides=list(settings.overrides)).data
    source = instantiate(data.source)
    if not isinstance(source, LabelFiles):
        raise ConfigError(f"{type(source).__name__}: an ablation needs label files to divide (config: data/source)")
    divided = folds([path.name for path in source.label_files()], settings.n_folds)
    common = {"overrides": list(settings.overrides), "folds": divided}
    path = settings.output / "ablation.json"
    if path.exists() and json.loads(path.read_text()) != common:
        raise ConfigError(f"{path}: its runs have other folds or overrides: give another folder (--output)")
    write_text(path, json.dumps(common, indent=1))
    for fold, split in enumerate(divided):
        write_text(_split_file(settings, fold), json.dumps(split, indent=1))
    return check_unit(data.unit)


def _split_file(settings: AblationSettings, fold: int) -> Path:
    return settings.output / f"fold_{fold}.json"


def _composed(settings: AblationSettings, arm: str, fold: int) -> DictConfig:
    split = ["data/split=file", f"data.split.file={_split_file(settings, fold)}", "data.statistics.progress=false"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", overrides=[*settings.overrides, *split, *ARMS[arm]])


def _results(settings: AblationSettings, runs: Sequence[Run], unit: str) -> list[RunResult]:
    """Returns the results of runs, in their order, after those without a file have run."""
    files = {run: settings.output / "runs" / f"{run.name}.json" for run in runs}
    missing = [run for run, file in files.items() if not file.exists()]

    def keep(run: Run, result: RunResult) -> None:
        write_text(files[run], json.dumps(asdict(result), indent=1))
        done = sum(file.exists() for file in files.values())
        found = *(result.errors["val"][error_name(quantity, unit)] for quantity in CURVES), shown(unit).small
        log.info("%d of %d: %s: val %.1f and %.2f %s", done, len(files), run.name, *found)

    if settings.workers == 1:
        for run in missing:
            keep(run, train_run(settings, run))
    elif missing:
        _in_processes(settings, missing, keep)
    return [_read(files[run]) for run in runs]


def _in_processes(settings: AblationSettings, runs: Sequence[Run], keep: Callable[[Run, RunResult], None]) -> None:
    # a spawned process starts with Lightning's own log level: what it says of every run would bury the progress
    level = logging.getLogger("lightning.pytorch").getEffectiveLevel()
    context = get_context("spawn")
    with ProcessPoolExecutor(settings.workers, context, _set_lightning_log_level, (level,)) as pool:
        futures = {pool.submit(train_run, settings, run): run for run in runs}
        try:
            for future in as_completed(futures):
                keep(futures[future], future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _set_lightning_log_level(level: int) -> None:
    logging.getLogger("lightning.pytorch").setLevel(level)


def _read(file: Path) -> RunResult:
    stored = json.loads(file.read_text())
    return RunResult(Run(**stored["run"]), stored["errors"], stored["curves"])


def _baselines(settings: AblationSettings) -> dict[str, list[dict[str, float]]]:
    """Returns the test errors of predictors that are not trained, by name, one for each fold."""
    by_fold = [_baseline_errors(settings, fold) for fold in range(settings.n_folds)]
    return {predictor: [errors[predictor] for errors in by_fold] for predictor in by_fold[0]}


def _baseline_errors(settings: AblationSettings, fold: int) -> dict[str, dict[str, float]]:
    file = settings.output / "runs" / f"baselines_fold{fold}.json"
    if not file.exists():
        datamodule: OFDFTDataModule = instantiate(_composed(settings, "both", fold).data)
        datamodule.setup("fit")
        rows = evaluate(baselines(datamodule), split_batches(datamodule, "test"), datamodule.normalizer, "test")
        # "reference only" is an arm, too
        write_text(file, json.dumps({f"{row.predictor}, no network": row.errors for row in rows}, indent=1))
    return json.loads(file.read_text())
