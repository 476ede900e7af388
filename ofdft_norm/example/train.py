"""A training run, from a Hydra configuration to a folder with checkpoints, metrics, results and pictures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf, open_dict

from ofdft_norm.checkpoint import check_checkpoint_file
from ofdft_norm.data.files import write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.example import plots, results
from ofdft_norm.example.callbacks import RunRecord, log_figure, quiet_lightning
from ofdft_norm.example.metrics import MeasuredModule, name_error
from ofdft_norm.settings import NonNegativeInt, PositiveInt, Settings
from ofdft_norm.units import find_unit

log = logging.getLogger(__name__)


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
    if ckpt_path not in (None, "best", "last", "hpc"):  # Lightning defines the last three
        check_checkpoint_file(ckpt_path)
    quiet_lightning()
    seed_everything(run.seed, workers=True, verbose=False)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    datamodule: OFDFTDataModule = instantiate(cfg.data)
    model: LightningModule = instantiate(cfg.model)
    trainer, record = _make_trainer(cfg, output_dir)
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    metrics = _to_floats(trainer.callback_metrics)
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    if best is not None:  # with ckpt_path, Lightning would test averaged weights as they were before the average
        model = type(model).load_from_checkpoint(best)
    if "test" in datamodule.parts.names():
        trainer.test(model, datamodule=datamodule, verbose=False)  # the results have these metrics
        metrics.update(_to_floats(trainer.callback_metrics))
    _ = datamodule.statistics  # on every rank: a resumed run may fit them only now, and all ranks fit together
    if trainer.is_global_zero:
        log.info("results of %s:", "the best checkpoint" if best is not None else "the last weights")
        metrics.update(write_results(model, datamodule, output_dir, trainer.loggers, record.curves))
        compared = find_compared_metric(metrics, datamodule.unit)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and compared is not None:
                logger.log_hyperparams(dict(model.hparams), {"hp_metric": compared})
                logger.experiment.close()
        log.info("run folder: %s", output_dir.absolute())
    return metrics


def _make_trainer(cfg: DictConfig, output_dir: Path) -> tuple[Trainer, RunRecord]:
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
    return trainer, record


def _instantiate_group(group: DictConfig | None, folder_key: str, folder: Path) -> list[Any]:
    """Instantiates every entry of a group; a null `folder_key` of an entry becomes the run's folder."""
    entries = filter(None, (group or {}).values())
    in_run = {folder_key: str(folder)}
    return [instantiate(e, **(in_run if e.get(folder_key, "") is None else {})) for e in entries]


def write_results(
    model: LightningModule,
    datamodule: OFDFTDataModule,
    output_dir: Path,
    loggers: Sequence[Logger] = (),
    curves: Mapping[str, Sequence[tuple[int, float]]] = {},
) -> dict[str, float]:
    """Writes the table of results, the summary of the statistics and pictures, and shows the table.

    Results need a `MeasuredModule`; `curves` are those of `RunRecord`. Returns the model's errors as
    ``results/<split>/<error>``.
    """
    write_text(output_dir / "summary.txt", datamodule.summary() + "\n")
    figures, errors = {"normalization": plots.plot_normalization(datamodule)}, {}
    splits = sorted(set(datamodule.parts.names()) - {"train"}, key=lambda part: (part != "val", part))
    if isinstance(model, MeasuredModule) and splits:
        normalizer, unit = datamodule.normalizer, datamodule.unit
        predictors = {**results.fit_all_baselines(datamodule), results.MODEL: model.cpu().eval().predict}
        found = [
            results.evaluate(predictors, results.iterate_batches(datamodule, split), normalizer, split)
            for split in splits
        ]
        rows = [row for of_split, _ in found for row in of_split]
        ungrouped = [row for row in rows if not row.group]
        accuracy = results.describe_accuracy(rows)
        log.info("%s", "\n".join(filter(None, [results.format_table(ungrouped), accuracy])))
        write_text(output_dir / "results.txt", "\n".join(filter(None, [results.format_table(rows), accuracy])) + "\n")
        results.write_csv(rows, output_dir / "results.csv")
        of_model = [row for row in ungrouped if row.predictor == results.MODEL]
        errors = {f"results/{row.split}/{error}": value for row in of_model for error, value in row.errors.items()}
        symbol, per = find_unit(unit).symbol, "/angstrom" if datamodule.basis_info is None else ""
        names = f"energy minus reference [{symbol}]", f"{model.predicted[1]} [{symbol}{per}]"
        pairs = zip(names, zip(*(pairs for _, pairs in found), strict=True), strict=True)
        figures["parity"] = plots.plot_parity({name: dict(zip(splits, points, strict=True)) for name, points in pairs})
        if panels := _make_panels(curves, model, unit):
            figures["learning_curves"] = plots.plot_learning_curves(panels)
    for name, figure in figures.items():
        plots.save_figure(figure, output_dir / f"{name}.png")
        for logger in loggers:
            log_figure(logger, f"results/{name}", figure, 0)
    if datamodule.basis_info is not None:  # the callback gives this picture to the loggers when training starts
        plots.save_figure(plots.plot_gradient_ranges(datamodule), output_dir / "gradient_ranges.png")
    return errors


def _make_panels(curves: Mapping[str, Sequence[tuple[int, float]]], model: MeasuredModule, unit: str) -> Any:
    """Returns the loss and the validation errors of a table as `plot_learning_curves` takes them."""
    kind, arrays = model.metric_class, {name: tuple(np.array(curve).T) for name, curve in curves.items()}
    named = dict(zip(kind.QUANTITIES, kind.names(unit), strict=True))
    headings = results.HEADINGS[kind]
    errors = {" ".join(words): arrays.get(f"val/{named[quantity]}") for quantity, words in headings.items()}
    panels = {"loss of the training split": {"train": arrays.get("train/loss")}}
    panels[f"mean absolute errors of the validation split [{find_unit(unit).small}]"] = errors
    known = {name: {k: v for k, v in panel.items() if v is not None} for name, panel in panels.items()}
    return {name: panel for name, panel in known.items() if panel}


def find_compared_metric(metrics: Mapping[str, float], unit: str) -> float | None:
    """Returns the metric by which TensorBoard compares runs: the energy error of the first held-out split, if any."""
    error = f"/{name_error('energy_mae', unit)}"
    return next((v for name, v in metrics.items() if name.startswith("results/") and name.endswith(error)), None)


def _to_floats(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
