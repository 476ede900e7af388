"""OFDFTDataModule: where Lightning meets the normalisation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from ofdft_norm.checkpoint_state import arguments_to_plain
from ofdft_norm.config import (
    AtomRefConfig,
    EmbeddedLabels,
    LabelFiles,
    LinearReferencesConfig,
    LoaderConfig,
    RescalingConfig,
    SampleFile,
    SplitConfig,
    StatisticsConfig,
    WrappedData,
)
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.epoch_sampler import EpochSampler
from ofdft_norm.data.lazy_parts import LazyParts
from ofdft_norm.data.of_data import molecule_index
from ofdft_norm.data.transformed_dataset import JoinSamples, TransformedDataset
from ofdft_norm.errors import ConfigError
from ofdft_norm.normalization.fit import NormalizerSettings
from ofdft_norm.normalization.transforms import CheckElements, NormalizeTransform, batch_dtype
from ofdft_norm.normalizing_datamodule import NormalizingDataModule
from ofdft_norm.settings import check_arguments
from ofdft_norm.source_parts import SourceParts
from ofdft_norm.statistics.cache import default_cache_dir
from ofdft_norm.transforms.project_gradient import ProjectGradient

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]


class OFDFTDataModule(NormalizingDataModule):
    """Loads labels, fits their statistics on the training split, and yields normalised batches.

    After ``setup("fit")``: `normalizer` (with the exact inverses), `statistics`, `basis_info`, `datasets`. The
    normaliser is that of the first of: a checkpoint, the model (if it brings one), given statistics
    (`statistics.path`), the cache of fitted statistics, a fit. Under a Trainer it is settled when it is first needed,
    as a checkpoint arrives after `setup`; under DDP all ranks must then ask for it, and fit together, each its share of
    the molecules. Only the label files of the parts that are used are opened.

    Args:
        source: The label files, somebody else's data sets (see `wrap`), or samples to predict on.
        reference: Which reference energies to subtract; None: none.
        rescaling: How to rescale coefficients and gradients; None: not at all.
        statistics: How to fit, and where to keep results.
        split: Which molecules train, validate and test.
        loader: Settings of PyG's DataLoader.
        pre_transforms: Applied to each sample in float64 before statistics are taken and before it is normalised; None:
            `ProjectGradient`.
        energy_scale: A number [hartree], or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether those are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses atoms of elements that no training molecule has; ``identity`` leaves their
            coefficients as they are.
        dtype: Dtype of the batches: ``float32``, ``float64``, ``bfloat16``, ``float16``; ``auto``: that of the
            Trainer's precision. Reference energies stay float64.
        apply: ``dataset`` normalises each sample where it is loaded, in the workers; ``batch`` normalises whole batches
            on the device. Both give the same batches to rounding.
        predict_on: Which part `predict_dataloader` loads: ``train``, ``val``, ``test``, or ``all`` samples of the
            source; for a wrapped data module also its own ``predict``.

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
        source: LabelFiles | WrappedData | SampleFile | None = None,
        reference: AtomRefConfig | LinearReferencesConfig | None = AtomRefConfig(),  # noqa: B008 (frozen)
        rescaling: RescalingConfig | None = RescalingConfig(),  # noqa: B008 (frozen)
        statistics: StatisticsConfig = StatisticsConfig(),  # noqa: B008 (frozen)
        split: SplitConfig = SplitConfig(),  # noqa: B008 (frozen)
        loader: LoaderConfig = LoaderConfig(),  # noqa: B008 (frozen)
        pre_transforms: Sequence[Callable[..., Any]] | None = None,
        energy_scale: float | str = 1.0,
        energy_scale_per_atom: bool = False,
        unseen_elements: Literal["error", "identity"] = "error",
        dtype: Dtype = "auto",
        apply: Literal["dataset", "batch"] = "dataset",
        predict_on: Literal["train", "val", "test", "predict", "all"] = "test",
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_arguments(OFDFTDataModule.__init__, arguments, "data")
        if isinstance(source, WrappedData) and isinstance(source.datamodule, OFDFTDataModule):
            raise ConfigError("data.source.datamodule is an OFDFTDataModule, whose samples are normalised already")
        self.source = EmbeddedLabels() if source is None else source
        self.split = split
        self.loader = loader
        self.pre_transforms = [ProjectGradient()] if pre_transforms is None else list(pre_transforms)
        self.dtype = dtype
        self.apply = apply
        self.predict_on = predict_on
        super().__init__(
            SourceParts(
                self.source,
                split,
                self.pre_transforms,
                default_cache_dir() if statistics.dir is None else Path(statistics.dir).expanduser(),
            ),
            NormalizerSettings(reference, rescaling, energy_scale, energy_scale_per_atom, unseen_elements),
            statistics,
            arguments_to_plain(arguments),
        )
        self._release()

    def _release(self) -> None:
        self._datasets: dict[str, TransformedDataset] = {}
        self._sampler: EpochSampler | None = None
        self._on_device: NormalizeTransform | None = None
        self._batch_dtype = batch_dtype(self.dtype, self.trainer)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and copies settings and normaliser; data sets are built anew, a trainer is not taken along."""
        return {**self.__dict__, "_datasets": {}, "_sampler": None, "_on_device": None, "trainer": None}

    @classmethod
    def wrap(
        cls,
        datamodule: LightningDataModule | None = None,
        *,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        basis_info: str | BasisInfo | None = None,
        energy_field: str = "energy_label",
        forces_field: str | None = None,
        reference: AtomRefConfig | LinearReferencesConfig | None = LinearReferencesConfig(),  # noqa: B008 (frozen)
        rescaling: RescalingConfig | None = None,
        **kwargs: Any,
    ) -> OFDFTDataModule:
        """Normalises somebody else's data: references are fitted on its training split, all splits are normalised.

        Args:
            datamodule: A LightningDataModule; or give the data sets themselves.
            train: Data set to train on.
            val: Data set to validate on.
            test: Data set to test on.
            basis_info: The density basis; None for data without density coefficients.
            energy_field: Field that holds the energy of each sample.
            forces_field: Field that holds forces, scaled with the energy.
            reference: A linear reference by default.
            rescaling: Needs density coefficients.
            **kwargs: For the constructor.

        Example:
            >>> import torch
            >>> from torch_geometric.data import Data
            >>> water = Data(z=torch.tensor([8, 1, 1]), pos=torch.randn(3, 3), y=torch.tensor([-76.4]))
            >>> hydrogen = Data(z=torch.tensor([1, 1]), pos=torch.randn(2, 3), y=torch.tensor([-1.2]))
            >>> datamodule = OFDFTDataModule.wrap(train=[water, hydrogen], energy_field="y")
            >>> datamodule.setup("fit")
            >>> references = datamodule.normalizer.reference.element_references
            >>> [round(float(references[z]), 4) for z in (1, 8)]
            [-0.6, -75.2]
        """
        source = WrappedData(datamodule, train, val, test, basis_info, energy_field, forces_field)
        return cls(source, reference, rescaling, **kwargs)

    # --- what users read ----------------------------------------------------------------------------------------

    @property
    def datasets(self) -> Mapping[str, TransformedDataset]:
        """The normalised data sets of ``train``, ``val`` and ``test``, each built when it is asked for."""
        return LazyParts(dict.fromkeys(self.parts.names(), True), lambda part, _: self._dataset(part))

    def _dataset(self, part: str) -> TransformedDataset:
        """Puts the normaliser on top of a part's data set; in ``batch`` mode, only its checks."""
        normalizer = self.normalizer
        if part not in self._datasets:
            on_batch = self.apply == "batch"
            transform = CheckElements(normalizer) if on_batch else NormalizeTransform(normalizer, self._batch_dtype)
            self._datasets[part] = TransformedDataset(self.parts[part], transform, self.source.keep_in_memory)
        return self._datasets[part]

    @property
    def batch_size(self) -> int:
        """Samples in a batch, on each rank; Lightning's batch size finder sets it."""
        return self.loader.batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self.loader = dataclasses.replace(self.loader, batch_size=batch_size)

    # --- Lightning ----------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Lets a wrapped data module download its data; Lightning calls this in one process."""
        self.source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Prepares for a stage; outside of a Trainer, fits the normaliser for ``fit``.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or None for all; in any order, repeatedly.
        """
        if isinstance(self.source, WrappedData) and self.source.datamodule is not None:
            self.source.datamodule.trainer = self.trainer
        if batch_dtype(self.dtype, self.trainer) != self._batch_dtype:
            self._release()
        if self.trainer is None:
            self.prepare_data()
            if stage in (None, "fit"):
                _ = self.normalizer

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """In ``batch`` mode, normalises a whole batch on the device that it has arrived on."""
        if self.apply != "batch" or not isinstance(batch, Data):
            return batch
        if self._on_device is None:
            moved = copy.deepcopy(self.normalizer).to(molecule_index(batch, "pos").device)
            self._on_device = NormalizeTransform(moved, self._batch_dtype, check_elements=False)
        return self._on_device(batch)

    def teardown(self, stage: str | None = None) -> None:
        """Frees the data sets; the normaliser stays."""
        self.parts.release()
        self._release()

    def train_dataloader(self) -> DataLoader:
        """Loads normalised batches of the training split."""
        dataset = self._dataset("train")
        if self.loader.shuffle and (self._sampler is None or self._sampler.data_source is not dataset):
            self._sampler = EpochSampler(dataset)
        return self._dataloader("train", self._sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loads normalised batches of the validation split; training without one goes on without validation."""
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return [] if fitting and "val" not in self.parts.names() else self._dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Loads normalised batches of the test split."""
        return self._dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        """Loads normalised batches to predict on: those of `predict_on`."""
        return self._dataloader(self.predict_on)

    def _dataloader(self, part: str, sampler: EpochSampler | None = None) -> DataLoader:
        follow = ["coeffs"] if self.basis_info is not None else []
        return DataLoader(
            self._dataset(part), sampler=sampler, collate_fn=JoinSamples(follow), **self.loader.keywords()
        )
