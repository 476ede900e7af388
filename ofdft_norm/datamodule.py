"""OFDFTDataModule: where Lightning meets the normalisation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader as PyGDataLoader

from ofdft_norm.checkpoint import (
    arguments_from_plain,
    arguments_to_plain,
    check_checkpoint_file,
    describe_labels,
    differing_settings,
    read_from,
    refuse_other_labels,
    statistics_from_state,
    statistics_to_state,
)
from ofdft_norm.config import (
    ASEFiles,
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
from ofdft_norm.data.ase_files import is_atoms
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.epoch_sampler import EpochSampler
from ofdft_norm.data.label_source import TOTAL_ENERGY
from ofdft_norm.data.lazy_datasets import LazyDatasets
from ofdft_norm.data.loader import loader_like
from ofdft_norm.data.of_data import molecule_index
from ofdft_norm.data.raw_datasets import RawDatasets
from ofdft_norm.data.transformed_dataset import JoinSamples, TransformedDataset
from ofdft_norm.data.worker_notes import NamingDataLoader, name_work_of_dead_workers
from ofdft_norm.errors import ConfigError
from ofdft_norm.mixin import normalizer_of_model
from ofdft_norm.normalization.dataset_references import DatasetReferences
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.fit import FittedStatistics, NormalizerSettings, fingerprint_of, fit_normalizer
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.normalizer_state import (
    describe_difference,
    normalizer_from_state,
    normalizer_to_state,
)
from ofdft_norm.normalization.summary import summary_table
from ofdft_norm.normalization.transforms import CheckSamples, NormalizeTransform, batch_dtype
from ofdft_norm.settings import check_arguments
from ofdft_norm.statistics.cache import default_cache_dir
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.transforms.project_gradient import ProjectGradient
from ofdft_norm.units import EnergyUnit
from ofdft_norm.version import package_version

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]


class OFDFTDataModule(LightningDataModule):
    """Loads labels, fits their statistics on the training split, and yields normalised batches.

    After ``setup("fit")``: `normalizer` (with the exact inverses), `statistics`, `basis_info`, `datasets`. The
    normaliser is that of the first of: a checkpoint, the model (if it has one), given statistics (`statistics.path`),
    the cache of fitted statistics, a fit. Under a Trainer nothing is fitted before it is needed, as a checkpoint
    arrives after `setup`; under DDP all ranks must then ask for it, and fit together, each its share of the molecules.
    Only the label files of the splits that are used are opened.

    Args:
        source: The label files, somebody else's data sets (see `wrap`), or samples to predict on.
        reference: Which reference energies to subtract; None: none.
        rescaling: How to rescale coefficients and gradients; None: not at all.
        statistics: How to fit, and where to keep results.
        split: Which molecules train, validate and test.
        loader: Settings of PyG's DataLoader. A wrapped data module's loaders keep theirs; only what differs from the
            defaults here is changed.
        pre_transforms: Applied to each sample in float64 before statistics are taken and before it is normalised; None:
            `ProjectGradient`.
        unit: Unit of energies, of what is read, normalised and returned: ``hartree``, ``eV`` or ``kcal/mol``. Label
            files (hartree) and ASE's files (eV) are converted; other data sets are taken to be in it.
        energy_scale: A number [`unit`], or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether those are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses atoms of elements that no training molecule has; ``identity`` leaves their
            coefficients as they are.
        dtype: Dtype of the batches: ``float32``, ``float64``, ``bfloat16``, ``float16``; ``auto``: that of the
            Trainer's precision. Reference energies stay float64.
        apply: ``dataset`` normalises each sample where it is loaded, in the workers; ``batch`` normalises whole batches
            on the device. Both give the same batches to rounding.
        predict_on: Which split `predict_dataloader` loads: ``train``, ``val``, ``test``, or ``all`` samples of the
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
        source: LabelFiles | WrappedData | ASEFiles | SampleFile | None = None,
        reference: AtomRefConfig | LinearReferencesConfig | None = AtomRefConfig(),  # noqa: B008 (frozen)
        rescaling: RescalingConfig | None = RescalingConfig(),  # noqa: B008 (frozen)
        statistics: StatisticsConfig = StatisticsConfig(),  # noqa: B008 (frozen)
        split: SplitConfig = SplitConfig(),  # noqa: B008 (frozen)
        loader: LoaderConfig = LoaderConfig(),  # noqa: B008 (frozen)
        pre_transforms: Sequence[Callable[..., Any]] | None = None,
        unit: EnergyUnit = "hartree",
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
        super().__init__()
        self.source = EmbeddedLabels() if source is None else source
        self.split = split
        self.loader = loader
        self._loader_changes = loader.changes()
        self._replaced_loaders: list[type] = []
        self.pre_transforms = [ProjectGradient()] if pre_transforms is None else list(pre_transforms)
        self.settings = NormalizerSettings(
            reference, rescaling, energy_scale, energy_scale_per_atom, unseen_elements, unit
        )
        self.statistics_config = statistics
        self.dtype = dtype
        self.apply = apply
        self.predict_on = predict_on
        cache = default_cache_dir() if statistics.dir is None else Path(statistics.dir).expanduser()
        self.raw_datasets = RawDatasets(self.source, split, self.pre_transforms, cache, unit)
        self._arguments = arguments_to_plain(arguments)
        self._basis_info: BasisInfo | None = None
        self._fitted: FittedStatistics | None = None
        self._normalizer: Normalizer | None = None
        self._restored = False
        self._trained_on: Mapping[str, Any] = {}  # what a checkpoint says of its labels
        self._release()

    def _release(self) -> None:
        """Frees what was built with the former normaliser."""
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
        atomic_numbers_field: str = "atomic_numbers",
        unit: EnergyUnit | None = None,
        reference: AtomRefConfig | LinearReferencesConfig | None = LinearReferencesConfig(),  # noqa: B008 (frozen)
        rescaling: RescalingConfig | None = None,
        **kwargs: Any,
    ) -> OFDFTDataModule:
        """Normalises somebody else's data: references are fitted on its training split, all splits are normalised.

        Args:
            datamodule: A LightningDataModule, whose loaders' settings are kept; or give the data sets themselves.
            train: Data set to train on: of PyG's `Data`, or `ase.Atoms` with their calculators' results.
            val: Data set to validate on.
            test: Data set to test on.
            basis_info: The density basis; None for data without density coefficients.
            energy_field: Field that holds the energy; every sample needs it whose `has_energy_label` is not false.
            forces_field: Field that holds forces, scaled with the energy; every such sample needs it.
            atomic_numbers_field: Field that holds atomic numbers; where it is missing, PyG's ``z`` is used.
            unit: What the energies are in; None: eV, ASE's own, for `ase.Atoms`, else hartree.
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
        source = WrappedData(datamodule, train, val, test, basis_info, energy_field, forces_field, atomic_numbers_field)
        if unit is None:
            unit = "eV" if train is not None and len(train) and is_atoms(train[0]) else "hartree"
        return cls(source, reference, rescaling, unit=unit, **kwargs)

    @classmethod
    def from_ase(
        cls,
        paths: str | Sequence[str],
        *,
        energy: str = "energy",
        forces: str | None = "forces",
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        split_key: str | None = None,
        stored_unit: EnergyUnit = "eV",
        unit: EnergyUnit = "eV",
        reference: LinearReferencesConfig | None = LinearReferencesConfig(),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> OFDFTDataModule:
        """Reads extended XYZ files, ASE databases, or any other files that ASE reads; see `ASEFiles`.

        Args:
            paths: Files or glob patterns: all frames, or those to train on.
            energy: Name of the energy among a frame's results or in its `info`.
            forces: Name of the forces among a frame's results or `arrays`; None: there are none.
            val: Files to validate on; None: a part of `paths`.
            test: Files to test on.
            split_key: Entry of `info` that says ``train``, ``val`` or ``test`` for each frame.
            stored_unit: What the files' energies are in.
            unit: See the class.
            reference: A linear reference by default.
            **kwargs: For the constructor.
        """
        source = ASEFiles(paths, val, test, split_key, energy, forces, stored_unit)
        return cls(source, reference, None, unit=unit, **kwargs)

    # --- what users read ----------------------------------------------------------------------------------------

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser; the first read settles it, if `setup` has not."""
        if self._normalizer is None:
            self._take_from_model()
        if self._normalizer is None:
            self._fit()
        return cast(Normalizer, self._normalizer)

    @property
    def unit(self) -> str:
        """Unit of all energies."""
        return self.settings.unit

    @property
    def energy_name(self) -> str | None:
        """Name of the energy that is learned, such as ``e_kin``; None: the total energy."""
        key = getattr(self.source, "energy_key", self._trained_on.get("energy_key"))
        return None if key == TOTAL_ENERGY else key

    @property
    def has_normalizer(self) -> bool:
        """Whether the normaliser is settled: reading it then costs nothing."""
        return self._normalizer is not None

    @property
    def statistics(self) -> DatasetStatistics:
        """Statistics of the training split: a checkpoint's, or read from the cache, or fitted, on first use."""
        if self._fitted is None:
            self._fit()
        return cast(FittedStatistics, self._fitted).statistics

    @property
    def weigher_key(self) -> str:
        """Whose statistics normalise; data without density coefficients have those of one weigher only."""
        return self.statistics_config.weigher_key if self.basis_info is not None else "constant"

    def summary(self) -> str:
        """Returns what the statistics and the normaliser are, as tables; fits what is not fitted yet."""
        statistics, normalizer = self.statistics, self.normalizer
        tables = [summary_table(statistics, self.basis_info, normalizer.rescaling, self.weigher_key)]
        if isinstance(normalizer.reference, LinearReferences | DatasetReferences):
            tables.append(str(normalizer.reference.summary(self.unit)))
        return "\n\n".join(tables)

    @property
    def fingerprint(self) -> str | None:
        """Of what the statistics were fitted on; None where they were given, or it cannot be told."""
        return None if self._fitted is None else self._fitted.fingerprint

    @property
    def basis_info(self) -> BasisInfo | None:
        """The density basis of the labels; None for data without density coefficients."""
        if self._basis_info is None:
            self._basis_info = self.source.basis()
        return self._basis_info

    @property
    def datasets(self) -> Mapping[str, TransformedDataset]:
        """The normalised data sets of ``train``, ``val`` and ``test``, each built when it is asked for."""
        return LazyDatasets(dict.fromkeys(self.raw_datasets.names(), True), lambda name, _: self._dataset(name))

    def _dataset(self, name: str) -> TransformedDataset:
        """Puts the normaliser on top of a raw data set; in ``batch`` mode, only its checks."""
        normalizer = self.normalizer
        if name not in self._datasets:
            on_batch = self.apply == "batch"
            transform = CheckSamples(normalizer) if on_batch else NormalizeTransform(normalizer, self._batch_dtype)
            self._datasets[name] = TransformedDataset(self.raw_datasets[name], transform, self.source.keep_in_memory)
        return self._datasets[name]

    @property
    def batch_size(self) -> int:
        """Samples in a batch, on each rank; Lightning's batch size finder sets it."""
        theirs = None if "batch_size" in self._loader_changes else self.raw_datasets.opened_loader("train")
        return getattr(theirs, "batch_size", None) or self.loader.batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self.loader = dataclasses.replace(self.loader, batch_size=batch_size)
        self._loader_changes["batch_size"] = batch_size

    # --- Lightning ----------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Lets a wrapped data module download its data; Lightning calls this in one process."""
        self.source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Prepares for a stage; outside of a Trainer, fits the normaliser for ``fit``.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or None for all; in any order, repeatedly.

        Raises:
            ConfigError: If there is no such stage.
        """
        if stage not in (None, "fit", "validate", "test", "predict"):
            raise ConfigError(f"setup({stage!r}): expected 'fit', 'validate', 'test', 'predict' or None")
        if self._wrapped_datamodule is not None:
            self._wrapped_datamodule.trainer = self.trainer
        if batch_dtype(self.dtype, self.trainer) != self._batch_dtype:
            self._release()
        if stage in (None, "fit"):
            self._forget_if_labels_changed()
        self._take_from_model()
        if self.trainer is None:
            self.prepare_data()
            if stage in (None, "fit"):
                _ = self.normalizer

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Hands a batch to a wrapped data module's own hook."""
        theirs = self._wrapped_datamodule
        return batch if theirs is None else theirs.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """In ``batch`` mode, normalises a batch on its device; then comes a wrapped data module's own hook."""
        if self.apply == "batch" and isinstance(batch, Data):
            if self._on_device is None:
                moved = copy.deepcopy(self.normalizer).to(molecule_index(batch, "pos").device)
                self._on_device = NormalizeTransform(moved, self._batch_dtype, check_values=False)
            batch = self._on_device(batch)
        theirs = self._wrapped_datamodule
        return batch if theirs is None else theirs.on_after_batch_transfer(batch, dataloader_idx)

    @property
    def _wrapped_datamodule(self) -> LightningDataModule | None:
        return self.source.datamodule if isinstance(self.source, WrappedData) else None

    def teardown(self, stage: str | None = None) -> None:
        """Frees the data sets; the normaliser stays."""
        self.raw_datasets.release()
        self._release()

    def on_exception(self, exception: BaseException) -> None:
        """Adds to an error about a data worker that died what it was at work on."""
        name_work_of_dead_workers(exception)

    def train_dataloader(self) -> DataLoader:
        """Loads normalised batches of the training split."""
        dataset = self._dataset("train")
        if self.loader.shuffle and (self._sampler is None or self._sampler.data_source is not dataset):
            self._sampler = EpochSampler(dataset)
        return self._dataloader("train", self._sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loads normalised batches of the validation split; training without one goes on without validation."""
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return [] if fitting and "val" not in self.raw_datasets.names() else self._dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Loads normalised batches of the test split."""
        return self._dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        """Loads normalised batches to predict on: those of `predict_on`."""
        return self._dataloader(self.predict_on)

    def _dataloader(self, name: str, sampler: EpochSampler | None = None) -> DataLoader:
        self._take_from_model()  # a checkpoint that no data module wrote gives it to the model alone, after `setup`
        follow = ["coeffs"] if self.basis_info is not None else []
        theirs = None if name == "all" else self.raw_datasets.loader(name)
        if theirs is not None:
            return self._dataloader_like(theirs, name, follow)
        return NamingDataLoader(
            self._dataset(name), sampler=sampler, collate_fn=JoinSamples(follow), **self.loader.keywords()
        )

    def _dataloader_like(self, theirs: DataLoader, name: str, follow: Sequence[str]) -> DataLoader:
        """Returns a loader that does as a wrapped data module's does; says once if its class is given up."""
        if type(theirs) not in (DataLoader, PyGDataLoader) and type(theirs) not in self._replaced_loaders:
            self._replaced_loaders.append(type(theirs))
            rank_zero_warn(
                f"the settings of {type(theirs).__name__} are kept, but torch's DataLoader loads in its place: what "
                "the class does besides is lost (give data sets instead of a data module to choose a loader)"
            )
        loader = loader_like(theirs, self._dataset(name), self._loader_changes, follow)
        if self.apply == "batch" and not isinstance(loader.collate_fn, JoinSamples):
            raise ConfigError(
                "data.apply=batch normalises PyG's batches alone, and the wrapped data module collates with "
                f"{theirs.collate_fn!r}: use PyG's collation, or normalise each sample (config: data.apply)"
            )
        return loader

    # --- the normaliser -----------------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Fits, or reads, the statistics; builds the normaliser unless there is one."""
        fitted, normalizer = fit_normalizer(
            lambda: self.raw_datasets["train"],
            self.source,
            self.basis_info,
            self.statistics_config,
            self.settings,
            self.raw_datasets.pre_transforms,
        )
        self._fitted = fitted
        self._normalizer = self._normalizer or normalizer
        if self.statistics_config.path is not None:
            rank_zero_info(f"statistics that are given: {fitted.statistics.path} (data.statistics.path)")
        elif fitted.reused:
            when = fitted.statistics.attributes.get("created_at", "before")
            rank_zero_info(f"statistics of this training split, fitted {when}: {fitted.statistics.path}")
        else:
            rank_zero_info(self.summary())

    def _forget_if_labels_changed(self) -> None:
        """Looks at the training labels again before a second fit; a checkpoint's statistics stay."""
        if self.fingerprint is None or self._restored:
            return
        self.raw_datasets.release()
        if fingerprint_of(self.raw_datasets["train"], self.basis_info, self.statistics_config) != self.fingerprint:
            rank_zero_warn("the training labels have changed since the normaliser was fitted: it is fitted anew")
            self._fitted = self._normalizer = None
            self._release()

    def _take_from_model(self) -> None:
        """Takes the normaliser that the trainer's model has: one loaded from a checkpoint is trained with its own."""
        normalizer = normalizer_of_model(self.trainer)
        if normalizer is not None:
            self._replace(normalizer_to_state(normalizer), "model")

    def _replace(self, state: Mapping[str, Any], owner: str, settings: str = "") -> None:
        """Takes a model's or checkpoint's normaliser; warns where it is not the present or the configured one."""
        if self._normalizer is not None:
            values = describe_difference(normalizer_to_state(self._normalizer), state)
            if not values:
                return
            settings = "; ".join(filter(None, (settings, values)))
        if settings:
            rank_zero_warn(
                f"the {owner}'s normaliser differs from the one that the present configuration and training split "
                f"give, and replaces it (present against {owner}: {settings})"
            )
        self._normalizer = normalizer_from_state(state)
        self._release()

    def _describe_labels(self) -> dict[str, Any]:
        return describe_labels(self.source, self.pre_transforms, self.unit)

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
            "labels": self._describe_labels(),
            "split": self.raw_datasets.state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the checkpoint's normaliser; says where the present configuration would give another.

        Raises:
            ConfigError: If the checkpoint was trained on another target, or with other pre-transforms, or is damaged.
            SplitError: If training is resumed on molecules that it has tested on.
        """
        with read_from(getattr(self.trainer, "ckpt_path", None) or "the checkpoint"):
            self._restore(state_dict)

    def _restore(self, state_dict: Mapping[str, Any]) -> None:
        refuse_other_labels(state_dict, self._describe_labels())
        self._restored = True
        self._trained_on = state_dict.get("labels", {})
        basis_info = state_dict["basis_info"]
        self._basis_info = None if basis_info is None else BasisInfo(**basis_info)
        resuming = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        self.raw_datasets.restore(state_dict["split"], self._basis_info, resuming)
        self._replace(state_dict["normalizer"], "checkpoint", differing_settings(state_dict, self.settings))
        if state_dict["statistics"] is not None:
            statistics = statistics_from_state(state_dict["statistics"])
            self._fitted = FittedStatistics(statistics, state_dict["fingerprint"], True)
        self._release()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = "cpu", weights_only: bool = True, **kwargs: Any
    ) -> OFDFTDataModule:
        """Builds a data module with a checkpoint's settings and normaliser; it fits nothing.

        Args:
            checkpoint_path: A checkpoint that a Trainer with this data module wrote.
            map_location: As in `torch.load`.
            weights_only: As in `torch.load`.
            **kwargs: Constructor's arguments that differ from those of the training run, such as other data.

        Raises:
            ConfigError: If there is no such checkpoint, it is damaged, has no state of this class, or an argument of
                the training run could not be saved and is not given.
        """
        check_checkpoint_file(checkpoint_path)
        with read_from(checkpoint_path):
            checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=weights_only)
            state = next((checkpoint[c.__qualname__] for c in cls.__mro__ if c.__qualname__ in checkpoint), None)
            if state is None:
                raise ConfigError(f"has no state of {cls.__qualname__}: it was not trained with one")
            arguments = arguments_from_plain(state["arguments"], kwargs)
        datamodule = cls(**arguments)
        with read_from(checkpoint_path):
            datamodule.load_state_dict(state)
        return datamodule
