"""What a data module writes into a checkpoint, as plain containers and tensors: loadable with ``weights_only=True``."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ofdft_norm.data.embedded_data import embedded_here
from ofdft_norm.data.label_source import LabelFiles
from ofdft_norm.errors import ConfigError, OFDFTNormError
from ofdft_norm.settings import Settings
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from ofdft_norm.statistics.sample_weighers import SampleWeigher
from ofdft_norm.transforms.basis_transforms import BasisTransform, BasisTransforms
from ofdft_norm.transforms.project_gradient import ProjectGradient

# Objects of these kinds, as far as this package defines them, are rebuilt from a checkpoint. Nothing else is: a
# checkpoint must not be able to call what it names.
_REBUILT = (Settings, SampleWeigher, ProjectGradient, BasisTransform, BasisTransforms)

# where the classes that checkpoints of 0.1.0 name stand now
_MOVED = {
    "ofdft_norm.config.schema": {
        "AtomicReference": ("ofdft_norm.normalization.atom_ref", "AtomRefConfig"),
        "LinearReference": ("ofdft_norm.normalization.element_references", "LinearReferencesConfig"),
        "Loader": ("ofdft_norm.data.loader", "LoaderConfig"),
        "Rescaling": ("ofdft_norm.normalization.dimension_wise_rescaling", "RescalingConfig"),
        "Statistics": ("ofdft_norm.statistics.config", "StatisticsConfig"),
    },
    "ofdft_norm.config.sources": {
        "EmbeddedLabels": ("ofdft_norm.data.label_source", "EmbeddedLabels"),
        "LabelFiles": ("ofdft_norm.data.label_source", "LabelFiles"),
        "Split": ("ofdft_norm.data.split", "SplitConfig"),
        "WrappedData": ("ofdft_norm.data.wrapped_data", "WrappedData"),
    },
    "ofdft_norm.config.sample_file": {"SampleFile": ("ofdft_norm.data.sample_file", "SampleFile")},
    "ofdft_norm.data.transforms": {"ProjectGradient": ("ofdft_norm.transforms.project_gradient", "ProjectGradient")},
}


_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, pickle.UnpicklingError)


def check_checkpoint_file(path: Any) -> None:
    """Refuses a file that is damaged: torch tells of that without the file's name, or not at all.

    Args:
        path: A file; anything else, such as an address, is left to whoever opens it.

    Raises:
        ConfigError: If it is not there, is no whole zip file, as which `torch.save` writes, or a checksum in it does
            not match.
    """
    if not isinstance(path, str | os.PathLike) or "://" in os.fspath(path) or os.path.isdir(path):
        return
    if not os.path.exists(path):
        raise ConfigError(f"{os.fspath(path)}: no such checkpoint (config: ckpt_path)")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"{path}: is no checkpoint, or is truncated or damaged: {error} (config: ckpt_path)"
        ) from error
    if damaged is not None:
        raise ConfigError(f"{path}: the checkpoint is damaged: {damaged!r} does not match its checksum")


@contextmanager
def read_from(checkpoint: Any, malformed: tuple[type[Exception], ...] = _MALFORMED) -> Iterator[None]:
    """Names the checkpoint in errors of what reads its content.

    Args:
        checkpoint: Its path, or another name.
        malformed: What is raised where something in it is missing, or of another type than was written.

    Raises:
        ConfigError: If one of those was raised.
    """
    try:
        yield
    except OFDFTNormError as error:
        if str(checkpoint) in str(error):
            raise
        raise type(error)(f"{checkpoint}: {error}") from error
    except malformed as error:
        raise ConfigError(
            f"{checkpoint}: does not hold what is expected of a checkpoint, or something of it is missing: "
            f"{type(error).__name__}: {error}"
        ) from error


class NotPlainError(Exception):
    """An object cannot be written as plain data."""


def to_plain(value: Any) -> Any:
    """Writes a value of the configuration as plain data.

    Args:
        value: A number, text, container, class, function or setting of the configuration.

    Raises:
        NotPlainError: If it is an object that this package does not define.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {"mapping": [[to_plain(k), to_plain(v)] for k, v in value.items()]}
    if isinstance(value, Sequence):
        plain = [to_plain(v) for v in value]
        return tuple(plain) if isinstance(value, tuple) else plain
    cls = type(value)
    if not isinstance(value, _REBUILT) or not cls.__module__.startswith("ofdft_norm."):
        raise NotPlainError(f"{cls.__module__}.{cls.__qualname__}")
    if isinstance(value, Settings):
        fields = [f.name for f in dataclasses.fields(value) if f.init]  # type: ignore[arg-type]
        content = {name: getattr(value, name) for name in fields}
    else:
        content = vars(value)
    return {"module": cls.__module__, "class": cls.__qualname__, "content": to_plain(content)}


def from_plain(plain: Any) -> Any:
    """Reads what `to_plain` wrote.

    Args:
        plain: Dictionaries, lists, numbers and texts.

    Raises:
        ConfigError: If it names a class that this package does not have, or one that is not to be rebuilt.
    """
    if isinstance(plain, list | tuple):
        return type(plain)(from_plain(v) for v in plain)
    if not isinstance(plain, dict):
        return plain
    if "mapping" in plain:
        return {from_plain(k): from_plain(v) for k, v in plain["mapping"]}
    cls, content = _class_of(plain), from_plain(plain["content"])
    if issubclass(cls, LabelFiles):
        content = {name: embedded_here(value) if isinstance(value, str) else value for name, value in content.items()}
    if issubclass(cls, Settings):
        return cls(**content)
    rebuilt = object.__new__(cls)
    vars(rebuilt).update(content)
    return rebuilt


def _class_of(plain: Mapping[str, Any]) -> type[Any]:
    module, name = plain["module"], plain["class"]
    module, name = _MOVED.get(module, {}).get(name, (module, name))
    found = None
    if module.startswith("ofdft_norm."):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
    if not isinstance(found, type) or not issubclass(found, _REBUILT):
        raise ConfigError(f"the checkpoint's configuration names {module}.{name}, which is no part of this ofdft_norm")
    return found


def arguments_to_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a data module's arguments; those that are not plain data are named instead.

    Args:
        arguments: Arguments by name.
    """
    saved: dict[str, Any] = {}
    not_saved = []
    for name, value in arguments.items():
        try:
            saved[name] = to_plain(value)
        except NotPlainError:
            not_saved.append(name)
    return {"saved": saved, "not_saved": not_saved}


def arguments_from_plain(plain: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a data module's arguments; those given take precedence.

    Args:
        plain: What `arguments_to_plain` wrote.
        given: Arguments of the caller, by name.

    Raises:
        ConfigError: If an argument could not be saved and is not given.
    """
    missing = sorted(set(plain["not_saved"]) - set(given))
    if missing:
        raise ConfigError(
            f"the checkpoint's data module was made with the arguments {missing}, which hold objects of other packages "
            "and are not saved: pass them to load_from_checkpoint"
        )
    return {**{k: from_plain(v) for k, v in plain["saved"].items() if k not in given}, **given}


def differing_settings(state: Mapping[str, Any], settings: Any) -> str:
    """Says which settings of a normaliser a checkpoint has otherwise; empty if none.

    Args:
        state: A data module's state.
        settings: A dataclass of the present settings, which are arguments of the data module.
    """
    saved = state["arguments"]["saved"]
    present = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    there = {name: from_plain(saved[name]) for name in present if name in saved}
    return "; ".join(f"{name}: {present[name]} against {there[name]}" for name in there if there[name] != present[name])


def describe_labels(source: Any, pre_transforms: Sequence[Any], unit: str = "hartree") -> dict[str, Any]:
    """Says what a data module learns, as far as its source tells, in which coordinates and unit; plain data.

    Args:
        source: Source of the samples.
        pre_transforms: Transforms that are applied to raw samples, in order.
        unit: Unit of the energies.
    """
    names = ("energy_key", "gradient_key", "energy_field", "forces_field")
    described: dict[str, Any] = {name: getattr(source, name) for name in names if hasattr(source, name)}
    # functions are known by their name, objects by what they show of themselves
    shown = [getattr(transform, "__qualname__", None) or repr(transform) for transform in pre_transforms]
    return {**described, "unit": unit, "pre_transforms": [re.sub(r" at 0x[0-9a-f]+", "", text) for text in shown]}


def refuse_other_labels(state: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that was trained on another target or with other pre-transforms.

    Args:
        state: A data module's state.
        labels: The present `describe_labels`.

    Raises:
        ConfigError: With both.
    """
    # version 0.1 stored no labels, and knew hartree alone
    there = {"unit": "hartree", **state.get("labels", {})}
    differing = [name for name in labels if name in there and labels[name] != there[name]]
    if differing:
        raise ConfigError(
            "the checkpoint was trained on other labels than this data module reads: "
            + ", ".join(f"{name} = {there[name]!r} there, {labels[name]!r} here" for name in differing)
            + " (config: data.source, data.pre_transforms, data.unit)"
        )


def statistics_to_state(statistics: DatasetStatistics) -> dict[str, Any]:
    """Writes statistics as tensors, and their attributes as JSON.

    Args:
        statistics: Statistics to be saved; they are not changed.
    """
    arrays = {key: torch.from_numpy(array) for key, array in statistics.to_arrays().items()}
    return {"arrays": arrays, "attributes": json.dumps(statistics.attributes)}


def statistics_from_state(state: Mapping[str, Any]) -> DatasetStatistics:
    """Reads what `statistics_to_state` wrote.

    Args:
        state: Tensors by key, and the attributes.
    """
    arrays = {key: tensor.numpy() for key, tensor in state["arrays"].items()}
    return DatasetStatistics.from_arrays(arrays, json.loads(state["attributes"]))
