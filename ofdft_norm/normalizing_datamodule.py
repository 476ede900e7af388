"""Which normaliser a data module uses, where it comes from, and how it travels in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ofdft_norm.checkpoint_state import arguments_from_plain, statistics_from_state, statistics_to_state
from ofdft_norm.config import StatisticsConfig
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import ConfigError
from ofdft_norm.mixin import held_normalizer
from ofdft_norm.normalization.fit import FittedStatistics, NormalizerSettings, fit_normalizer
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.normalizer_state import (
    describe_difference,
    normalizer_from_state,
    normalizer_to_state,
)
from ofdft_norm.source_parts import SourceParts
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.summary import summary_table
from ofdft_norm.version import package_version


class NormalizingDataModule(LightningDataModule):
    """Settles the normaliser: a checkpoint's, the model's, or one fitted to the training split; in this order.

    Args:
        parts: The raw data sets.
        settings: What the normaliser is made of.
        statistics: How to fit, and where to keep results.
        arguments: The data module's arguments as plain data, for checkpoints.
    """

    def __init__(
        self, parts: SourceParts, settings: NormalizerSettings, statistics: StatisticsConfig, arguments: dict[str, Any]
    ) -> None:
        super().__init__()
        self.parts = parts
        self.settings = settings
        self.statistics_config = statistics
        self._arguments = arguments
        self._basis_info: BasisInfo | None = None
        self._fitted: FittedStatistics | None = None
        self._normalizer: Normalizer | None = None

    @property
    def basis_info(self) -> BasisInfo | None:
        """The density basis of the labels; None for data without density coefficients."""
        if self._basis_info is None:
            self._basis_info = self.parts.source.basis()
        return self._basis_info

    @property
    def statistics(self) -> DatasetStatistics:
        """Statistics of the training split: a checkpoint's, or read from the cache, or fitted, on first use."""
        if self._fitted is None:
            self._fit()
        return cast(FittedStatistics, self._fitted).statistics

    @property
    def fingerprint(self) -> str | None:
        """Of what the statistics were fitted on; None where they were given, or it cannot be told."""
        return None if self._fitted is None else self._fitted.fingerprint

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser: a checkpoint's, the model's, or built from `statistics`, on first use."""
        brought = held_normalizer(self.trainer)
        if brought is not None:
            self._use(normalizer_to_state(brought), "model")
        if self._normalizer is None:
            self._fit()
        return cast(Normalizer, self._normalizer)

    @property
    def known_normalizer(self) -> Normalizer | None:
        """The normaliser, if it is settled already."""
        return self._normalizer

    def _fit(self) -> None:
        """Fits, or reads, the statistics; builds the normaliser unless there is one."""
        fitted, normalizer = fit_normalizer(
            lambda: self.parts["train"], self.parts.source, self.basis_info, self.statistics_config, self.settings
        )
        self._fitted = fitted
        self._normalizer = self._normalizer or normalizer
        if not fitted.reused and self.basis_info is not None:
            rank_zero_info(summary_table(fitted.statistics, self.basis_info, self._normalizer.rescaling))

    def _use(self, state: Mapping[str, Any], whose: str) -> None:
        """Takes a normaliser that a checkpoint or model brings; says how it differs from the present one, if any."""
        if self._normalizer is not None:
            difference = describe_difference(normalizer_to_state(self._normalizer), state)
            if not difference:
                return
            rank_zero_warn(
                f"the {whose}'s normaliser differs from the one fitted on the present training split, and replaces it "
                f"(fitted against {whose}: {difference})"
            )
        self._normalizer = normalizer_from_state(state)
        self._release()

    def _release(self) -> None:
        """Frees what was built with the former normaliser."""

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint carries, as plain data: normaliser, statistics, settings and split."""
        if self._normalizer is None:
            return {}
        return {
            "package_version": package_version(),
            "fingerprint": self.fingerprint,
            "normalizer": normalizer_to_state(self._normalizer),
            "statistics": None if self._fitted is None else statistics_to_state(self._fitted.statistics),
            "basis_info": None if self.basis_info is None else self.basis_info.to_dict(),
            "arguments": self._arguments,
            "split": self.parts.state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the checkpoint's normaliser; if another one was settled already, says how they differ."""
        self._use(state_dict["normalizer"], "checkpoint")
        if state_dict["statistics"] is not None:
            statistics = statistics_from_state(state_dict["statistics"])
            self._fitted = FittedStatistics(statistics, state_dict["fingerprint"], True)
        basis_info = state_dict["basis_info"]
        self._basis_info = None if basis_info is None else BasisInfo(**basis_info)
        self.parts.restore(state_dict["split"], self._basis_info)
        self._release()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = "cpu", weights_only: bool = True, **kwargs: Any
    ) -> NormalizingDataModule:
        """Builds a data module with a checkpoint's settings and normaliser; it fits nothing.

        Args:
            checkpoint_path: A checkpoint that a Trainer with this data module wrote.
            map_location: As in `torch.load`.
            weights_only: As in `torch.load`.
            **kwargs: Constructor's arguments that differ from those of the training run, such as other data.

        Raises:
            ConfigError: If the checkpoint has no state of this class, or an argument of the training run could not be
                saved and is not given.
        """
        checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=weights_only)
        state = next((checkpoint[c.__qualname__] for c in cls.__mro__ if c.__qualname__ in checkpoint), None)
        if state is None:
            raise ConfigError(f"{checkpoint_path}: has no state of {cls.__qualname__}: it was not trained with one")
        datamodule = cls(**arguments_from_plain(state["arguments"], kwargs))
        datamodule.load_state_dict(state)
        return datamodule
