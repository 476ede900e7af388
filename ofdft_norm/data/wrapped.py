"""A source of samples of other packages: their data sets, or data modules, which keep their own loaders."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import field
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ofdft_norm.data.ase import AtomsCheck
from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import Transform, compose
from ofdft_norm.data.loader import wrap_loader
from ofdft_norm.data.sample import get_field
from ofdft_norm.data.sources import SampleDataset, Source
from ofdft_norm.data.split import PARTS, Parts, SplitConfig, split_randomly
from ofdft_norm.errors import ConfigError, SplitError

_STAGES = {"train": ("fit",), "val": ("fit", "validate"), "test": ("test",), "predict": ("predict",)}
# settings that ask for no split: the defaults, and those of `OFDFTDataModule.wrap`
_NO_SPLIT = (SplitConfig(), SplitConfig(1.0, 0.0, 0.0))


class WrappedData(Source):
    """Data of other packages: a LightningDataModule, or data sets (PyG's, or lists) of samples.

    `ase.Atoms` become `Data` with their calculators' results. Samples of other classes with fields, such as fairchem's
    and MACE's `AtomicData`, become `Data`, or keep their class if the data module has a collate function of its own.

    Samples with density coefficients need `basis_info`; samples with energies (and forces) alone take linear references
    and an energy scale.

    Attributes:
        datamodule: A LightningDataModule; None: `train`, `val` and `test` are given.
        train: Data set to train on; without `val` and `test`, `data.split` divides it.
        val: Data set to validate on.
        test: Data set to test on.
        basis_info: JSON file with the density basis, or a `BasisInfo`; None: the samples have no coefficients.
        energy_field: Field of the samples with the energy; every labelled sample has it.
        forces_field: Field with forces, (n_atom, 3), in every labelled sample; None: there are none.
        atomic_numbers_field: Field with atomic numbers; if it is missing, PyG's ``z`` is used.
        keep_in_memory: Whether each normalised sample is kept after it was first read.
        stress_field: Field with the stress, six numbers in ASE's order or 3 x 3, in every labelled sample that is
            periodic in three directions; None: there is none.
    """

    datamodule: Any = None
    train: Any = None
    val: Any = None
    test: Any = None
    basis_info: str | BasisInfo | None = None
    energy_field: str = "energy_label"
    forces_field: str | None = None
    atomic_numbers_field: str = "atomic_numbers"
    keep_in_memory: bool = False
    stress_field: str | None = None
    # stages that the data module was set up for, and whether they have not ended
    _stages: dict[str, bool] = field(init=False, default_factory=dict, repr=False, compare=False)
    # indices of the samples of each molecule, where `data.split` divides `train`
    _molecules: dict[str, list[int]] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.datamodule is None) == (self.train is None):
            raise ConfigError("data.source needs either a datamodule or a train data set")

    # as in ASE's files, or in label files
    length_unit = property(lambda self: "angstrom" if self.basis_info is None else "bohr")

    def basis(self) -> BasisInfo | None:
        """Returns the basis; None for samples without coefficients."""
        return BasisInfo.from_json(self.basis_info) if isinstance(self.basis_info, str) else self.basis_info

    def prepare_data(self) -> None:
        """Lets the wrapped data module download its data."""
        if self.datamodule is not None:
            self.datamodule.prepare_data()

    def setup(self, stage: str | None, trainer: Any) -> None:
        """Sets the wrapped data module up, once for each stage; a second setup would split random splits again."""
        if self.datamodule is None:
            return
        self.datamodule.trainer = trainer
        stage = stage or "fit"
        if not self._stages.get(stage):
            # Lightning's evaluation loops forbid gradients; a setup outside of this package may need them
            with torch.inference_mode(False), torch.enable_grad():
                self.datamodule.setup(stage)
            self._stages[stage] = True

    def teardown(self, stage: str | None) -> None:
        """Ends a stage of the wrapped data module: the next run of this stage sets it up again, as Lightning does."""
        if self.datamodule is not None and stage is not None and self._stages.get(stage):
            self.datamodule.teardown(stage)
            self._stages[stage] = False

    def parts(self, split: SplitConfig) -> Parts:
        """Returns one member for each data set; without `val` and `test`, the molecules of the divided `train`."""
        if self.datamodule is None and self.val is None and self.test is None and split.file is None:
            self._molecules.clear()
            for i in range(len(self.train)):
                name = get_field(self.train[i], "mol_id") if self.basis_info is not None else None
                self._molecules.setdefault(str(i if name is None else name), []).append(i)
            return split_randomly(list(self._molecules), split, "the wrapped data set")
        if split not in _NO_SPLIT:
            raise ConfigError(f"data.split = {split}: wrapped data have a split, and a split file lists label files")
        if self.datamodule is None:
            return {part: [part] for part in PARTS if (data := getattr(self, part)) is not None and len(data)}
        found = {part: [part] for part in _STAGES if _is_defined(self.datamodule, f"{part}_dataloader")}
        if "train" not in found:
            raise SplitError(f"{type(self.datamodule).__name__} has no train_dataloader (config: data.source)")
        return found

    def everything(self) -> list[str]:
        """Raises ConfigError: wrapped data are read part by part."""
        raise ConfigError("data.predict_on = 'all': wrapped data have train, val, test and predict parts; name one")

    def open(self, part: str, members: Sequence[str], transforms: Sequence[Transform]) -> Dataset:
        """Returns a part's data set; samples are validated when they are read."""
        if self.datamodule is not None:
            loader = self._get_loader(part)
            of_subset = getattr(getattr(loader.batch_sampler, "sampler", None), "indices", None)
            dataset, indices = loader.dataset, None if of_subset is None else list(map(int, of_subset))
        elif self._molecules:
            dataset, indices = self.train, sorted(i for member in members for i in self._molecules[member])
        else:
            dataset, indices = getattr(self, part), None
        return SampleDataset(dataset, self._check(part), f"the {part} data", compose(transforms), indices)

    def loader(self, part: str) -> DataLoader | None:
        """Returns the wrapped data module's loader of a part, which validates the samples it reads."""
        if self.datamodule is None:
            return None
        check = partial(self._check(part), where=f"a sample of the {part} data")
        return wrap_loader(self._get_loader(part), check=check)

    def _check(self, part: str) -> AtomsCheck:
        energy = "energy" if self.energy_field == "energy_label" else self.energy_field
        fields = self.energy_field, self.forces_field, self.atomic_numbers_field
        keys = energy, self.forces_field, self.stress_field
        return AtomsCheck(*fields, part != "predict", self.basis(), stress=self.stress_field, keys=keys)

    def is_set_up(self, part: str) -> bool:
        """Returns whether the wrapped data module has a part without a further set-up."""
        if self.datamodule is None or set(self._stages).intersection(_STAGES[part]):
            return True
        if self._stages:  # a module that ignores stages has this part already; another setup would split its data again
            with suppress(Exception):
                return bool(_call_loader_hook(self.datamodule, f"{part}_dataloader"))
        return False

    def _get_loader(self, part: str) -> DataLoader:
        """Returns the wrapped data module's own loader; raises SplitError if it is of another kind than expected."""
        if not self.is_set_up(part):  # outside of a run
            self.setup(_STAGES[part][0], self.datamodule.trainer)
        return _call_loader_hook(self.datamodule, f"{part}_dataloader")


def _is_defined(datamodule: Any, hook: str) -> bool:
    method = getattr(type(datamodule), hook, None)
    # Lightning's base class has all hooks, which raise; methods that `exec` made may have the module None
    return method is not None and not str(method.__module__).startswith(("lightning.", "pytorch_lightning."))


def _call_loader_hook(datamodule: Any, hook: str) -> DataLoader:
    loader = getattr(datamodule, hook)()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    dataset = getattr(loader, "dataset", None)
    one_by_one = isinstance(loader, DataLoader) and loader.batch_sampler is not None
    if not one_by_one or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        what = f"{type(datamodule).__name__}.{hook}() returned a {type(loader).__name__}"
        expected = "expected one DataLoader over a map-style data set of single samples; give the data sets instead"
        raise SplitError(f"{what}, {expected} (config: data.source)")
    return loader
