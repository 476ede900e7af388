"""A training run, from a Hydra configuration to a folder with checkpoint, metrics, results table and plots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf, open_dict

from ofdft_norm.checkpoint import check_checkpoint_file
from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.callbacks import OneFileTensorBoardLogger, log_figure
from ofdft_norm.example.density_module import DensityModule
from ofdft_norm.example.plots import plot_energies, plot_gradient_ranges, plot_normalization, save_figure
from ofdft_norm.example.results import MODEL, format_table, predicted_energies, results_table, split_batches, write_csv
from ofdft_norm.example.run_record import RunRecord
from ofdft_norm.normalization.summary import summary_table
from ofdft_norm.settings import NonNegativeInt, PositiveInt, Settings

log = logging.getLogger(__name__)

SPLITS = ("val", "test")
# the first of these that a run has is what TensorBoard compares runs by
COMPARED_BY = tuple(f"results/{split}/energy_mae_mHa" for split in SPLITS)
# how messages of Lightning begin that say nothing of the run
CHATTER = ("GPU available", "TPU available", "\N{ELECTRIC LIGHT BULB}", "Loading `train", "Restoring", "Loaded model")


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
    _say_once()
    seed_everything(run.seed, workers=True, verbose=False)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    check_checkpoint_file(cfg.get("ckpt_path"))
    datamodule: OFDFTDataModule = instantiate(cfg.data)
    model: DensityModule = instantiate(cfg.model)
    config = _without_hydra(cfg)
    record = RunRecord(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)), output_dir)
    trainer: Trainer = instantiate(
        cfg.trainer,
        default_root_dir=str(output_dir),
        callbacks=[record, *_instantiate_group(cfg.get("callbacks"), "dirpath", output_dir / "checkpoints")],
        logger=_instantiate_group(cfg.get("logger"), "save_dir", output_dir),
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
        log.info("%s:", "results of the best checkpoint" if best is not None else "results of the last weights")
        metrics.update(write_results(model, datamodule, output_dir, trainer.loggers))
        _close_loggers(trainer.loggers, model, metrics)
        log.info("run folder: %s", output_dir.absolute())
    return metrics


def _say_once() -> None:
    """Sends Lightning's messages where all others go, once, and drops those that say nothing of the run."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        if logging.root.handlers:
            logger.handlers.clear()
            logger.propagate = True
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _says_something not in chatter.filters:
        chatter.addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(CHATTER)


def _close_loggers(loggers: Sequence[Logger], model: LightningModule, metrics: Mapping[str, float]) -> None:
    """Gives TensorBoard the metric that runs are compared by, and ends its file."""
    compared = [value for name, value in metrics.items() if name in COMPARED_BY]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and compared:
            logger.log_hyperparams(dict(model.hparams), {"hp_metric": compared[0]})
        if isinstance(logger, OneFileTensorBoardLogger):
            logger.close()


def _check_checkpoint(path: str | None) -> None:
    """Refuses a checkpoint that is not there before anything is fitted; names with a meaning to Lightning pass."""
    if path is None or path in ("best", "last", "hpc") or "://" in path or Path(path).exists():
        return
    raise ConfigError(f"{path}: no such checkpoint (config: ckpt_path)")


def write_results(
    model: DensityModule, datamodule: OFDFTDataModule, output_dir: Path, loggers: Sequence[Logger] = ()
) -> dict[str, float]:
    """Writes the table of results, the summary of the statistics and three pictures, and shows the table.

    ``results.csv``, ``results.txt``, ``energies.png``: validation and test split, as far as the data have them.
    ``summary.txt``, ``gradient_ranges.png``, ``normalization.png``: what normalisation does to the training split.
    Of data without density coefficients there is ``results.txt`` alone, by a model that measures itself, such as
    `PotentialModule`.

    Args:
        model: The trained model; any module whose `predict` gives energies and gradients in `data.unit`.
        datamodule: Its data.
        output_dir: The run folder.
        loggers: Those that take images get ``energies.png``.

    Returns:
        The model's errors as ``results/<split>/<error>``.
    """
    predict = model.cpu().eval().predict
    splits = [split for split in SPLITS if split in datamodule.raw_datasets.names()]
    if datamodule.basis_info is None:
        table, errors = cast(Any, model).results(datamodule, splits)
        log.info("results of the best checkpoint:\n%s", table)
        write_text(output_dir / "results.txt", table + "\n")
        return errors
    rows = results_table(predict, datamodule, splits)
    table = format_table(rows)
    log.info("%s", table)
    write_text(output_dir / "results.txt", table + "\n")
    write_csv(rows, output_dir / "results.csv")

    normalizer, key = datamodule.normalizer, datamodule.statistics_config.weigher_key
    basis_info = datamodule.basis_info
    summary = summary_table(datamodule.statistics, basis_info, normalizer.rescaling, key)
    write_text(output_dir / "summary.txt", summary + "\n")
    figure = plot_gradient_ranges(datamodule.statistics, normalizer, basis_info, key)
    save_figure(figure, output_dir / "gradient_ranges.png")
    figure = plot_normalization(datamodule.statistics, normalizer, basis_info, key)
    save_figure(figure, output_dir / "normalization.png")
    energies = {s: predicted_energies(predict, split_batches(datamodule, s), normalizer) for s in splits}
    figure = plot_energies(energies, getattr(datamodule.source, "energy_key", "energy"))
    save_figure(figure, output_dir / "energies.png")
    for logger in loggers:
        log_figure(logger, "results/energies", figure, 0)
    return {f"results/{r.split}/{k}": v for r in rows if r.predictor == MODEL for k, v in r.errors.items()}


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
