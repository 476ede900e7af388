"""Somebody else's data: the data sets behind a LightningDataModule, as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ofdft_norm.data.ase_files import ASEDataset, is_atoms
from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.checked_samples import CheckedSamples, SampleFields
from ofdft_norm.data.lazy_datasets import LazyDatasets
from ofdft_norm.data.of_dataset import OFDataset, Transform
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.transformed_dataset import CopyThen, TransformedDataset
from ofdft_norm.errors import ConfigError, NormalizationError, SplitError
from ofdft_norm.settings import Settings

_LOADERS = {
    "train": "train_dataloader",
    "val": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
_STAGES = {"train": "fit", "val": "fit", "test": "test", "predict": "predict"}


class WrappedData(Settings):
    """Data sets of somebody else, normalised as they are: a LightningDataModule's, PyG data sets, or lists.

    Structures of ASE, `ase.Atoms`, become `Data` with what their calculators say. Samples of other classes, such as
    fairchem's `AtomicData`, stay what they are where the data module collates them itself; else they become `Data` with
    the same fields.

    Samples with density coefficients need `basis_info`; samples with energies (and forces) alone take linear references
    and an energy scale.

    Attributes:
        datamodule: A LightningDataModule; None: `train`, `val` and `test` are given.
        train: Data set to train on.
        val: Data set to validate on.
        test: Data set to test on.
        basis_info: JSON file with the density basis, or a `BasisInfo`; None: the samples have no coefficients.
        energy_field: Field of the samples that holds the energy; every labelled sample has it.
        forces_field: Field that holds forces, (n_atom, 3), in every labelled sample; None: there are none.
        atomic_numbers_field: Field that holds atomic numbers; where it is missing, PyG's ``z`` is used.
        keep_in_memory: Keep each normalised sample after it was first read.
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
    config_key = "data.source"

    def __post_init__(self) -> None:
        if (self.datamodule is None) == (self.train is None):
            raise ConfigError("data.source needs either a datamodule or a train data set")

    def basis(self) -> BasisInfo | None:
        """Returns the basis; None for samples without coefficients."""
        if self.basis_info is None or isinstance(self.basis_info, BasisInfo):
            return self.basis_info
        return BasisInfo.from_json(self.basis_info)

    def prepare_data(self) -> None:
        """Lets the wrapped data module download what it needs."""
        if self.datamodule is not None:
            self.datamodule.prepare_data()

    def split_identity(self, split: SplitConfig) -> None:
        """Wrapped data come split.

        Args:
            split: Not used.
        """

    def datasets(
        self,
        split: SplitConfig,
        transform: Transform | None,
        index_dir: Path | None = None,
        files: Mapping[str, Sequence[str]] | None = None,
    ) -> LazyDatasets:
        """Returns the parts as they come, each sample checked as it is read; the other arguments are not used.

        Pre-transforms are applied to samples with density coefficients.

        Args:
            split: Not used.
            transform: Applied to each sample with density coefficients.
            index_dir: Not used.
            files: Not used.
        """
        given = {"train": self.train, "val": self.val, "test": self.test}
        loaders: dict[str, Any] = {}

        def build(part: str, found: Any) -> Any:
            if self.datamodule is not None:
                loaders[part] = loader_of(self.datamodule, part)
            dataset = found if self.datamodule is None else loaders[part].dataset
            if len(dataset) and is_atoms(dataset[0]):
                return self._of_atoms(dataset, part)
            refuse_normalized(dataset, part)
            if not isinstance(dataset, OFDataset):  # which has checked its label files
                fields = SampleFields(
                    self.energy_field, self.forces_field, self.atomic_numbers_field, labelled=part != "predict"
                )
                dataset = CheckedSamples(dataset, part, fields)
            if transform is None:
                return dataset
            return TransformedDataset(dataset, CopyThen(transform))

        parts = given if self.datamodule is None else dict.fromkeys(parts_of(self.datamodule), True)
        return LazyDatasets(parts, build, loaders)

    def _of_atoms(self, dataset: Any, part: str) -> ASEDataset:
        """Returns structures as samples; `energy_label` stands for what their calculators call the energy."""
        energy = "energy" if self.energy_field == "energy_label" else self.energy_field
        fields = (self.energy_field, self.forces_field or "")
        return ASEDataset(dataset, energy, self.forces_field, labelled=part != "predict", fields=fields)

    def everything(self, transform: Transform | None, index_dir: Path | None = None) -> Any:
        """Wrapped data are read part by part.

        Args:
            transform: Not used.
            index_dir: Not used.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("data.predict_on = 'all': wrapped data have train, val, test and predict parts; name one")


def parts_of(datamodule: Any) -> list[str]:
    """Returns for which of ``train``, ``val``, ``test``, ``predict`` a LightningDataModule defines loaders.

    Args:
        datamodule: A LightningDataModule, of either of Lightning's packages.

    Raises:
        SplitError: If it has no training loader.
    """
    loaders = {part: getattr(type(datamodule), name, None) for part, name in _LOADERS.items()}
    # the base class has all of them; its own raise
    foreign = ("lightning.", "pytorch_lightning.")
    defined = [part for part, f in loaders.items() if f is not None and not f.__module__.startswith(foreign)]
    if "train" not in defined:
        raise SplitError(f"{type(datamodule).__name__} has no train_dataloader: nothing to fit (config: data.source)")
    return defined


def loader_of(datamodule: Any, part: str) -> Any:
    """Sets a LightningDataModule up for a part and returns the part's loader.

    Args:
        datamodule: Any LightningDataModule with map-style data sets.
        part: ``train``, ``val``, ``test`` or ``predict``.

    Raises:
        SplitError: If it is no single loader over a map-style data set of single samples.
    """
    datamodule.setup(_STAGES[part])
    loader = getattr(datamodule, _LOADERS[part])()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    dataset = getattr(loader, "dataset", None)
    one_by_one = isinstance(loader, DataLoader) and loader.batch_sampler is not None
    if not one_by_one or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise SplitError(
            f"{type(datamodule).__name__}.{_LOADERS[part]}() returned a {type(loader).__name__}, expected one "
            "DataLoader over a map-style data set of single samples; pass the data sets themselves as the "
            "arguments train, val and test instead of it (config: data.source)"
        )
    return loader


def refuse_normalized(dataset: Any, part: str) -> None:
    """Refuses a data set whose samples are normalised already.

    Args:
        dataset: Data set with an index.
        part: Name of its part, for the message.

    Raises:
        NormalizationError: If the first sample is.
    """
    if len(dataset) and "normalized" in dataset[0]:
        raise NormalizationError(
            f"the samples of the wrapped {part} data are normalised already; fitting and normalising them again would "
            "shift their labels silently: wrap the raw data sets (config: data.source)"
        )
