"""What a run was made of, in its folder and in its checkpoints: configuration, statistics, package version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

from ofdft_norm.data.files import write_text
from ofdft_norm.version import package_version

CHECKPOINT_KEY = "ofdft_norm_run"
FILE_NAME = "run.yaml"


class RunRecord(Callback):
    """Writes ``run.yaml`` when training starts, and the same record into every checkpoint.

    The record has the keys `package_version`, `statistics_fingerprint` (None where statistics were given, not fitted)
    and `config`, all of plain types: a checkpoint with it loads with ``weights_only=True``.

    Args:
        config: The run's configuration, resolved, of plain types.
        folder: The run folder.
    """

    def __init__(self, config: Mapping[str, Any], folder: str | Path) -> None:
        self.config = dict(config)
        self.folder = Path(folder)
        self._loaded_fingerprint: str | None = None

    def record(self, trainer: Trainer) -> dict[str, Any]:
        """Returns the record; the fingerprint of a resumed run is its checkpoint's.

        Args:
            trainer: The trainer of the run.
        """
        fingerprint = getattr(getattr(trainer, "datamodule", None), "fingerprint", None)
        return {
            "package_version": package_version(),
            "statistics_fingerprint": fingerprint or self._loaded_fingerprint,
            "config": self.config,
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, on rank 0; a checkpoint to resume from has been read by now."""
        if trainer.is_global_zero:
            write_text(self.folder / FILE_NAME, yaml.safe_dump(self.record(trainer), sort_keys=False))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the record to a checkpoint."""
        checkpoint[CHECKPOINT_KEY] = self.record(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over the fingerprint of the statistics in the checkpoint."""
        self._loaded_fingerprint = checkpoint.get(CHECKPOINT_KEY, {}).get("statistics_fingerprint")
