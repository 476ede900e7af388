"""A normaliser as plain data: what a checkpoint carries, loadable with ``weights_only=True`` and without a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.dimension_wise_rescaling import DimensionWiseRescaling
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.version import package_version

# Raised whenever an older state would be misread; older versions stay readable.
STATE_VERSION = 1


def normalizer_to_state(normalizer: Normalizer) -> dict[str, Any]:
    """Returns kind, configuration and values of a normaliser as plain Python containers and CPU tensors."""
    reference, rescaling = normalizer.reference, normalizer.rescaling
    state: dict[str, Any] = {
        "state_version": STATE_VERSION,
        "package_version": package_version(),
        "reference": None if reference is None else _module_state(reference),
        "rescaling": None if rescaling is None else _module_state(rescaling),
        "energy_scale": normalizer.energy_scale.detach().cpu(),
        "seen_elements": None if normalizer.seen_elements is None else normalizer.seen_elements.cpu(),
        "energy_field": normalizer.energy_field,
        "forces_field": normalizer.forces_field,
    }
    return state


def _module_state(module: nn.Module) -> dict[str, Any]:
    tensors = {
        name: value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in module.state_dict().items()
    }
    settings: dict[str, Any] = {}
    if isinstance(module, LinearReferences):
        settings = {"unseen_elements": module.unseen_elements, "atomic_numbers_field": module.atomic_numbers_field}
    elif isinstance(module, DimensionWiseRescaling):
        settings = {"s_coeff": module.s_coeff, "s_grad": module.s_grad, "epsilon": module.epsilon}
    return {"kind": type(module).__name__, "settings": settings, "values": tensors}


def _linear_references(settings: Mapping[str, Any], values: Mapping[str, Any]) -> LinearReferences:
    references = values["element_references"]
    return LinearReferences(references, max_num_elements=len(references) - 1, **settings)


def _atom_ref(settings: Mapping[str, Any], values: Mapping[str, Any]) -> AtomRef:
    return AtomRef(values["t_z"], values["t_global"], values["g_z"])


def _rescaling(settings: Mapping[str, Any], values: Mapping[str, Any]) -> DimensionWiseRescaling:
    return DimensionWiseRescaling(values["coeff_biases"], values["coeff_stds"], values["max_grads"], **settings)


_BUILDERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], nn.Module]] = {
    "LinearReferences": _linear_references,
    "AtomRef": _atom_ref,
    "DimensionWiseRescaling": _rescaling,
}


def normalizer_from_state(state: Mapping[str, Any]) -> Normalizer:
    """Builds the normaliser that `normalizer_to_state` described, to the last bit.

    Raises:
        NormalizationError: If the state was written by a newer version of the package, or names an unknown kind.
    """
    if state.get("state_version", 0) > STATE_VERSION:
        raise NormalizationError(
            f"the checkpoint's normaliser was written by ofdft-norm {state.get('package_version')} (state version "
            f"{state['state_version']}), this is {package_version()} (state version {STATE_VERSION}): upgrade "
            "ofdft-norm"
        )
    return Normalizer(
        reference=_built(state["reference"]),
        rescaling=_built(state["rescaling"]),
        energy_scale=state["energy_scale"],
        seen_elements=state["seen_elements"],
        energy_field=state["energy_field"],
        forces_field=state["forces_field"],
    )


def _built(part: Mapping[str, Any] | None) -> Any:
    if part is None:
        return None
    if part["kind"] not in _BUILDERS:
        raise NormalizationError(
            f"the checkpoint's normaliser has a part {part['kind']!r}, not one of {sorted(_BUILDERS)}: upgrade "
            "ofdft-norm"
        )
    module = _BUILDERS[part["kind"]](part["settings"], part["values"])
    module.load_state_dict(dict(part["values"]))
    return module


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Says how two normaliser states differ; empty if they are equal to the last bit."""
    differences = []
    for part in ("reference", "rescaling"):
        a, b = old[part], new[part]
        kinds = ["none" if p is None else p["kind"] for p in (a, b)]
        if kinds[0] != kinds[1]:
            differences.append(f"{part}: {kinds[0]} against {kinds[1]}")
        elif a is not None and b is not None:
            if a["settings"] != b["settings"]:
                differences.append(f"{part} settings: {a['settings']} against {b['settings']}")
            differences += _tensor_differences(part, a["values"], b["values"])
    for name in ("energy_scale", "seen_elements"):
        differences += _tensor_differences("normaliser", {name: old[name]}, {name: new[name]})
    return "; ".join(differences)


def _tensor_differences(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    out = []
    for name in sorted(set(a) | set(b)):
        x, y = a.get(name), b.get(name)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if type(x) is not type(y):
                out.append(f"{part}.{name}: one has it, the other has not")
        elif x.shape != y.shape:
            out.append(f"{part}.{name}: shape {tuple(x.shape)} against {tuple(y.shape)}")
        elif not torch.equal(x, y):
            out.append(f"{part}.{name}: differs by up to {float((x.double() - y.double()).abs().max()):.3g}")
    return out
