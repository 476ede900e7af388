from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ofdft_norm import AtomRef, DimensionWiseRescaling, LinearReferences, Normalizer
from ofdft_norm.normalization.float64_module import Float64Module

ENERGY = -12345.678901234567


def modules() -> dict[str, nn.Module]:
    """One of each kind, with values that float32 cannot hold."""
    rng = np.random.default_rng(0)
    rescaling = DimensionWiseRescaling(rng.normal(size=4), rng.uniform(1, 2, size=4), rng.uniform(0, 1, size=4))
    atom_ref = AtomRef(rng.normal(size=2) + ENERGY, ENERGY, rng.normal(size=4))
    linear = LinearReferences(torch.tensor([0.0, *(rng.normal(size=118) + ENERGY)], dtype=torch.float64))
    seen = torch.zeros(119, dtype=torch.bool).index_fill(0, torch.tensor([1, 8]), True)
    return {
        "rescaling": rescaling,
        "atom_ref": atom_ref,
        "linear": linear,
        "normalizer": Normalizer(atom_ref, rescaling, 0.1, seen),
        # as a part of a model with parameters of its own
        "model": nn.ModuleDict({"layer": nn.Linear(2, 2), "normalizer": Normalizer(linear, None, 0.1)}),
    }


KINDS = ["rescaling", "atom_ref", "linear", "normalizer", "model"]

CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda m: m.to(torch.float32),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "half": lambda m: m.half(),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "type": lambda m: m.type(torch.float16),
    "device_and_dtype": lambda m: m.to("cpu", torch.float16),
    "deepcopy": copy.deepcopy,
    "deepcopy_of_half": lambda m: copy.deepcopy(m.half()).bfloat16(),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "share_memory": lambda m: m.share_memory(),
    "there_and_back": lambda m: m.half().float().bfloat16().double(),
}


def references_and_scales(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cast", sorted(CASTS))
def test_buffers_survive_to_the_last_bit(cast: str, kind: str) -> None:
    before = references_and_scales(modules()[kind])
    assert {v.dtype for v in before.values()} <= {torch.float64, torch.bool}
    after = references_and_scales(CASTS[cast](modules()[kind]))
    assert set(after) == set(before)
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name


def test_parameters_of_the_surrounding_model_are_cast() -> None:
    model = modules()["model"].to(torch.bfloat16)
    assert model["layer"].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_device_keeps_dtypes_and_shapes(kind: str) -> None:
    before = references_and_scales(modules()[kind])
    for cast in (lambda m: m.to("meta"), lambda m: m.to("meta", torch.bfloat16)):
        after = references_and_scales(cast(modules()[kind]))
        assert {name: (v.dtype, v.shape) for name, v in after.items()} == {
            name: (v.dtype, v.shape) for name, v in before.items()
        }
        assert all(value.is_meta for value in after.values())


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_survive_a_file_and_a_cast_module(kind: str) -> None:
    source = modules()[kind]
    file = io.BytesIO()
    torch.save(source.half().state_dict(), file)
    file.seek(0)
    target = modules()[kind].bfloat16()
    for value in references_and_scales(target).values():
        value.zero_()
    target.load_state_dict(torch.load(file, weights_only=True))
    for name, value in references_and_scales(modules()[kind]).items():
        assert torch.equal(references_and_scales(target)[name], value), name
        assert references_and_scales(target)[name].dtype == value.dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16])
def test_construction_under_another_default_dtype(default: torch.dtype, kind: str) -> None:
    before = references_and_scales(modules()[kind])
    torch.set_default_dtype(default)
    try:
        after = references_and_scales(modules()[kind])
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize(
    "value", [0.1, [0.1, 0.2], np.array([0.1]), np.array([0.2, 0.1])[::-1], np.float64(0.1), np.array([0.1], ">f8")]
)
def test_numbers_lists_and_arrays_are_registered_exactly(value: Any) -> None:
    module = Float64Module()
    module.register_float64("value", value)
    assert module.value.dtype == torch.float64
    assert module.value.tolist() == np.asarray(value).tolist()


def test_registered_values_are_copies() -> None:
    array, tensor = np.ones(2), torch.ones(2, dtype=torch.float64, requires_grad=True)
    module = Float64Module()
    module.register_float64("a", array)
    module.register_float64("t", tensor)
    array[0] = 5
    tensor.data[0] = 5
    assert module.a.tolist() == module.t.tolist() == [1, 1]
    assert not module.t.requires_grad


def test_buffers_move_with_a_module_to_an_accelerator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    model = modules()["model"].to("cuda", torch.bfloat16)
    for name, value in references_and_scales(modules()["model"]).items():
        assert references_and_scales(model)[name].is_cuda
        assert torch.equal(references_and_scales(model)[name].cpu(), value)
