"""A training run, from a Hydra configuration to a folder with checkpoints, metrics, results and pictures."""

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
from ofdft_norm.example.callbacks import RunRecord, log_figure, quiet_lightning
from ofdft_norm.example.metrics import MeasuredModule, error_name
from ofdft_norm.example.plots import plot_energies, plot_gradient_ranges, plot_normalization, save_figure
from ofdft_norm.example.results import MODEL, energy_errors, format_table, results_table, split_batches, write_csv
from ofdft_norm.settings import NonNegativeInt, PositiveInt, Settings

log = logging.getLogger(__name__)

SPLITS = ("val", "test")


class RunConfig(Settings):
    """Settings at the top of a run's configuration, see ``configs/train.yaml``."""

    seed: NonNegativeInt
    threads: PositiveInt | None = None
    config_key = ""


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, tests with the best checkpoint, and writes the run folder, as ``configs/train.yaml`` configures it.

    Returns the last metrics of training and validation, the test metrics, and the errors ``results/<split>/<error>``.
    """
    run, output_dir, ckpt_path = RunConfig(cfg.seed, cfg.get("threads")), Path(cfg.output_dir), cfg.get("ckpt_path")
    if ckpt_path not in (None, "best", "last", "hpc"):  # the last three have a meaning to Lightning
        check_checkpoint_file(ckpt_path)
    quiet_lightning()
    seed_everything(run.seed, workers=True, verbose=False)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    datamodule: OFDFTDataModule = instantiate(cfg.data)
    model: LightningModule = instantiate(cfg.model)
    trainer = _make_trainer(cfg, output_dir)
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    metrics = _floats(trainer.callback_metrics)
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    if "test" in datamodule.parts.names():
        trainer.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)  # the results have these metrics
        metrics.update(_floats(trainer.callback_metrics))
    _ = datamodule.statistics  # on every rank: a resumed run may fit them only now, and all ranks fit together
    if trainer.is_global_zero:
        if best is not None:  # under ddp_spawn the weights were loaded in other processes
            model = type(model).load_from_checkpoint(best)
        log.info("results of %s:", "the best checkpoint" if best is not None else "the last weights")
        metrics.update(write_results(model, datamodule, output_dir, trainer.loggers))
        compared = compared_by(metrics, datamodule.unit)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and compared is not None:
                logger.log_hyperparams(dict(model.hparams), {"hp_metric": compared})
                logger.experiment.close()
        log.info("run folder: %s", output_dir.absolute())
    return metrics


def _make_trainer(cfg: DictConfig, output_dir: Path) -> Trainer:
    """Makes the trainer with loggers, callbacks and the run's record; writes the configuration."""
    config = cfg.copy()
    with open_dict(config):
        config.pop("hydra", None)
    record = RunRecord(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)), output_dir)
    callbacks = _instantiate_group(cfg.get("callbacks"), "dirpath", output_dir / "checkpoints")
    # without a checkpoint callback, Lightning would add its own
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    checkpointing = {} if "enable_checkpointing" in cfg.trainer else {"enable_checkpointing": saves}
    loggers = _instantiate_group(cfg.get("logger"), "save_dir", output_dir)
    places: Any = {"default_root_dir": str(output_dir), "callbacks": [record, *callbacks], "logger": loggers}
    trainer: Trainer = instantiate(cfg.trainer, **places, **checkpointing)
    if trainer.is_global_zero:
        write_text(output_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    return trainer


def _instantiate_group(group: DictConfig | None, folder_key: str, folder: Path) -> list[Any]:
    """Instantiates every entry of a group; a null `folder_key` of an entry becomes the run's folder."""
    entries = filter(None, (group or {}).values())
    in_run = {folder_key: str(folder)}
    return [instantiate(e, **(in_run if e.get(folder_key, "") is None else {})) for e in entries]


# --- results ----------------------------------------------------------------------------------------------------------


def write_results(
    model: LightningModule, datamodule: OFDFTDataModule, output_dir: Path, loggers: Sequence[Logger] = ()
) -> dict[str, float]:
    """Writes the table of results, the summary of the statistics and pictures, and shows the table.

    Results need a `MeasuredModule`. Returns the model's errors as ``results/<split>/<error>``.
    """
    write_text(output_dir / "summary.txt", datamodule.summary() + "\n")
    figures, errors = {"normalization": plot_normalization(datamodule)}, {}
    if isinstance(model, MeasuredModule):
        compare = model.cpu().eval().compare
        splits = [split for split in SPLITS if split in datamodule.parts.names()]
        rows = results_table(compare, datamodule, splits)
        table = format_table(rows)
        log.info("%s", table)
        write_text(output_dir / "results.txt", table + "\n")
        write_csv(rows, output_dir / "results.csv")
        of_model = [row for row in rows if row.predictor == MODEL]
        errors = {f"results/{row.split}/{error}": value for row in of_model for error, value in row.errors.items()}
        energies = {s: energy_errors(compare, split_batches(datamodule, s), datamodule.normalizer) for s in splits}
        figures["energies"] = plot_energies(energies, datamodule.unit, datamodule.energy_name or "energy")
    for name, figure in figures.items():
        save_figure(figure, output_dir / f"{name}.png")
        for logger in loggers:
            log_figure(logger, f"results/{name}", figure, 0)
    if datamodule.basis_info is not None:  # the callback gives this picture to the loggers when training starts
        save_figure(plot_gradient_ranges(datamodule), output_dir / "gradient_ranges.png")
    return errors


def compared_by(metrics: Mapping[str, float], unit: str) -> float | None:
    """Returns the metric by which TensorBoard compares runs: the energy error of the first held-out split, if any."""
    names = (f"results/{split}/{error_name('energy_mae', unit)}" for split in SPLITS)
    return next((metrics[name] for name in names if name in metrics), None)


def _floats(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
