"""A normaliser as plain data: what a checkpoint carries, loadable with ``weights_only=True`` and without a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.dataset_references import DatasetReferences
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.float64_module import Float64Module
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.training_range import TrainingRange
from ofdft_norm.version import package_version

# Raised whenever an older state would be misread; older versions stay readable.
STATE_VERSION = 1


def normalizer_to_state(normalizer: Normalizer) -> dict[str, Any]:
    """Returns classes, settings and values of a normaliser as plain Python containers and CPU tensors.

    Args:
        normalizer: The normaliser, which is not changed.
    """
    return {
        "state_version": STATE_VERSION,
        "package_version": package_version(),
        "reference": _module_to_state(normalizer.reference),
        "rescaling": _module_to_state(normalizer.rescaling),
        "energy_scale": normalizer.energy_scale.detach().cpu(),
        "seen_elements": None if normalizer.seen_elements is None else normalizer.seen_elements.cpu(),
        "energy_field": normalizer.energy_field,
        "forces_field": normalizer.forces_field,
        "basis_info": None if normalizer.basis_info is None else normalizer.basis_info.to_dict(),
        "coordinates": normalizer.coordinates,
        "training_range": _module_to_state(normalizer.training_range),
        "unit": normalizer.unit,
    }


def normalizer_from_state(state: Mapping[str, Any]) -> Normalizer:
    """Builds the normaliser that `normalizer_to_state` described, to the last bit.

    Args:
        state: What `normalizer_to_state` returned.

    Raises:
        NormalizationError: If the state was written by a newer version of the package, or names an unknown class.
    """
    if state.get("state_version", 0) > STATE_VERSION:
        raise NormalizationError(
            f"the checkpoint's normaliser was written by ofdft-norm {state.get('package_version')} (state version "
            f"{state['state_version']}), this is {package_version()} (state version {STATE_VERSION}): upgrade "
            "ofdft-norm"
        )
    basis_info = state.get("basis_info")  # version 0.1 did not store it
    return Normalizer(
        reference=_module_from_state(state["reference"]),
        rescaling=_module_from_state(state["rescaling"]),
        energy_scale=state["energy_scale"],
        seen_elements=state["seen_elements"],
        energy_field=state["energy_field"],
        forces_field=state["forces_field"],
        basis_info=None if basis_info is None else BasisInfo(**basis_info),
        coordinates=state.get("coordinates"),  # version 0.1 did not know any
        training_range=_module_from_state(state.get("training_range")),  # nor this
        unit=state.get("unit", "hartree"),  # nor another
    )


# What each class takes besides its tensors, and how it is built from those settings and its state dict.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "DatasetReferences": ("names", "field", "unseen_elements", "atomic_numbers_field"),
    "AtomRef": (),
    "LinearReferences": ("unseen_elements", "atomic_numbers_field"),
    "DimensionWiseRescaling": ("s_coeff", "s_grad", "epsilon"),
    "TrainingRange": (),
}
_BUILDERS: dict[str, Callable[..., Float64Module]] = {
    "DatasetReferences": lambda v, names, field, **settings: DatasetReferences(
        {n: LinearReferences(v[f"parts.{i}.element_references"], **settings) for i, n in enumerate(names)},
        v["common"],
        field,
    ),
    "AtomRef": lambda v: AtomRef(v["t_z"], v["t_global"], v["g_z"]),
    "LinearReferences": lambda v, **settings: LinearReferences(v["element_references"], **settings),
    "DimensionWiseRescaling": lambda v, **settings: DimensionWiseRescaling(
        v["coeff_biases"], v["coeff_stds"], v["max_grads"], **settings
    ),
    "TrainingRange": lambda v: TrainingRange(v["lowest"], v["highest"], v["width"]),
}


def _module_to_state(module: Float64Module | None) -> dict[str, Any] | None:
    if module is None:
        return None
    name = type(module).__name__
    # with a prefix, all of a reference's state stands among the entries, see `Reference`
    entries = {key.removeprefix("module."): value for key, value in module.state_dict(prefix="module.").items()}
    values = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in entries.items()}
    return {"kind": name, "settings": {s: getattr(module, s) for s in _SETTINGS[name]}, "values": values}


def _module_from_state(state: Mapping[str, Any] | None) -> Any:
    if state is None:
        return None
    if state["kind"] not in _BUILDERS:
        raise NormalizationError(
            f"the checkpoint's normaliser has a {state['kind']!r}, not one of {sorted(_BUILDERS)}: upgrade ofdft-norm"
        )
    module = _BUILDERS[state["kind"]](state["values"], **state["settings"])
    module.load_state_dict(dict(state["values"]))
    return module


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Says how two normaliser states differ; empty if they are equal to the last bit.

    Args:
        old: State of one normaliser.
        new: State of the other.
    """
    differences = []
    for name in ("reference", "rescaling"):
        a, b = old[name] or {}, new[name] or {}
        if a.get("kind") != b.get("kind"):
            differences.append(f"{name}: {a.get('kind', 'none')} against {b.get('kind', 'none')}")
            continue
        if a.get("settings") != b.get("settings"):
            differences.append(f"{name} settings: {a['settings']} against {b['settings']}")
        differences += _tensor_differences(name, a.get("values", {}), b.get("values", {}))
    for name in ("energy_scale", "seen_elements"):
        differences += _tensor_differences("normaliser", {name: old[name]}, {name: new[name]})
    for name in ("energy_field", "forces_field", "unit"):
        a, b = old.get(name, "hartree"), new.get(name, "hartree")  # version 0.1 had no unit
        if a != b:
            differences.append(f"{name}: {a!r} against {b!r}")
    return "; ".join(differences)


def _tensor_differences(owner: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    out = []
    for name in sorted(set(a) | set(b)):
        x, y = a.get(name), b.get(name)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if type(x) is not type(y):
                out.append(f"{owner}.{name}: one has it, the other has not")
        elif x.shape != y.shape:
            out.append(f"{owner}.{name}: shape {tuple(x.shape)} against {tuple(y.shape)}")
        elif not torch.equal(x, y):
            out.append(f"{owner}.{name}: differs by up to {float((x.double() - y.double()).abs().max()):.3g}")
    return out
