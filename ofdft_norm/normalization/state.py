"""A normaliser as plain data for a checkpoint: loads with ``weights_only=True``, without a data set."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import find_package_version
from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.base import Float64Module
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.linear_references import DatasetReferences, LinearReferences
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.training_range import TrainingRange

FORMAT = "ofdft_norm normalizer"
VERSION = 2

# classes of a normaliser's parts, with their arguments that are no tensors
_SETTINGS: dict[type[Float64Module], tuple[str, ...]] = {
    AtomRef: ("output_dtype",),
    LinearReferences: ("unseen_elements", "atomic_numbers_field", "output_dtype"),
    DatasetReferences: ("names", "field", "unseen_elements", "atomic_numbers_field"),
    DimensionWiseRescaling: ("s_coeff", "s_grad", "epsilon", "output_dtype"),
    TrainingRange: (),
}
_CLASSES = {cls.__name__: cls for cls in _SETTINGS}
_PARTS = ("reference", "rescaling", "training_range")
# entries of states that are not compared, and levels that differences do not name
_NOT_COMPARED = {"package_version", "basis_info", "coordinates", "_extra_state"}
_LEVELS = ("parts", "settings", "values", "class")
_OWN_SETTINGS = ("energy_field", "forces_field", "coordinates", "unit", "stress_field")


def dump_normalizer(normalizer: Normalizer) -> dict[str, Any]:
    """Returns classes, settings and values of a normaliser as plain containers and CPU tensors."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "package_version": find_package_version(),
        "parts": {name: _part_to_state(getattr(normalizer, name)) for name in _PARTS},
        "settings": {name: getattr(normalizer, name) for name in _OWN_SETTINGS},
        "energy_scale": normalizer.energy_scale.detach().cpu(),
        "seen_elements": None if normalizer.seen_elements is None else normalizer.seen_elements.cpu(),
        "basis_info": None if normalizer.basis_info is None else normalizer.basis_info.to_dict(),
    }


def load_normalizer(state: Mapping[str, Any]) -> Normalizer:
    """Builds the normaliser of `dump_normalizer`, equal to the last bit; refuses other versions and classes."""
    if state.get("format") != FORMAT or state.get("version") != VERSION:
        raise NormalizationError(
            f"the normaliser of this checkpoint was written by ofdft-norm {state.get('package_version', '(unknown)')}, "
            f"which ofdft-norm {find_package_version()} cannot read: use that version, or train again"
        )
    return Normalizer(
        **{name: _part_from_state(part) for name, part in state["parts"].items()},
        **state["settings"],
        energy_scale=state["energy_scale"],
        seen_elements=state["seen_elements"],
        basis_info=None if state["basis_info"] is None else BasisInfo.from_dict(state["basis_info"]),
    )


def _part_to_state(module: Float64Module | None) -> dict[str, Any] | None:
    if module is None:
        return None
    # with a prefix the state dict of a reference has all its entries, see `Reference`
    entries = {key.removeprefix("part."): value for key, value in module.state_dict(prefix="part.").items()}
    values = {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in entries.items()}
    settings = {name: getattr(module, name) for name in _SETTINGS[type(module)]}
    return {"class": type(module).__name__, "settings": settings, "values": values}


def _part_from_state(state: Mapping[str, Any] | None) -> Any:
    if state is None:
        return None
    if state["class"] not in _CLASSES:
        what = f"the normaliser of this checkpoint has a part of class {state['class']!r}"
        raise NormalizationError(f"{what}, expected one of {sorted(_CLASSES)}")
    cls, values = _CLASSES[state["class"]], dict(state["values"])
    tensors = {name: values[name] for name in inspect.signature(cls).parameters if name in values}
    module = cls(**tensors, **state["settings"])
    module.load_state_dict(values)
    return module


def describe_difference(old: Any, new: Any, name: str = "") -> str:
    """Describes the differences of two normaliser states; empty if they are equal to the last bit."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted((old.keys() | new.keys()) - _NOT_COMPARED)
        names = [name if key in _LEVELS else f"{name}.{key}".lstrip(".") for key in keys]
        found = (describe_difference(old.get(k), new.get(k), n) for k, n in zip(keys, names, strict=True))
        return "; ".join(filter(None, found))
    if isinstance(old, Tensor) and isinstance(new, Tensor) and old.shape == new.shape:
        largest = (old.double() - new.double()).abs().nan_to_num(0).max()
        return "" if torch.equal(old, new) else f"{name}: differs by up to {float(largest):.3g}"
    texts = _show(old), _show(new)
    return "" if texts[0] == texts[1] else f"{name}: {texts[0]} against {texts[1]}"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    return repr(value["class"] if isinstance(value, Mapping) else value)
