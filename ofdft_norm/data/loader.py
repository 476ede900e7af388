"""The settings of data loaders."""

from __future__ import annotations

from typing import Any, Literal

from ofdft_norm.settings import NonNegativeInt, PositiveInt, Settings


class LoaderConfig(Settings):
    """PyG's DataLoader for each split.

    Attributes:
        batch_size: Samples in a batch, on each rank.
        num_workers: Worker processes.
        pin_memory: Copy batches to page-locked memory, for GPUs.
        persistent_workers: Keep workers alive between epochs.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``; None: the platform's default.
        shuffle: Whether the training split is shuffled.
    """

    batch_size: PositiveInt = 32
    num_workers: NonNegativeInt = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    shuffle: bool = True
    config_key = "data.loader"

    def keywords(self) -> dict[str, Any]:
        """Returns the arguments for PyG's DataLoader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
            "multiprocessing_context": self.multiprocessing_context if self.num_workers > 0 else None,
        }
