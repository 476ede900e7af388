"""The data module's part of a checkpoint: reading it, finding the normaliser, arguments and labels as plain data.

The normaliser is stored once: in the model's state dict if the model has `NormalizerMixin`, else in the data module's.
"""

import dataclasses
import json
import os
import pickle
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.identity import identify
from ofdft_norm.data.parts import DataParts
from ofdft_norm.errors import ConfigError, OFDFTNormError
from ofdft_norm.normalization.state import FORMAT as NORMALIZER_FORMAT
from ofdft_norm.settings import Settings
from ofdft_norm.statistics.store import DatasetStatistics
from ofdft_norm.statistics.weighers import SampleWeigher
from ofdft_norm.transforms.coordinates import BasisTransform, BasisTransforms
from ofdft_norm.transforms.project_gradient import ProjectGradient

FORMAT, VERSION = "ofdft_norm data module", 2
MODEL_ENTRY = "model_normalizer._extra_state"  # key in a model's state dict, see `ofdft_norm.mixin`

# A checkpoint rebuilds objects of these kinds if this package defines them, and can call nothing else.
_REBUILT = (Settings, SampleWeigher, ProjectGradient, BasisTransform, BasisTransforms)
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, pickle.UnpicklingError)


@contextmanager
def name_errors(checkpoint: Any, malformed: tuple[type[Exception], ...] = _MALFORMED) -> Iterator[None]:
    """Adds the checkpoint's name to errors that its content raises."""
    try:
        yield
    except OFDFTNormError as error:
        if str(checkpoint) in str(error):
            raise
        raise type(error)(f"{checkpoint}: {error}") from error
    except malformed as error:
        raise ConfigError(
            f"{checkpoint}: an entry of the checkpoint is missing or malformed: {type(error).__name__}: {error}"
        ) from error


def check_checkpoint_file(path: Any) -> None:
    """Refuses a checkpoint file that is missing, no zip file, or damaged; addresses and file objects pass."""
    if not isinstance(path, str | os.PathLike) or "://" in os.fspath(path) or os.path.isdir(path):
        return
    if not os.path.exists(path):
        raise ConfigError(f"{os.fspath(path)}: no such checkpoint (config: ckpt_path)")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path}: is truncated or no checkpoint: {error} (config: ckpt_path)") from error
    if damaged is not None:
        raise ConfigError(f"{path}: the checkpoint is damaged: {damaged!r} does not match its checksum")


def read_checkpoint(path: Any, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
    """Reads a whole checkpoint; raises ConfigError with the file's name if it is missing or damaged."""
    check_checkpoint_file(path)
    with name_errors(path):
        return torch.load(path, map_location=map_location, weights_only=weights_only)


def find_data_module_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the state of an `OFDFTDataModule` or a subclass, if any; raises ConfigError for another version."""
    for value in checkpoint.values():
        if isinstance(value, Mapping) and (value.get("format") == FORMAT or {"normalizer", "arguments"} <= set(value)):
            if value.get("version") != VERSION:
                raise ConfigError(
                    f"the checkpoint was written by ofdft-norm {value.get('package_version', 'before 0.3')}, which is "
                    f"not compatible with checkpoints of version {VERSION}: train again, or install that release"
                )
            return value
    return None


def find_normalizer_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the normaliser's state, of the model or of the data module; None if the checkpoint has none."""
    for name, value in checkpoint.get("state_dict", {}).items():
        if name.endswith(MODEL_ENTRY) and isinstance(value, Mapping) and value.get("format") == NORMALIZER_FORMAT:
            return value
    state = find_data_module_state(checkpoint)
    return None if state is None else state["normalizer"]


def to_plain(value: Any) -> Any:
    """Converts a value of the configuration to plain data; raises TypeError for objects of other packages."""
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
        raise TypeError(f"{cls.__module__}.{cls.__qualname__}")
    if isinstance(value, Settings):  # defaults are left out: the path of the embedded labels differs between machines
        fields = [f for f in dataclasses.fields(value) if f.init]  # type: ignore[arg-type]
        content = {f.name: getattr(value, f.name) for f in fields if getattr(value, f.name) != f.default}
    else:
        content = vars(value)
    return {"module": cls.__module__, "class": cls.__qualname__, "content": to_plain(content)}


def from_plain(plain: Any) -> Any:
    """Inverse of `to_plain`; raises ConfigError for a class that this package does not define."""
    if isinstance(plain, list | tuple):
        return type(plain)(from_plain(v) for v in plain)
    if not isinstance(plain, dict):
        return plain
    if "mapping" in plain:
        return {from_plain(k): from_plain(v) for k, v in plain["mapping"]}
    module, name = plain["module"], plain["class"]
    found = getattr(sys.modules.get(module), name, None) if module.startswith("ofdft_norm.") else None
    if not isinstance(found, type) or not issubclass(found, _REBUILT):
        raise ConfigError(f"the checkpoint's configuration has the class {module}.{name}, unknown to this ofdft_norm")
    content = from_plain(plain["content"])
    if issubclass(found, Settings):
        return found(**content)
    rebuilt = object.__new__(found)
    vars(rebuilt).update(content)
    return rebuilt


def arguments_to_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a data module's arguments; arguments that are not plain data are listed by name."""
    saved: dict[str, Any] = {}
    not_saved = []
    for name, value in arguments.items():
        try:
            saved[name] = to_plain(value)
        except TypeError:
            not_saved.append(name)
    return {"saved": saved, "not_saved": not_saved}


def arguments_from_plain(plain: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `arguments_to_plain`; the caller's arguments `given` take precedence."""
    missing = sorted(set(plain["not_saved"]) - set(given))
    if missing:
        raise ConfigError(
            f"the arguments {missing} of the checkpoint's data module hold objects of other packages and are not "
            "saved: pass them to load_from_checkpoint"
        )
    return {**{k: from_plain(v) for k, v in plain["saved"].items() if k not in given}, **given}


def compare_settings(state: Mapping[str, Any], settings: Any) -> str:
    """Describes how the settings of a normaliser differ from those of a checkpoint; empty if they do not."""
    saved = {name: from_plain(value) for name, value in state["arguments"]["saved"].items() if hasattr(settings, name)}
    pairs = ((name, getattr(settings, name), there) for name, there in saved.items())
    return "; ".join(f"{name}: {present} against {there}" for name, present, there in pairs if present != there)


def describe_labels(parts: DataParts) -> dict[str, Any]:
    """Returns the target, its unit and the pre-transforms of a data module, as plain data."""
    fields = {name: getattr(parts.source, name) for name in ("energy_field", "forces_field", "stress_field")}
    return {**parts.labels, **fields, "pre_transforms_identity": list(map(identify, parts.pre_transforms))}


def statistics_to_state(statistics: DatasetStatistics) -> dict[str, Any]:
    """Returns statistics as tensors and JSON, without the basis, which the normaliser has."""
    arrays = {key: torch.from_numpy(array) for key, array in statistics.to_arrays().items()}
    attributes = {key: value for key, value in statistics.attributes.items() if key != "basis_info"}
    return {"arrays": arrays, "attributes": json.dumps(attributes)}


def statistics_from_state(state: Mapping[str, Any], basis_info: BasisInfo | None) -> DatasetStatistics:
    """Inverse of `statistics_to_state`."""
    arrays = {key: tensor.numpy() for key, tensor in state["arrays"].items()}
    basis = None if basis_info is None else basis_info.to_dict()
    return DatasetStatistics.from_arrays(arrays, {**json.loads(state["attributes"]), "basis_info": basis})


def refuse_other_labels(state: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
    """Raises ConfigError if a checkpoint was trained on another target or with other pre-transforms."""
    there = state["labels"]
    # samples to predict on have no energy: their source has no key
    differing = [k for k in labels if there.get(k) != labels[k] and labels[k] is not None and k != "pre_transforms"]
    shown = ["pre_transforms" if name == "pre_transforms_identity" else name for name in differing]
    if differing:
        raise ConfigError(
            "the checkpoint was trained on other labels than this data module reads: "
            + ", ".join(f"{name} = {there.get(name)!r} there, {labels[name]!r} here" for name in shown)
            + " (config: data.source, data.pre_transforms, data.unit)"
        )
