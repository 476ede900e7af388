"""A training run, from a Hydra configuration to a folder with checkpoint, metrics, results table and plots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf, open_dict

from ofdft_norm.checkpoint import check_checkpoint_file
from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.callbacks import OneFileTensorBoardLogger, log_figure
from ofdft_norm.example.density_module import DensityModule
from ofdft_norm.example.label_errors import error_name
from ofdft_norm.example.messages import say_once
from ofdft_norm.example.plots import plot_energies, plot_gradient_ranges, plot_normalization, save_figure
from ofdft_norm.example.results import MODEL, format_table, predicted_energies, results_table, split_batches, write_csv
from ofdft_norm.example.run_record import RunRecord
from ofdft_norm.settings import NonNegativeInt, PositiveInt, Settings

log = logging.getLogger(__name__)

SPLITS = ("val", "test")


class RunConfig(Settings):
    """What stands at the top of a run's configuration.

    Attributes:
        seed: Of initial weights and shuffling.
        threads: CPU threads of each process; None: torch's default.
    """

    seed: NonNegativeInt
    threads: PositiveInt | None = None
    config_key = ""


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, tests with the best checkpoint, and writes the run folder.

    Args:
        cfg: With `data`, `model`, `trainer`, `logger`, `callbacks`, `seed`, `threads`, `ckpt_path`, `output_dir`; see
            ``configs/train.yaml``.

    Returns:
        The last metrics of training and validation, the test metrics, and the best checkpoint's errors as
        ``results/<split>/<error>``.

    Raises:
        ConfigError: If a value is wrong, or there is no such checkpoint.
    """
    _check_checkpoint(cfg.get("ckpt_path"))
    output_dir = Path(cfg.output_dir)
    run = RunConfig(cfg.seed, cfg.get("threads"))
    say_once()
    seed_everything(run.seed, workers=True, verbose=False)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    check_checkpoint_file(cfg.get("ckpt_path"))
    datamodule: OFDFTDataModule = instantiate(cfg.data)
    model: DensityModule = instantiate(cfg.model)
    config = _without_hydra(cfg)
    record = RunRecord(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)), output_dir)
    callbacks = _instantiate_group(cfg.get("callbacks"), "dirpath", output_dir / "checkpoints")
    # without such a callback, Lightning would add one of its own
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    checkpointing = {} if "enable_checkpointing" in cfg.trainer else {"enable_checkpointing": saves}
    trainer: Trainer = instantiate(
        cfg.trainer,
        default_root_dir=str(output_dir),
        callbacks=[record, *callbacks],
        logger=_instantiate_group(cfg.get("logger"), "save_dir", output_dir),
        **checkpointing,
    )
    if trainer.is_global_zero:
        write_text(output_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    trainer.fit(model, datamodule=datamodule, ckpt_path=cfg.get("ckpt_path"))
    metrics = _floats(trainer.callback_metrics)
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    if "test" in datamodule.raw_datasets.names():
        trainer.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)  # the table below has all of it
        metrics.update(_floats(trainer.callback_metrics))
    _ = datamodule.statistics  # on every rank: a resumed run may fit them only now, and all ranks fit together
    if trainer.is_global_zero:
        if best is not None:
            # under ddp_spawn the weights were loaded in other processes
            model = type(model).load_from_checkpoint(best)
        of = "the best checkpoint" if best is not None else "the last weights"
        metrics.update(write_results(model, datamodule, output_dir, trainer.loggers, of))
        _close_loggers(trainer.loggers, model, compared_by(metrics, datamodule.unit))
        log.info("run folder: %s", output_dir.absolute())
    return metrics


def compared_by(metrics: Mapping[str, float], unit: str) -> float | None:
    """Returns what TensorBoard compares runs by: the energy error of the first held-out split that a run has.

    Args:
        metrics: Of the run.
        unit: Unit of the energies.

    Returns:
        None if the run has no such split.
    """
    names = (f"results/{split}/{error_name('energy_mae', unit)}" for split in SPLITS)
    return next((metrics[name] for name in names if name in metrics), None)


def _close_loggers(loggers: Sequence[Logger], model: LightningModule, compared: float | None) -> None:
    """Gives TensorBoard the metric that runs are compared by, and ends its file."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and compared is not None:
            logger.log_hyperparams(dict(model.hparams), {"hp_metric": compared})
        if isinstance(logger, OneFileTensorBoardLogger):
            logger.close()


def _check_checkpoint(path: str | None) -> None:
    """Refuses a checkpoint that is not there before anything is fitted; names with a meaning to Lightning pass."""
    if path is None or path in ("best", "last", "hpc") or "://" in path or Path(path).exists():
        return
    raise ConfigError(f"{path}: no such checkpoint (config: ckpt_path)")


def write_results(
    model: DensityModule,
    datamodule: OFDFTDataModule,
    output_dir: Path,
    loggers: Sequence[Logger] = (),
    of: str = "the model",
) -> dict[str, float]:
    """Writes the table of results, the summary of the statistics and pictures, and shows the table.

    ``results.txt``, ``energies.png``: validation and test split, as far as the data have them.
    ``summary.txt``, ``normalization.png``: what normalisation does to the training split.
    Of data with density coefficients there are ``results.csv`` and ``gradient_ranges.png``, too; a model of other data,
    such as `PotentialModule`, measures itself.

    Args:
        model: The trained model; any module whose `predict` gives energies, and gradients or forces, in `data.unit`.
        datamodule: Its data.
        output_dir: The run folder.
        loggers: Those that take images get those that are drawn here.
        of: What the results are of, for the screen.

    Returns:
        The model's errors as ``results/<split>/<error>``.
    """
    predict = model.cpu().eval().predict
    splits = [split for split in SPLITS if split in datamodule.raw_datasets.names()]
    table, errors = _measured(model, datamodule, splits, output_dir)
    log.info("results of %s:\n%s", of, table)
    write_text(output_dir / "results.txt", table + "\n")
    write_text(output_dir / "summary.txt", datamodule.summary() + "\n")
    normalizer, statistics = datamodule.normalizer, datamodule.statistics
    basis_info, key = datamodule.basis_info, datamodule.weigher_key
    energies = {s: predicted_energies(predict, split_batches(datamodule, s), normalizer) for s in splits}
    reference = datamodule.settings.reference
    name = None if reference is None else reference.statistics_name
    figures = {
        "normalization": plot_normalization(statistics, normalizer, basis_info, key, name),
        "energies": plot_energies(energies, datamodule.energy_name or "energy"),
    }
    for name, figure in figures.items():
        save_figure(figure, output_dir / f"{name}.png")
        for logger in loggers:
            log_figure(logger, f"results/{name}", figure, 0)
    if basis_info is not None:  # the callback gives it to the loggers, when training starts
        save_figure(plot_gradient_ranges(statistics, normalizer, basis_info, key), output_dir / "gradient_ranges.png")
    return errors


def _measured(
    model: DensityModule, datamodule: OFDFTDataModule, splits: Sequence[str], output_dir: Path
) -> tuple[str, dict[str, float]]:
    """Returns the table of results and the model's errors; writes all errors where the package measures them."""
    if datamodule.basis_info is None:
        return cast(Any, model).results(datamodule, splits)
    rows = results_table(model.predict, datamodule, splits)
    write_csv(rows, output_dir / "results.csv")
    return format_table(rows), {
        f"results/{row.split}/{name}": error
        for row in rows
        if row.predictor == MODEL
        for name, error in row.errors.items()
    }


def _instantiate_group(group: DictConfig | None, folder_key: str, folder: Path) -> list[Any]:
    """Instantiates every entry of a group; where an entry leaves `folder_key` null, it gets the run's folder."""
    entries = [] if group is None else [entry for entry in group.values() if entry is not None]
    return [
        instantiate(entry, **{folder_key: str(folder)})
        if folder_key in entry and entry[folder_key] is None
        else instantiate(entry)
        for entry in entries
    ]


def _without_hydra(cfg: DictConfig) -> DictConfig:
    copied = cfg.copy()
    with open_dict(copied):
        copied.pop("hydra", None)
    return copied


def _floats(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
