"""Normalisers keep every bit of their float64 buffers in whatever precision a model trains, and in a checkpoint."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ofdft_norm import (
    AtomRef,
    BasisInfo,
    DimensionWiseRescaling,
    LinearReferences,
    Normalizer,
    fit_linear_references,
    fit_references_by_dataset,
)
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.base import Float64Module
from ofdft_norm.normalization.state import describe_difference, dump_normalizer, load_normalizer
from ofdft_norm.normalization.training_range import TrainingRange
from tests.normalization.conftest import random_normalizer


def normalizers() -> dict[str, Normalizer]:
    """A normaliser of each kind, with values that float32 cannot hold."""
    basis = BasisInfo([1, 8], ["2x0e", "1x0e+1x1o"])
    rng, n = np.random.default_rng(0), basis.n_basis
    both = itertools.product(([1], [8], [1, 8], [1, 1, 8]), "ab")
    data = [Data(z=torch.tensor(z), energy=float(rng.normal()), dataset=name) for z, name in both]
    seen = torch.zeros(119, dtype=torch.bool).index_fill(0, torch.tensor([1, 8]), True)
    full = {"seen_elements": seen, "energy_field": "y", "forces_field": "forces", "basis_info": basis, "unit": "eV"}
    training_range = TrainingRange(np.zeros(n), np.ones(n), np.ones(n))
    fitted = fit_linear_references(["energy"], data, 4, unseen_elements="zero")["energy"]
    atomic = random_normalizer(basis, 0, epsilon=0.0, coordinates="raw", training_range=training_range, **full)
    atomic.reference.output_dtype = "input"
    return {
        "empty": Normalizer(),
        "atomic": atomic,
        "linear": Normalizer(fitted, None, 2.0),
        "given": Normalizer(LinearReferences(torch.tensor([0.0, -0.5]), atomic_numbers_field="species")),
        "by_dataset": Normalizer(fit_references_by_dataset(["energy"], data)["energy"]),
    }


def model() -> nn.ModuleDict:
    """A layer with parameters, a reference, and all normalisers."""
    made = normalizers()
    return nn.ModuleDict({"layer": nn.Linear(2, 2), "alone": made["atomic"].reference, **made})


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def restore(module: nn.Module) -> nn.Module:
    """Reads the state dict from a file into another module, which another dtype was set for."""
    state = through_file(module.half().state_dict())
    torch.set_default_dtype(torch.bfloat16)
    try:
        target = model().bfloat16()
    finally:
        torch.set_default_dtype(torch.float32)
    check_equal(target, model())
    for value in target.buffers():
        value.zero_()
    target.load_state_dict(state)
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
def test_buffers_survive_casts_to_the_last_bit_and_parameters_are_cast(cast):
    found = CASTS[cast](model())
    check_equal(found, model())
    assert found["layer"].weight.dtype in (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_devices_change_only_the_device(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator")
    moved = model().to(device, torch.bfloat16)
    assert all(buffer.device.type == device for buffer in moved.buffers())
    assert [buffer.dtype for buffer in moved.buffers()] == [buffer.dtype for buffer in model().buffers()]
    if device == "cuda":
        check_equal(moved, model())


def test_registered_values_are_copies():
    module = Float64Module()
    array, tensor = np.ones(4)[::-2], torch.ones(2, dtype=torch.float64, requires_grad=True)
    module.register_float64("a", array)
    module.register_float64("t", tensor)
    array[0] = tensor.data[0] = 5
    assert module.a.tolist() == module.t.tolist() == [1, 1]
    assert not module.t.requires_grad


def test_complex_factors_and_unknown_output_dtypes_are_refused():
    for value in (1j, np.array([1j]), torch.tensor([1j])):
        with pytest.raises(StatisticsError, match="value is complex"):
            Float64Module().register_float64("value", value)
    for output_dtype in ("float32", None, 32, "Input"):
        with pytest.raises(ConfigError, match=r"expected 'float64', 'input' or a torch\.dtype"):
            Float64Module().set_output_dtype(output_dtype)


# --- states -----


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("kind", ["empty", "atomic", "linear", "given", "by_dataset"])
def test_states_survive_a_file_to_the_last_bit(kind):
    normalizer = normalizers()[kind]
    state = dump_normalizer(normalizer)
    rebuilt = load_normalizer(through_file(state))
    assert equal(dump_normalizer(rebuilt), state)
    assert describe_difference(dump_normalizer(rebuilt), state) == ""
    assert equal(dict(rebuilt.named_buffers()), dict(normalizer.named_buffers()))
    names = {
        "": ("energy_field", "forces_field", "basis_info", "coordinates", "unit"),
        "reference": ("fit_report", "output_dtype", "residuals", "names", "unseen_elements", "atomic_numbers_field"),
        "rescaling": ("s_coeff", "s_grad", "epsilon"),
    }
    for part, own in names.items():
        a, b = (getattr(n, part) if part else n for n in (rebuilt, normalizer))
        assert all(getattr(a, name, None) == getattr(b, name, None) for name in own)


def test_differences_are_named():
    states = {kind: dump_normalizer(normalizer) for kind, normalizer in normalizers().items()}
    text = describe_difference(states["atomic"], states["linear"])
    assert "rescaling: 'DimensionWiseRescaling' against None" in text
    assert "unit: 'eV' against 'hartree'" in text
    changed = copy.deepcopy(states["atomic"])
    changed["parts"]["rescaling"]["values"]["coeff_stds"][3] += 1e-3
    changed["parts"]["rescaling"]["settings"]["s_grad"] = 0.4
    text = describe_difference(states["atomic"], changed)
    assert text == "rescaling.s_grad: 0.05 against 0.4; rescaling.coeff_stds: differs by up to 0.001"


# --- layers of a network -----


def some_layers(
    basis: BasisInfo, output_dtype: Any = "float64"
) -> tuple[AtomRef, LinearReferences, DimensionWiseRescaling]:
    rng, n = np.random.default_rng(0), basis.n_basis
    values = rng.normal(size=n), rng.uniform(0.5, 2, n), rng.uniform(0.01, 3, n)
    energies = torch.zeros(119, dtype=torch.float64)
    energies[basis.atomic_numbers] = torch.tensor(rng.normal(size=basis.n_types))
    return (
        AtomRef(rng.normal(size=basis.n_types), 0.3, rng.normal(size=n), output_dtype=output_dtype),
        LinearReferences(energies, output_dtype=output_dtype),
        DimensionWiseRescaling(*values, output_dtype=output_dtype),
    )


@pytest.fixture
def batch(basis_info, make_sample, make_batch):
    rng = np.random.default_rng(1)
    return make_batch([make_sample(basis_info, rng, [8, 1]), make_sample(basis_info, rng, [6, 1])])


def with_coeffs(batch: Any, coeffs: Tensor) -> Any:
    changed = copy.copy(batch)
    changed.coeffs = coeffs
    return changed


def test_first_and_second_derivatives_equal_finite_differences(basis_info, batch):
    atom_ref, linear, rescaling = some_layers(basis_info)
    normalizer = Normalizer(atom_ref, rescaling, 0.7)
    normalized = normalizer.normalize(batch)
    functions: list[Any] = [
        lambda p: atom_ref(with_coeffs(batch, torch.tanh(p))),
        lambda p: linear(torch.tanh(p[:2]), batch),
        lambda p: rescaling(with_coeffs(batch, torch.tanh(p))),
        lambda p: rescaling.scale_gradient(torch.tanh(p), batch),
        lambda p: normalizer.denormalize_energy(torch.tanh(p[:2]), with_coeffs(normalized, torch.sin(p))),
    ]
    coeffs = batch.coeffs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(atom_ref(with_coeffs(batch, coeffs)).sum(), coeffs)
    assert torch.equal(gradient, atom_ref.find_gradient(batch.basis_function_ind))
    p = torch.tensor(np.random.default_rng(2).normal(size=len(batch.coeffs)), requires_grad=True)
    for function in functions:
        assert torch.autograd.gradcheck(function, p)
        assert torch.autograd.gradgradcheck(function, p)


@pytest.mark.parametrize("output_dtype", ["input", torch.float16, "float64"])
def test_results_have_the_output_dtype_and_are_computed_in_float64(output_dtype, basis_info, batch):
    batch.coeffs, batch.gradient_label = batch.coeffs.float().requires_grad_(), batch.gradient_label.float()
    exact, layers = some_layers(basis_info), [layer.float() for layer in some_layers(basis_info, output_dtype)]
    expected_dtype = {"input": torch.float32, "float64": torch.float64}.get(output_dtype, output_dtype)
    target = torch.ones(2, requires_grad=True)

    def results(atom: AtomRef, linear: LinearReferences, scale: DimensionWiseRescaling) -> list[Tensor]:
        energies = [atom.sample_forward(batch), linear(target, batch), linear.dereference(target, batch)]
        back = [scale.unscale_coeffs(batch.coeffs, batch), scale.unscale_gradient(batch.coeffs, batch)]
        return [*energies, scale(batch), scale.scale_gradient(batch.coeffs, batch), *back]

    for found, float64 in zip(results(*layers), results(*exact), strict=True):
        assert (found.dtype, float64.dtype, found.requires_grad) == (expected_dtype, torch.float64, True)
        assert torch.equal(found, float64.to(expected_dtype))
    # energies of a normaliser stay float64, whatever the layers return
    normalizer = Normalizer(layers[0], layers[2])
    normalized = normalizer.normalize(batch)
    assert normalized.energy_reference.dtype == torch.float64
    torch.testing.assert_close(normalized.energy_reference, exact[0].sample_forward(batch))
