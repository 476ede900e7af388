"""OFDFTDataModule: loads labels, fits their normalisation in `setup`, yields normalised batches."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from pydantic import Field
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from ofdft_norm.checkpoint import (
    FORMAT,
    VERSION,
    arguments_from_plain,
    arguments_to_plain,
    compare_settings,
    describe_labels,
    find_data_module_state,
    find_normalizer_state,
    name_errors,
    read_checkpoint,
    refuse_other_labels,
    statistics_from_state,
    statistics_to_state,
)
from ofdft_norm.config import (
    ASEFiles,
    AtomRefConfig,
    EmbeddedLabels,
    LinearReferencesConfig,
    LoaderConfig,
    RescalingConfig,
    SplitConfig,
    StatisticsConfig,
    WrappedData,
)
from ofdft_norm.data.ase import is_atoms
from ofdft_norm.data.basis import BasisInfo, convert_basis
from ofdft_norm.data.files import find_package_version
from ofdft_norm.data.loader import EpochSampler, wrap_loader
from ofdft_norm.data.parts import DataParts
from ofdft_norm.data.sample import collate_joined
from ofdft_norm.data.sources import Source
from ofdft_norm.errors import ConfigError
from ofdft_norm.mixin import copy_normalizer, get_model_normalizer
from ofdft_norm.normalization.build_normalizer import NormalizerSettings, build_normalizer
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch, NormalizedDataset, choose_batch_dtype
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.state import describe_difference, dump_normalizer, load_normalizer
from ofdft_norm.normalization.summary import describe_normalizer, summarize
from ofdft_norm.settings import check_arguments
from ofdft_norm.statistics.cache import describe_fit, load_or_fit
from ofdft_norm.statistics.store import DatasetStatistics
from ofdft_norm.transforms import make_default_transforms
from ofdft_norm.units import EnergyUnit

PartName = Annotated[str, Field(pattern=r"^(train|val|test(_\w+)?|predict|all)$")]
Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]


@dataclass
class FittedNormalizer:
    """A normaliser, with its statistics and their fingerprint if they are known."""

    normalizer: Normalizer
    statistics: DatasetStatistics | None = None
    fingerprint: str | None = None


class OFDFTDataModule(LightningDataModule):
    """Loads labels, fits their statistics on the training split, and yields normalised batches.

    After ``setup("fit")``: `normalizer` (with the exact inverses), `statistics`, `basis_info`, `datasets`. The
    normaliser comes from the first source that exists: the trainer's model, the checkpoint, given statistics
    (`statistics.path`), cached statistics, a fit. Under a Trainer, the fit starts when its result is needed, because a
    checkpoint arrives after `setup`. Under DDP, each rank fits its share of the molecules. The normaliser of a model or
    checkpoint is used for one run; the next run starts from this module's configuration.

    Batches pass the hooks in this order: this module's (``apply="batch"``), a wrapped data module's, the model's own
    `on_after_batch_transfer`.

    Args:
        source: The labels: label files, packed labels, files of ASE, other data sets (see `wrap`), samples to predict.
        reference: Which reference energies to subtract; None: none.
        rescaling: How to rescale coefficients and gradients; None: not at all.
        statistics: How to fit, and where to keep results.
        split: Which molecules train, validate and test.
        loader: Settings of the loaders. A wrapped data module keeps its own loaders.
        pre_transforms: Applied to each sample in float64 before statistics are taken and before it is normalised; None:
            local frames, natural reparametrisation and the projection of gradients, as in both papers.
        post_transforms: PyG transforms applied to normalised samples.
        unit: Unit of all energies: ``hartree``, ``eV`` or ``kcal/mol``. Label files (hartree) and ASE's files (eV) are
            converted; other data sets must have this unit.
        energy_scale: A number [`unit`], or ``std``, ``rmsd``, ``mae`` of the referenced energies.
        energy_scale_per_atom: Whether ``std``, ``rmsd``, ``mae`` are divided by the mean number of atoms of a sample.
        unseen_elements: ``error`` refuses elements that no training molecule has; ``identity`` leaves their
            coefficients as they are.
        dtype: Dtype of the batches; ``auto``: that of the Trainer's precision. Reference energies stay float64.
        apply: ``dataset`` normalises each batch in the process that loads it; ``batch`` normalises on the device. Both
            give the same batches to rounding.
        predict_on: Part that `predict_dataloader` loads: ``train``, ``val``, ``test``, a part ``test_<name>`` of the
            split file, or ``all`` samples of the source; for a wrapped data module also its own ``predict``.

    Raises:
        ConfigError: If a setting is unknown.

    Examples:
        >>> from ofdft_norm import OFDFTDataModule
        >>> datamodule = OFDFTDataModule()  # the embedded labels, atomic reference, dimension-wise rescaling
        >>> datamodule.basis_info.atomic_numbers.tolist()
        [1, 6, 7, 8, 9]
    """

    def __init__(
        self,
        source: Source | None = None,
        reference: AtomRefConfig | LinearReferencesConfig | None = AtomRefConfig(),  # noqa: B008 (frozen)
        rescaling: RescalingConfig | None = RescalingConfig(),  # noqa: B008 (frozen)
        statistics: StatisticsConfig = StatisticsConfig(),  # noqa: B008 (frozen)
        split: SplitConfig = SplitConfig(),  # noqa: B008 (frozen)
        loader: LoaderConfig = LoaderConfig(),  # noqa: B008 (frozen)
        pre_transforms: Sequence[Callable[..., Any]] | None = None,
        post_transforms: Sequence[Callable[..., Any]] = (),
        unit: EnergyUnit = "hartree",
        energy_scale: float | str = 1.0,
        energy_scale_per_atom: bool = False,
        unseen_elements: Literal["error", "identity"] = "error",
        dtype: Dtype = "auto",
        apply: Literal["dataset", "batch"] = "dataset",
        predict_on: PartName = "test",
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_arguments(OFDFTDataModule.__init__, arguments, "data")
        super().__init__()
        self.source = EmbeddedLabels() if source is None else source
        self._wrapped = self.source.datamodule if isinstance(self.source, WrappedData) else None
        if isinstance(self._wrapped, OFDFTDataModule):
            raise ConfigError("data.source.datamodule is an OFDFTDataModule: its samples are normalised already")
        if self._wrapped is not None and loader != LoaderConfig(follow_batch=loader.follow_batch):
            raise ConfigError("data.loader: a wrapped data module keeps its own loaders; configure them there")
        self.loader = loader
        self.pre_transforms = make_default_transforms() if pre_transforms is None else list(pre_transforms)
        self.post_transforms = list(post_transforms)
        self.settings = NormalizerSettings(
            reference, rescaling, energy_scale, energy_scale_per_atom, unseen_elements, unit
        )
        self._scale_unit = f"{unit} per atom" if energy_scale_per_atom and isinstance(energy_scale, str) else unit
        self.statistics_config = statistics
        self.dtype = dtype
        self.apply = apply
        self.predict_on = predict_on
        leave_out_atoms = isinstance(reference, LinearReferencesConfig) and reference.isolated_atoms is not None
        self.parts = DataParts(self.source, split, self.pre_transforms, unit, leave_out_atoms)
        self._arguments = arguments_to_plain(arguments)
        self._own: FittedNormalizer | None = None  # from this module's configuration; stays between runs
        self._of_run: FittedNormalizer | None = None  # from this run's model or checkpoint; takes precedence
        self._of_model: Normalizer | None = None  # the model's normaliser, of which `_of_run` is a copy
        self._basis_info: BasisInfo | None = None
        self._trained_on: Mapping[str, Any] = {}  # the labels of a checkpoint, see `describe_labels`
        self._release()

    def _release(self) -> None:
        """Frees the data sets that were built with a former normaliser."""
        self._datasets: dict[str, NormalizedDataset] = {}
        self._sampler: EpochSampler | None = None
        self._on_device: NormalizeBatch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles settings and normaliser without data sets and trainer."""
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
        stress_field: str | None = None,
        atomic_numbers_field: str = "atomic_numbers",
        unit: EnergyUnit | None = None,
        reference: AtomRefConfig | LinearReferencesConfig | None = LinearReferencesConfig(),  # noqa: B008 (frozen)
        rescaling: RescalingConfig | None = None,
        **kwargs: Any,
    ) -> OFDFTDataModule:
        """Normalises any other data: references are fitted on its training split, all splits are normalised.

        Args:
            datamodule: A LightningDataModule, which keeps its loaders; or give the data sets themselves.
            train: Data set to train on: of PyG's `Data`, or `ase.Atoms` with their calculators' results.
            val: Data set to validate on.
            test: Data set to test on. Without `val` and `test`, the argument `split` divides `train`, if it is given.
            basis_info: The density basis; None for data without density coefficients.
            energy_field: Field of the energy; every sample needs it, unless its `has_energy_label` is false.
            forces_field: Field of the forces, which are scaled with the energy.
            stress_field: Field of the stress, scaled likewise; see `WrappedData`.
            atomic_numbers_field: Field of the atomic numbers; PyG's ``z`` where it is missing.
            unit: Unit of the energies; None: eV, ASE's own, for `ase.Atoms`, else hartree.
            reference: A linear reference by default.
            rescaling: Needs density coefficients.
            **kwargs: For the constructor. `pre_transforms` are none by default: the data stay in their coordinates.

        Examples:
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
        fields = energy_field, forces_field, atomic_numbers_field
        basis_info = basis_info if isinstance(basis_info, str | None) else convert_basis(basis_info)
        source = WrappedData(datamodule, train, val, test, basis_info, *fields, stress_field=stress_field)
        kwargs.setdefault("pre_transforms", [])
        if datamodule is None and val is None and test is None:
            kwargs.setdefault("split", SplitConfig(train=1.0, val=0.0, test=0.0))
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
        stress: str | None = None,
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
            paths: Files or glob patterns: all frames, or the training frames.
            energy: Name of the energy among a frame's results or in its `info`.
            forces: Name of the forces among a frame's results or `arrays`; None: there are none.
            stress: Name of the stress among a frame's results or in its `info`; None: there is none.
            val: Files to validate on; None: a part of `paths`.
            test: Files to test on.
            split_key: Entry of `info` with ``train``, ``val`` or ``test`` for each frame.
            stored_unit: Unit of the energies in the files.
            unit: See the class.
            reference: A linear reference by default.
            **kwargs: For the constructor.
        """
        source = ASEFiles(paths, val, test, split_key, energy, forces, unit=stored_unit, stress=stress)
        return cls(source, reference, None, unit=unit, **kwargs)

    # --- what users read ----------------------------------------------------------------------------------------

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser; without a model, a checkpoint or given statistics, it is fitted at the first use."""
        return self._find_or_fit().normalizer

    @property
    def has_normalizer(self) -> bool:
        """Whether the normaliser is known, so that reading it starts no fit."""
        return self._find_fitted() is not None

    @property
    def statistics(self) -> DatasetStatistics:
        """Statistics of the training split: a checkpoint's, or given, cached, or fitted at the first use."""
        fitted = self._find_or_fit()
        if fitted.statistics is None:  # a model has a normaliser without statistics
            fitted = self._own or self._fit()
        return cast(DatasetStatistics, fitted.statistics)

    @property
    def fingerprint(self) -> str | None:
        """Identifies the data of the statistics; None for given statistics and data without identity."""
        fitted = self._find_fitted()
        return None if fitted is None else fitted.fingerprint

    @property
    def basis_info(self) -> BasisInfo | None:
        """The density basis of the labels; None for data without density coefficients."""
        if self._basis_info is None:
            self._basis_info = self.source.basis()
        return self._basis_info

    @property
    def unit(self) -> str:
        """Unit of all energies."""
        return self.settings.unit

    @property
    def energy_name(self) -> str | None:
        """Name of the learned energy, such as ``e_kin``; None: the total energy."""
        key = self.source.energy_key or self._trained_on.get("energy_key")
        return None if key == "e_tot" or self.source.energy_is_total else key

    @property
    def weigher_key(self) -> str:
        """Key of the statistics that the normaliser uses; data without coefficients have one weigher."""
        return self.statistics_config.weigher_key if self.basis_info is not None else "constant"

    def summary(self) -> str:
        """Returns tables of the statistics and the normaliser; fits what is not fitted yet."""
        return summarize(self.statistics, self.basis_info, self.normalizer, self.weigher_key, self._scale_unit)

    @property
    def datasets(self) -> Mapping[str, NormalizedDataset]:
        """The normalised data sets of the parts that have samples."""
        return {name: self._dataset(name) for name in self.parts.names()}

    @property
    def batch_size(self) -> int:
        """Samples in a batch, on each rank; Lightning's batch size finder sets it."""
        loader = self.parts.loader("train")
        return getattr(loader, "batch_size", None) or self.loader.batch_size

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

        Raises:
            ConfigError: If there is no such stage.
        """
        if stage not in (None, "fit", "validate", "test", "predict"):
            raise ConfigError(f"setup({stage!r}): expected 'fit', 'validate', 'test', 'predict' or None")
        if self.trainer is None:
            self.prepare_data()
        if self._of_run is not None:  # a new run starts from this module's own configuration
            self._release()
        self._of_run = self._of_model = None
        self.source.setup(stage, self.trainer)
        if stage in (None, "fit"):
            if self._own is not None and self.statistics_config.path is None:
                self._drop_outdated_fit(self._own)
            if self.trainer is None:
                self._find_or_fit()

    def teardown(self, stage: str | None = None) -> None:
        """Frees the data sets; the normaliser stays, and a model that was trained keeps it."""
        if stage == "fit" and self.trainer is not None:
            copy_normalizer(self.trainer.lightning_module)
        self.source.teardown(stage)
        self.parts.release()
        self._release()

    def train_dataloader(self) -> DataLoader:
        """Loads normalised batches of the training split; refuses held-out elements that this split lacks."""
        self._refuse_unseen_elements(self.normalizer)
        if self.loader.shuffle and self._sampler is None and self._wrapped is None:
            self._sampler = EpochSampler(self._dataset("train"))
        return self.part_dataloader("train", self._sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Loads normalised batches of the validation split; training without this split has no validation."""
        return [] if self._is_fitting() and "val" not in self.parts.names() else self.part_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Loads normalised batches of the test split."""
        return self.part_dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        """Loads normalised batches of the part `predict_on`."""
        return self.part_dataloader(self.predict_on)

    def part_dataloader(self, part: str, sampler: EpochSampler | None = None) -> DataLoader:
        """Loads normalised batches of any part: those of `parts.names()`, or ``all`` samples; in order by default."""
        normalizer = self.normalizer  # first: all ranks fit together
        loader = self.parts.loader(part)
        if loader is None:
            return DataLoader(self._dataset(part), sampler=sampler, collate_fn=collate_joined, **self.loader.keywords())
        if self.apply == "dataset":
            return wrap_loader(loader, self._make_transform(normalizer))
        if not loader.collate_fn.joins:  # type: ignore[union-attr]
            raise ConfigError(
                "data.apply=batch normalises batches of PyG, and the wrapped data module has a collate function of its "
                "own: choose data.apply=dataset, which normalises its samples (config: data.apply)"
            )
        return loader

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Calls the hooks of a wrapped data module and of the model."""
        return self._call_hooks("on_before_batch_transfer", batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalises a batch on its device if ``apply="batch"``; then calls the other modules' hooks."""
        if self.apply == "batch" and isinstance(batch, Data):
            if self._on_device is None:
                moved = copy.deepcopy(self.normalizer).to(batch.ptr.device)
                self._on_device = self._make_transform(moved)
            batch = self._on_device(batch)
        return self._call_hooks("on_after_batch_transfer", batch, dataloader_idx)

    def _call_hooks(self, name: str, batch: Any, dataloader_idx: int) -> Any:
        """Calls a hook of the wrapped data module and of the model: Lightning calls only the data module's."""
        for owner in (self._wrapped, None if self.trainer is None else self.trainer.lightning_module):
            if owner is not None and is_overridden(name, owner):
                batch = getattr(owner, name)(batch, dataloader_idx)
        return batch

    def on_exception(self, exception: BaseException) -> None:
        """Explains a model's missing `self.normalizer`, and float64 results of layers in a float32 network."""
        message = str(exception)
        if isinstance(exception, AttributeError) and "has no attribute 'normalizer'" in message:
            exception.add_note("list ofdft_norm.NormalizerMixin before LightningModule among the model's bases")
        modules = [] if self.trainer is None else self.trainer.lightning_module.modules()
        layers = {type(m).__name__ for m in modules if getattr(m, "output_dtype", None) == "float64"}
        if isinstance(exception, RuntimeError) and "dtype" in message and layers:
            exception.add_note(f"{sorted(layers)} return float64: output_dtype='input' gives the dtype of the batch")

    def _is_fitting(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    # --- data sets and loaders ----------------------------------------------------------------------------------

    def _dataset(self, part: str) -> NormalizedDataset:
        normalizer = self.normalizer
        if part not in self._datasets:
            transform = self._make_transform(normalizer, only_check=self.apply == "batch")
            self._datasets[part] = NormalizedDataset(self.parts[part], transform, self.source.keep_in_memory)
        return self._datasets[part]

    def _make_transform(self, normalizer: Normalizer, only_check: bool = False) -> NormalizeBatch:
        dtype = choose_batch_dtype(self.dtype, None if self.trainer is None else str(self.trainer.precision))
        return NormalizeBatch(normalizer, dtype, self.post_transforms, self.loader.follow_batch, only_check)

    # --- the normaliser -----------------------------------------------------------------------------------------

    def _find_fitted(self) -> FittedNormalizer | None:
        """Returns the normaliser of this run's model or checkpoint, else this module's own; None: not known yet."""
        of_model = None if self.trainer is None else get_model_normalizer(self.trainer)
        if of_model is not None and of_model is not self._of_model:
            self._of_model = of_model
            # a copy: the model moves its own to its device
            self._use_for_run(FittedNormalizer(load_normalizer(dump_normalizer(of_model))), "model")
        return self._of_run or self._own

    def _find_or_fit(self) -> FittedNormalizer:
        found = self._find_fitted()
        if found is None and self.trainer is not None and self.trainer.ckpt_path is not None:
            found = self._read_from_checkpoint(self.trainer.ckpt_path)
        return found or self._fit()

    def _read_from_checkpoint(self, path: Any) -> FittedNormalizer | None:
        """Reads the normaliser from the run's checkpoint if Lightning has not passed it to `load_state_dict`.

        Lightning finds a data module's state by the class name, so it ignores the state of a subclass or base class.
        """
        state = find_normalizer_state(read_checkpoint(path))
        if state is not None:
            self._use_for_run(FittedNormalizer(load_normalizer(state)), "checkpoint")
            return self._of_run or self._own
        if self._is_fitting():
            return None
        raise ConfigError(
            f"{path}: the checkpoint has no normaliser, and statistics of the labels of this run would differ from "
            "those of training: use a checkpoint that was trained with an OFDFTDataModule (config: ckpt_path)"
        )

    def _fit(self) -> FittedNormalizer:
        """Fits, or reads, this module's own statistics, and builds the normaliser."""
        source, train = self.source, partial(self.parts.__getitem__, "train")
        self.settings.check(self.basis_info)
        fields = (source.energy_field, source.atomic_numbers_field)
        fitted = load_or_fit(train, self.basis_info, self.statistics_config, self.parts.labels, fields)
        isolated = self.parts.isolated_energies() if self.parts.leave_out_atoms else None
        normalizer = build_normalizer(
            fitted.statistics, self.basis_info, self.settings, source, self.weigher_key, train, isolated
        )
        self._own = FittedNormalizer(normalizer, fitted.statistics, fitted.fingerprint)
        rank_zero_info(f"statistics {'reused' if fitted.reused else 'fitted'}: {fitted.statistics.path or 'in memory'}")
        equivariant = self.settings.rescaling is not None and self.settings.rescaling.equivariant
        described = fitted.statistics, self.weigher_key, self._scale_unit, equivariant
        rank_zero_info(describe_normalizer(normalizer, *described))
        rank_zero_info("tables: datamodule.summary(), or the command ofdft-norm fit")
        return self._own

    def _refuse_unseen_elements(self, normalizer: Normalizer) -> None:
        """Refuses held-out molecules with elements that the training split lacks."""
        for part in self.parts.names():
            if part == "train" or not self.source.is_set_up(part):
                continue
            if numbers := self.parts[part].elements():
                normalizer.check_numbers(torch.tensor(sorted(numbers)), f"the {part} split")

    def _drop_outdated_fit(self, fitted: FittedNormalizer) -> None:
        """Compares the training labels with those of an earlier fit; data without fingerprint are fitted anew."""
        self.parts.release()
        if fitted.fingerprint is None or self._compute_fingerprint() != fitted.fingerprint:
            if fitted.fingerprint is not None:
                rank_zero_warn("the training labels have changed since the normaliser was fitted: it is fitted anew")
            self._own = None
            self._release()

    def _compute_fingerprint(self) -> str | None:
        fields = (self.source.energy_field, self.source.atomic_numbers_field)
        return describe_fit(self.parts["train"], self.basis_info, self.statistics_config, fields)[1]

    def _use_for_run(self, new: FittedNormalizer, owner: str, difference: str = "") -> None:
        """Uses a model's or checkpoint's normaliser in this run; warns if it differs from the configured one."""
        difference = difference or self.settings.describe_difference(new.normalizer)
        present = self._of_run or self._own
        if present is not None:
            before, after = dump_normalizer(present.normalizer), dump_normalizer(new.normalizer)
            difference = describe_difference(before, after)
            if not difference:
                return
        if difference:
            rank_zero_warn(
                f"the {owner}'s normaliser differs from the configured one, and is used instead of it in this run "
                f"(configured against {owner}: {difference})"
            )
        self._of_run = new
        self._release()

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns statistics, settings, split, and the normaliser if no model holds it, as plain data."""
        fitted = self._find_fitted()
        if fitted is None:
            return {}
        statistics = fitted.statistics
        slot = getattr(getattr(self.trainer, "lightning_module", None), "model_normalizer", None)
        return {
            "format": FORMAT,
            "version": VERSION,
            "package_version": find_package_version(),
            "fingerprint": fitted.fingerprint,
            "normalizer": dump_normalizer(fitted.normalizer) if slot is None else None,
            "statistics": None if statistics is None else statistics_to_state(statistics),
            "arguments": self._arguments,
            "labels": describe_labels(self.parts),
            "split": self.parts.state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Uses the checkpoint's normaliser in this run; warns if the configuration would give another.

        Raises:
            ConfigError: If the checkpoint was trained on another target, or with other pre-transforms, or is damaged.
            SplitError: If training is resumed on molecules that the run has tested on.
        """
        checkpoint = getattr(self.trainer, "ckpt_path", None) or "the checkpoint"
        with name_errors(checkpoint):
            find_data_module_state({"state": state_dict})  # refuses other versions
            of_model = get_model_normalizer(self.trainer)
            if state_dict["normalizer"] is None and of_model is None:
                raise ConfigError("the model's entry with the normaliser is missing from the checkpoint")
            state = state_dict["normalizer"] or dump_normalizer(cast(Normalizer, of_model))
            fitted = self._restore(state_dict, state)
            if self.trainer is None:
                self._own, self._of_run = fitted, None
            else:
                self._of_run = fitted

    def _restore(self, state: Mapping[str, Any], normalizer_state: Mapping[str, Any]) -> FittedNormalizer:
        refuse_other_labels(state, describe_labels(self.parts))
        normalizer = load_normalizer(normalizer_state)
        self._trained_on = state["labels"]
        self._basis_info = normalizer.basis_info
        resuming = self._is_fitting()
        self.parts.restore(state["split"], normalizer.basis_info, resuming)
        statistics = None
        if state["statistics"] is not None:
            statistics = statistics_from_state(state["statistics"], normalizer.basis_info)
        fitted = FittedNormalizer(normalizer, statistics, state["fingerprint"])
        self._of_model = get_model_normalizer(self.trainer)
        self._use_for_run(fitted, "checkpoint", compare_settings(state, self.settings))
        if resuming and state["fingerprint"] not in (None, self._compute_fingerprint()):
            rank_zero_warn(
                "the training labels have changed since the checkpoint was written: training continues with the "
                "checkpoint's statistics (config: data.source, data.split, data.statistics)"
            )
        return fitted

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = "cpu", weights_only: bool = True, **kwargs: Any
    ) -> OFDFTDataModule:
        """Builds a data module with a checkpoint's settings and normaliser; it fits nothing.

        Args:
            checkpoint_path: A checkpoint of a training run with this data module, or its content.
            map_location: As in `torch.load`.
            weights_only: As in `torch.load`.
            **kwargs: Constructor's arguments that differ from those of the training run, such as other data.

        Raises:
            ConfigError: If there is no such checkpoint, it is damaged, has no state of a data module, or an argument of
                the training run could not be saved and is not given.
        """
        loaded = isinstance(checkpoint_path, Mapping)
        name = "the checkpoint" if loaded else checkpoint_path
        checkpoint = checkpoint_path if loaded else read_checkpoint(checkpoint_path, map_location, weights_only)
        with name_errors(name):
            state, normalizer_state = find_data_module_state(checkpoint), find_normalizer_state(checkpoint)
            if state is None or normalizer_state is None:
                raise ConfigError(f"has no state of {cls.__qualname__}: it was not trained with one")
            arguments = arguments_from_plain(state["arguments"], kwargs)
        datamodule = cls(**arguments)
        with name_errors(name):
            datamodule._own = datamodule._restore(state, normalizer_state)
            datamodule._of_run = None
        return datamodule
