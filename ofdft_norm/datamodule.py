"""OFDFTDataModule: where Lightning meets the normalisation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose

from ofdft_norm.config import (
    AtomicReference,
    EmbeddedLabels,
    LabelFiles,
    LinearReference,
    Loader,
    Rescaling,
    Split,
    Statistics,
)
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.transformed_dataset import TransformedDataset
from ofdft_norm.data.transforms import ProjectGradient
from ofdft_norm.errors import ConfigError, SplitError
from ofdft_norm.normalization.build import build_normalizer
from ofdft_norm.normalization.normalizer import Normalizer, NormalizeTransform
from ofdft_norm.normalization.normalizer_state import (
    describe_difference,
    normalizer_from_state,
    normalizer_to_state,
    package_version,
)
from ofdft_norm.statistics.cache import dataset_fingerprint, load_or_fit
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.fit import STATISTICS_VERSION
from ofdft_norm.statistics.summary import summary_table

log = logging.getLogger(__name__)

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class OFDFTDataModule(LightningDataModule):
    """Loads labels, fits their statistics on the training split, and yields normalised batches.

    After ``setup("fit")``: `normalizer` (with the exact inverses), `statistics`, `basis_info`, `datasets`. The
    normaliser comes from the first of: a checkpoint, given statistics (`statistics.path`), the cache of fitted
    statistics, a fit. Under DDP all ranks fit together, each its share of the molecules.

    Args:
        source: The label files.
        reference: Which reference energies to subtract; None: none.
        rescaling: How to rescale coefficients and gradients; None: not at all.
        statistics: How to fit, and where to keep results.
        split: Which molecules train, validate and test.
        loader: Settings of PyG's DataLoader.
        pre_transforms: Applied to each sample in float64 before statistics are taken and before it is normalised.
        energy_scale: A number [hartree], or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether those are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses atoms of elements that no training molecule has; ``identity`` leaves their
            coefficients as they are.
        dtype: Dtype of the batches: ``float32``, ``float64``, ``bfloat16``, ``float16``. Reference energies stay float64.

    Raises:
        ConfigError: If a setting is unknown.

    Example:
        >>> from ofdft_norm import OFDFTDataModule
        >>> datamodule = OFDFTDataModule()  # the embedded labels, atomic reference, dimension-wise rescaling
        >>> datamodule.basis_info.atomic_numbers.tolist()
        [1, 6, 7, 8, 9]
    """

    def __init__(
        self,
        source: LabelFiles | None = None,
        reference: AtomicReference | LinearReference | None = AtomicReference(),  # noqa: B008 (frozen)
        rescaling: Rescaling | None = Rescaling(),  # noqa: B008 (frozen)
        statistics: Statistics = Statistics(),  # noqa: B008 (frozen)
        split: Split = Split(),  # noqa: B008 (frozen)
        loader: Loader = Loader(),  # noqa: B008 (frozen)
        pre_transforms: Sequence[Callable[..., Any]] | None = None,
        energy_scale: float | str = 1.0,
        energy_scale_per_atom: bool = False,
        unseen_elements: Literal["error", "identity"] = "error",
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if unseen_elements not in ("error", "identity"):
            raise ConfigError(f"data.unseen_elements = {unseen_elements!r}: expected 'error' or 'identity'")
        if dtype not in DTYPES:
            raise ConfigError(f"data.dtype = {dtype!r}: expected one of {sorted(DTYPES)}")
        self.source = EmbeddedLabels() if source is None else source
        self.reference_config = reference
        self.rescaling_config = rescaling
        self.statistics_config = statistics
        self.split = split
        self.loader = loader
        self.pre_transforms = [ProjectGradient()] if pre_transforms is None else list(pre_transforms)
        self.energy_scale = energy_scale
        self.energy_scale_per_atom = energy_scale_per_atom
        self.unseen_elements = unseen_elements
        self.dtype = DTYPES[dtype]
        self.datasets: dict[str, TransformedDataset] = {}
        self.fingerprint: str | None = None
        self._raw: dict[str, Any] = {}
        self._basis_info: BasisInfo | None = None
        self._statistics: DatasetStatistics | None = None
        self._normalizer: Normalizer | None = None

    # --- what users read ----------------------------------------------------------------------------------------

    @property
    def basis_info(self) -> BasisInfo:
        """The density basis of the labels."""
        if self._basis_info is None:
            self._basis_info = self.source.basis()
        return self._basis_info

    @property
    def statistics(self) -> DatasetStatistics:
        """Statistics of the training split; fitted, or read from the cache, on first use."""
        if self._statistics is None:
            self._statistics = self._load_or_fit_statistics()
        return self._statistics

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser; a checkpoint's, where one was loaded, else built from `statistics`."""
        if self._normalizer is None:
            self._normalizer = build_normalizer(
                self.statistics,
                self.basis_info,
                self.reference_config,
                self.rescaling_config,
                self.statistics_config.weigher_key,
                self.energy_scale,
                self.energy_scale_per_atom,
                self.unseen_elements,
            )
        return self._normalizer

    # --- Lightning ----------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Builds the data sets; for training, fits the normaliser unless a checkpoint brings it.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or None for all. May be called repeatedly.
        """
        if not self._raw:
            transform = Compose(self.pre_transforms) if len(self.pre_transforms) != 1 else self.pre_transforms[0]
            self._raw = dict(self.source.datasets(self.split, transform if self.pre_transforms else None))
        resumed = self.trainer is not None and getattr(self.trainer, "ckpt_path", None) is not None
        if stage in (None, "fit") and not resumed:
            self._attach(self.normalizer)

    def _attach(self, normalizer: Normalizer) -> None:
        """Puts the normaliser on top of every split's data set."""
        transform = NormalizeTransform(normalizer, self.dtype)
        self.datasets = {
            part: TransformedDataset(dataset, transform, self.source.keep_in_memory) for part, dataset in self._raw.items()
        }

    def teardown(self, stage: str | None = None) -> None:
        """Frees the data sets; the normaliser stays."""
        self._raw = {}
        self.datasets = {}

    def _dataloader(self, part: str, shuffle: bool = False) -> DataLoader:
        if not self._raw:
            self.setup(None)
        if part not in self._raw:
            raise SplitError(f"the split has no {part!r} part; it has {sorted(self._raw)} (config: data.split)")
        if not self.datasets:
            self._attach(self.normalizer)
        return DataLoader(self.datasets[part], shuffle=shuffle, **self.loader.keywords())

    def train_dataloader(self) -> DataLoader:
        """Loads normalised batches of the training split."""
        return self._dataloader("train", shuffle=self.loader.shuffle)

    def val_dataloader(self) -> DataLoader:
        """Loads normalised batches of the validation split."""
        return self._dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Loads normalised batches of the test split."""
        return self._dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        """Loads normalised batches to predict on: the test split."""
        return self._dataloader("test")

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint carries: the normaliser, and where it came from."""
        return {
            "normalizer": normalizer_to_state(self.normalizer),
            "basis_info": self.basis_info.to_dict(),
            "fingerprint": self.fingerprint,
            "package_version": package_version(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the checkpoint's normaliser; if another one was fitted already, says how they differ."""
        loaded = state_dict["normalizer"]
        if self._normalizer is not None:
            difference = describe_difference(normalizer_to_state(self._normalizer), loaded)
            if difference:
                rank_zero_warn(
                    "the checkpoint's normaliser differs from the one fitted on the present training split, and replaces "
                    f"it (fitted against checkpoint: {difference})"
                )
        self._normalizer = normalizer_from_state(loaded)
        self._basis_info = BasisInfo(**state_dict["basis_info"])
        if self._raw:
            self._attach(self._normalizer)

    # --- fitting ------------------------------------------------------------------------------------------------

    def _load_or_fit_statistics(self) -> DatasetStatistics:
        config = self.statistics_config
        if config.path is not None:
            if not Path(config.path).exists():
                raise ConfigError(f"{config.path}: no statistics there (config: data.statistics.path)")
            return DatasetStatistics(config.path)
        if not self._raw:
            self.setup("validate")
        dataset = self._raw.get("train")
        if dataset is None:
            raise SplitError("the training split has no molecule: there is nothing to fit (config: data.split)")
        self.fingerprint = dataset_fingerprint(
            dataset, self.basis_info, self._fit_settings(), config.fingerprint == "contents"
        )
        folder = None if config.dir is None else Path(config.dir)
        statistics, reused = load_or_fit(self.fingerprint, folder, lambda: self._fit(dataset))
        if reused:
            rank_zero_info(f"statistics: reused {statistics.path}")
        else:
            rank_zero_info(summary_table(statistics, self.basis_info))
        return statistics

    def _fit_settings(self) -> dict[str, Any]:
        config = self.statistics_config
        return {
            "statistics_version": STATISTICS_VERSION,
            "weighers": [w.summary_string() for w in config.weighers],
            "initial_guess_weighers": [w.summary_string() for w in config.initial_guess_weighers],
            "with_bias": config.with_bias,
            "min_atoms_per_type": config.min_atoms_per_type,
            "n_batches": config.n_batches,
            "residuals": config.residuals,
        }

    def _fit(self, dataset: Any) -> DatasetStatistics:
        config = self.statistics_config
        return DatasetStatistics.from_dataset(
            None,
            dataset,
            self.basis_info,
            config.weighers,
            config.initial_guess_weighers,
            with_bias=config.with_bias,
            min_atoms_per_type=config.min_atoms_per_type,
            n_batches=config.n_batches,
            residuals=config.residuals,
            progress=config.progress,
            attributes={"source": repr(self.source)[:2000], "split": repr(self.split)},
        )
