"""Callbacks of a run: its record, its normalisation, samples out of range; and fewer messages of Lightning."""

import copy
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import ofdft_norm
from ofdft_norm.data.files import find_package_version, write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, format_count
from ofdft_norm.example.plots import plot_gradient_ranges
from ofdft_norm.normalization.build_normalizer import find_residual
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.weighers import find_labelled
from ofdft_norm.units import find_unit

CHECKPOINT_KEY = "ofdft_norm_run"

# messages of Lightning without information about the run
_NO_NEWS = re.compile(
    r"\s*($|---|GPU available|TPU available|\N{ELECTRIC LIGHT BULB}|Loading `train|Restoring|Loaded model|`Trainer\("
    r"|Starting with|Initializing distributed|distributed_backend|All distributed)"
)
# warnings of Lightning and torch: advice that does not fit these runs (the metrics synchronise), and a deprecation
_NO_ADVICE = (
    r"The '\w+' does not have many workers|The number of training batches|It is recommended to use `self\.log\('\w+/"
    r"|Checkpoint directory .* exists and is not empty|Grad strides do not match|`isinstance\(treespec, LeafSpec\)`"
)
_PACKAGE = Path(ofdft_norm.__file__).parent
_format_others = warnings.formatwarning


def quiet_lightning() -> None:
    """Prints Lightning's messages once, without the usual ones; prints this package's warnings in one line."""
    vars(warnings)["formatwarning"] = _format_warning
    if logging.root.handlers:  # the application has configured logging
        for logger in map(logging.getLogger, ("lightning", "lightning.pytorch", "lightning.fabric")):
            logger.handlers.clear()
            logger.propagate = True
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").addFilter(_is_news)  # a second call adds nothing
    warnings.filterwarnings("ignore", _NO_ADVICE)


def _is_news(record: logging.LogRecord) -> bool:
    return not _NO_NEWS.match(record.getMessage())


def _format_warning(message: Warning | str, category: type[Warning], filename: str, *others: Any) -> str:
    if Path(filename).is_relative_to(_PACKAGE):
        return f"\nwarning: {message}\n"  # on a new line: a progress bar may be on this one
    return _format_others(message, category, filename, *others)


class RunRecord(Callback):
    """Writes ``run.yaml`` when training starts, and the same record into every checkpoint; keeps the learning curves.

    The record has the keys `package_version`, `statistics_fingerprint` (None for given statistics) and `config`.

    Args:
        config: The run's configuration, resolved, of plain types.
        folder: The run folder.

    Attributes:
        curves: Epochs and values of the logged metrics, by their names.
    """

    def __init__(self, config: Mapping[str, Any], folder: str | Path) -> None:
        self.config = dict(config)
        self.folder = Path(folder)
        self.curves: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def _make_record(self, trainer: Trainer) -> dict[str, Any]:
        fingerprint = getattr(getattr(trainer, "datamodule", None), "fingerprint", None)
        return {"package_version": find_package_version(), "statistics_fingerprint": fingerprint, "config": self.config}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Quietens Lightning in processes that it has spawned."""
        quiet_lightning()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, on rank 0; a checkpoint to resume from has been read by now."""
        if trainer.is_global_zero:
            write_text(self.folder / "run.yaml", yaml.safe_dump(self._make_record(trainer), sort_keys=False))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the metrics of training and validation to the curves; validation has ended by now."""
        for name, value in trainer.callback_metrics.items():
            self.curves[name].append((trainer.current_epoch, float(value)))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the record to a checkpoint."""
        checkpoint[CHECKPOINT_KEY] = self._make_record(trainer)


class LogNormalization(Callback):
    """Logs the normalisation once, at the start of training: scalars, summary and the plot of gradient ranges.

    Every logger gets the scalars of `collect_scalars`; TensorBoard and loggers with a `log_image` method (such as
    W&B's) also get the plot, TensorBoard the summary.

    Args:
        plots: Whether to draw.
    """

    def __init__(self, plots: bool = True) -> None:
        self.plots = plots

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs on rank 0, unless the run resumes from a checkpoint.

        Raises:
            ConfigError: If the data module is no `OFDFTDataModule`.
        """
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, OFDFTDataModule):
            raise ConfigError(
                f"LogNormalization needs an OFDFTDataModule, but trainer.datamodule is {type(datamodule).__name__} "
                "(config: data, callbacks.log_normalization)"
            )
        if trainer.ckpt_path is not None:
            return  # a resumed run fits nothing; the first run has logged this
        _ = datamodule.statistics  # all ranks fit together
        if not trainer.is_global_zero:
            return
        scalars, step = collect_scalars(datamodule), trainer.global_step
        figure = plot_gradient_ranges(datamodule) if self.plots and datamodule.basis_info is not None else None
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("normalization/summary", f"<pre>{datamodule.summary()}</pre>", step)
            if figure is not None:
                log_figure(logger, "normalization/gradient_ranges", figure, step)


class CountOutOfRange(Callback):
    """Counts, in every validation epoch, the labelled samples outside of the training split's range of coefficients.

    Logs `val/out_of_range_samples` and `val/largest_range_excess`, with any LightningModule that
    uses an `OFDFTDataModule`, and warns once. Logs nothing if the range is not known.

    Args:
        tolerance: Distance from the range, in units of its width, from which a sample counts.
    """

    def __init__(self, tolerance: float = 1.0) -> None:
        self.tolerance = tolerance
        self._normalizer: Normalizer | None = None
        self._excess: list[Tensor] = []
        self._warned = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count, on the device of the batches."""
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, OFDFTDataModule):
            # a copy: the data module's own stays on the CPU, where its workers use it
            self._normalizer = copy.deepcopy(datamodule.normalizer).to(pl_module.device)
        self._excess = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Measures a batch."""
        found = None if self._normalizer is None else self._normalizer.range_excess(batch)
        if found is not None:
            self._excess.append(found.excess.cpu()[find_labelled(batch, required=False).cpu() > 0])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the count; warns at the first epoch."""
        if trainer.sanity_checking or not self._excess:
            return
        excess = torch.cat(self._excess)
        n = int((excess > self.tolerance).sum())
        largest = float(excess.max()) if len(excess) else 0.0
        pl_module.log("val/out_of_range_samples", float(n), sync_dist=True, reduce_fx="sum")
        pl_module.log("val/largest_range_excess", largest, sync_dist=True, reduce_fx="max")
        if n and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{n} of {format_count(len(excess), 'labelled validation sample')} have coefficients outside of the "
                f"range of training by more than {self.tolerance:g} of its width, at most by {largest:.1f}: the "
                "model extrapolates there (config: callbacks.count_out_of_range.tolerance)"
            )


def collect_scalars(datamodule: OFDFTDataModule) -> dict[str, float]:
    """Returns the size of the training split, residuals of the reference, and how many dimensions each limit sets."""
    statistics, normalizer, unit = datamodule.statistics, datamodule.normalizer, find_unit(datamodule.unit)
    found = statistics[datamodule.weigher_key]
    known: dict[str, Any] = {
        f"energy_scale_{unit.suffix}": unit.factor * float(normalizer.energy_scale),
        "n_samples": found.n_samples,
        "n_molecules": found.n_molecules,
    }
    _, residual = find_residual(statistics, datamodule.weigher_key, normalizer.reference, datamodule.basis_info)
    for name in () if normalizer.reference is None else ("mean", "std", "mae", "abs_max"):
        value = getattr(residual, name, None)
        known |= {} if value is None else {f"reference_residual_{name}_{unit.suffix}": unit.factor * value}
    branches = {} if normalizer.rescaling is None else normalizer.rescaling.branches()
    known |= {f"dimensions_by_{name}": float(mask.sum()) for name, mask in branches.items()}
    return {f"normalization/{name}": float(value) for name, value in known.items()}


def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Gives a figure to a logger that takes images; other loggers, such as the CSV logger, get nothing."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    elif hasattr(logger, "log_image"):  # W&B's and other loggers have it
        logger.log_image(key=name, images=[pixels], step=step)
