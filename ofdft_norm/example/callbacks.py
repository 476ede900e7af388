"""What a run shows of its normalisation."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError, counted
from ofdft_norm.example.plots import plot_gradient_ranges
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.sample_weighers import has_label
from ofdft_norm.units import shown

log = logging.getLogger(__name__)


class OneFileTensorBoardLogger(TensorBoardLogger):
    """Keeps its event file open from training to results; Lightning's opens a second one after training."""

    def finalize(self, status: str) -> None:
        """Writes what is waiting to be written; `close` ends the file."""
        self.save()

    @rank_zero_only
    def close(self) -> None:
        """Ends the event file."""
        self.experiment.close()


_RESIDUALS = ("mean", "std", "mae", "abs_max")


class LogNormalization(Callback):
    """Logs, once at the start of training, what the normaliser was fitted on and what it leaves of the labels.

    Every logger gets the scalars of `normalization_scalars`; TensorBoard and loggers with a `log_image` method (such as
    W&B's) also get the plot of gradient ranges, TensorBoard the text summary.

    Args:
        plots: Whether to draw.
    """

    def __init__(self, plots: bool = True) -> None:
        self.plots = plots

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs scalars, summary and plot, on rank 0, unless the run resumes from a checkpoint.

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
            return  # a resumed run fits nothing; the run that it resumes has logged this
        # on every rank: where nothing was fitted yet, all of them fit together now
        normalizer, statistics = datamodule.normalizer, datamodule.statistics
        if not trainer.is_global_zero:
            return
        scalars, basis_info = normalization_scalars(datamodule), datamodule.basis_info
        summary, figure = datamodule.summary(), None
        if basis_info is not None and self.plots:  # other data have no gradients of coefficients
            figure = plot_gradient_ranges(statistics, normalizer, basis_info, datamodule.weigher_key)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("normalization/summary", f"<pre>{summary}</pre>", trainer.global_step)
            if figure is not None:
                log_figure(logger, "normalization/gradient_ranges", figure, trainer.global_step)


class CountOutOfRange(Callback):
    """Counts, in every validation epoch, the labelled samples that leave the training split's range of coefficients.

    Logs `val/out_of_range_samples` and `val/largest_range_excess`, with any LightningModule whose data module is an
    `OFDFTDataModule`, and warns once. Nothing where the range is not known. Under DDP samples count as often as the
    ranks' samplers repeat them.

    Args:
        tolerance: By how much of the range's width a sample may leave it.
    """

    def __init__(self, tolerance: float = 1.0) -> None:
        self.tolerance = tolerance
        self._normalizer: Normalizer | None = None
        self._excess: list[Tensor] = []
        self._warned = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count, where batches are."""
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, OFDFTDataModule):
            # a copy: the data module's own stays on the CPU, where its workers use it
            self._normalizer = copy.deepcopy(datamodule.normalizer).to(pl_module.device)
        self._excess = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measures a batch."""
        found = None if self._normalizer is None else self._normalizer.range_excess(batch)
        if found is not None:
            self._excess.append(found.excess.cpu()[has_label(batch, required=False) > 0])

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
                f"{n} of {counted(len(excess), 'labelled validation sample')} have coefficients that leave the range "
                f"of the training split by more than {self.tolerance:g} of its width, the worst by {largest:.1f}: "
                "models extrapolate there (config: callbacks.count_out_of_range.tolerance)"
            )


def normalization_scalars(datamodule: OFDFTDataModule) -> dict[str, float]:
    """Returns what the reference leaves of the energies, and how many dimensions each branch of lambda decides.

    Args:
        datamodule: With statistics and normaliser.

    Returns:
        Scalars by name; residuals only where the statistics have them.
    """
    key, statistics = datamodule.weigher_key, datamodule.statistics
    unit, normalizer = shown(datamodule.unit), datamodule.normalizer
    scalars = {f"normalization/energy_scale_{unit.suffix}": unit.factor * float(normalizer.energy_scale)}
    for name in ("n_samples", "n_molecules"):
        if f"{key}/{name}" in statistics:
            scalars[f"normalization/{name}"] = float(statistics.load_statistic(key, name))
    reference = datamodule.settings.reference
    if reference is not None:
        prefix = f"energy_minus_{reference.statistics_name}"
        for name in _RESIDUALS:
            if f"{key}/{prefix}/{name}" in statistics:
                value = float(statistics.load_statistic(key, f"{prefix}/{name}"))
                scalars[f"normalization/reference_residual_{name}_{unit.suffix}"] = unit.factor * value
    rescaling = normalizer.rescaling
    if rescaling is not None:
        scalars.update({f"normalization/dimensions_by_{k}": float(v) for k, v in rescaling.branches().items()})
    return scalars


def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Gives a figure to a logger that takes images; others, such as the CSV logger, are passed over.

    Args:
        logger: Any Lightning logger.
        name: Name of the image.
        figure: Drawn on a `FigureCanvasAgg`.
        step: Global step.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, _pixels(figure), step, dataformats="HWC")
        return
    log_image: Any = getattr(logger, "log_image", None)
    if callable(log_image):
        log_image(key=name, images=[_pixels(figure)], step=step)
    else:
        log.debug("%s takes no images: %s is not logged there", type(logger).__name__, name)


def _pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """Returns the (height, width, 3) pixels of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()
