"""References and scales keep every bit of their float64 buffers in whatever precision a model trains."""

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

from ofdft_norm import BasisInfo
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.base import Float64Module
from tests.normalization.conftest import random_normalizer


def model() -> nn.ModuleDict:
    """A layer with parameters, and modules of each kind with values that float32 cannot hold."""
    seen = torch.zeros(119, dtype=torch.bool).index_fill(0, torch.tensor([1, 8]), True)
    basis = BasisInfo([1, 8], ["2x0e", "1x0e+1x1o"])
    normalizers = {kind: random_normalizer(basis, 0, kind, seen_elements=seen) for kind in ("atom_ref", "linear")}
    return nn.ModuleDict({"layer": nn.Linear(2, 2), "alone": normalizers["atom_ref"].reference, **normalizers})


def restore(module: nn.Module) -> nn.Module:
    """Writes the state dict to a file and reads it into another module, which another dtype was set for."""
    file = io.BytesIO()
    torch.save(module.half().state_dict(), file)
    file.seek(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        target = model().bfloat16()
    finally:
        torch.set_default_dtype(torch.float32)
    check_equal(target, model())
    for value in target.buffers():
        value.zero_()
    target.load_state_dict(torch.load(file, weights_only=True))
    return target


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda m: m.to(torch.float32),
    "type": lambda m: m.type(torch.float16),
    "device_and_dtype": lambda m: m.to("cpu", torch.float16),
    "deepcopy": lambda m: copy.deepcopy(m.half()).bfloat16(),
    "pickle": lambda m: pickle.loads(pickle.dumps(m.half().float().bfloat16())),
    "restore": restore,
}


def check_equal(found: nn.Module, expected: nn.Module) -> None:
    buffers = dict(found.named_buffers())
    assert buffers.keys() == dict(expected.named_buffers()).keys()
    for name, value in expected.named_buffers():
        assert value.dtype in (torch.float64, torch.bool)
        assert buffers[name].dtype == value.dtype, name
        assert torch.equal(buffers[name].cpu(), value), name


@pytest.mark.parametrize("cast", CASTS)
def test_buffers_survive_casts_to_the_last_bit_and_parameters_are_cast(cast: str) -> None:
    found = CASTS[cast](model())
    check_equal(found, model())
    assert found["layer"].weight.dtype in (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_devices_change_only_the_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator")
    moved = model().to(device, torch.bfloat16)
    assert all(buffer.device.type == device for buffer in moved.buffers())
    assert [buffer.dtype for buffer in moved.buffers()] == [buffer.dtype for buffer in model().buffers()]
    if device == "cuda":
        check_equal(moved, model())


@pytest.mark.parametrize("value", [0.1, [0.1, 0.2], np.array([0.2, 0.1])[::-1], np.array([0.1], ">f8")])
def test_registered_values_are_exact_copies(value: Any) -> None:
    module = Float64Module()
    module.register_float64("value", value)
    assert module.value.dtype == torch.float64
    assert module.value.tolist() == np.asarray(value).tolist()
    array, tensor = np.ones(2), torch.ones(2, dtype=torch.float64, requires_grad=True)
    module.register_float64("a", array)
    module.register_float64("t", tensor)
    array[0] = tensor.data[0] = 5
    assert module.a.tolist() == module.t.tolist() == [1, 1]
    assert not module.t.requires_grad


def test_complex_factors_and_unknown_output_dtypes_are_refused() -> None:
    for value in (1j, np.array([1j]), torch.tensor([1j])):
        with pytest.raises(StatisticsError, match="value is complex"):
            Float64Module().register_float64("value", value)
    for output_dtype in ("float32", None, 32, "Input"):
        with pytest.raises(ConfigError, match=r"expected 'float64', 'input' or a torch\.dtype"):
            Float64Module().set_output_dtype(output_dtype)
