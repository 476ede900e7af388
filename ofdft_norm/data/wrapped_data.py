"""Somebody else's data: the data sets behind a LightningDataModule, as they are."""

from __future__ import annotations

from typing import Any

from ofdft_norm.errors import NormalizationError, SplitError

_LOADERS = {
    "train": "train_dataloader",
    "val": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
_STAGES = {"train": "fit", "val": "fit", "test": "test", "predict": "predict"}


def parts_of(datamodule: Any) -> list[str]:
    """Returns for which of ``train``, ``val``, ``test``, ``predict`` a LightningDataModule defines loaders."""
    loaders = {part: getattr(type(datamodule), name, None) for part, name in _LOADERS.items()}
    # the base class has all of them; its own raise
    foreign = ("lightning.", "pytorch_lightning.")
    defined = [part for part, f in loaders.items() if f is not None and not f.__module__.startswith(foreign)]
    if "train" not in defined:
        raise SplitError(f"{type(datamodule).__name__} has no train_dataloader: nothing to fit (config: data.source)")
    return defined


def dataset_of(datamodule: Any, part: str) -> Any:
    """Sets a LightningDataModule up for a part and returns the data set that the part's loader reads.

    Args:
        datamodule: Any LightningDataModule with map-style data sets; its own batching is not used.
        part: ``train``, ``val``, ``test`` or ``predict``.

    Raises:
        SplitError: If the loader reads no single map-style data set.
    """
    datamodule.setup(_STAGES[part])
    loader = getattr(datamodule, _LOADERS[part])()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise SplitError(
            f"{type(datamodule).__name__}.{_LOADERS[part]}() returned a {type(loader).__name__}, expected one loader "
            "over a map-style data set of single samples; pass the data sets themselves (config: data.source.train, "
            "data.source.val, data.source.test)"
        )
    return dataset


def refuse_normalized(dataset: Any, part: str) -> None:
    """Refuses a data set whose samples are normalised already.

    Raises:
        NormalizationError: If the first sample is.
    """
    if len(dataset) and "normalized" in dataset[0]:
        raise NormalizationError(
            f"the samples of the wrapped {part} data are normalised already; fitting and normalising them again would "
            "shift their labels silently: wrap the raw data sets (config: data.source)"
        )
