"""The three layers inside a network: differentiable twice, in float32 and float64, and compiled."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, LinearReferences, Normalizer


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
def batch(basis_info: Any, make_sample: Any, make_batch: Any) -> Any:
    rng = np.random.default_rng(1)
    return make_batch([make_sample(basis_info, rng, [8, 1]), make_sample(basis_info, rng, [6, 1])])


def with_coeffs(batch: Any, coeffs: Tensor) -> Any:
    changed = copy.copy(batch)
    changed.coeffs = coeffs
    return changed


def test_first_and_second_derivatives_equal_finite_differences(basis_info: Any, batch: Any) -> None:
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
    p = torch.tensor(np.random.default_rng(2).normal(size=len(batch.coeffs)), requires_grad=True)
    for function in functions:
        assert torch.autograd.gradcheck(function, p)
        assert torch.autograd.gradgradcheck(function, p)


class Network(nn.Module):
    """M-OFDFT's arrangement: rescaled coefficients go in, both references come on top of the energy."""

    def __init__(self, basis: BasisInfo, output_dtype: Any) -> None:
        super().__init__()
        self.atom_ref, self.linear, self.rescaling = some_layers(basis, output_dtype)
        self.inner = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, batch: Any) -> Tensor:
        terms = self.inner(self.rescaling(batch)[:, None]).squeeze(1)
        energy = terms.new_zeros(len(batch.energy_label)).index_add(0, batch.coeffs_batch, terms)
        return self.linear(energy + self.atom_ref.sample_forward(batch), batch)


def train_step(network: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Returns the energies, and the weights' gradient of a loss on the energies' gradient."""
    energy = network(batch)
    (gradient,) = torch.autograd.grad(energy.sum(), batch.coeffs, create_graph=True)
    gradient.square().sum().backward()
    return energy.detach(), network.inner[0].weight.grad


def test_a_network_trains_on_gradients_in_float32_and_float64(basis_info: Any, batch: Any) -> None:
    network = Network(basis_info, "input")
    exact = copy.deepcopy(network).double()
    in_float64 = train_step(exact, with_coeffs(batch, batch.coeffs.requires_grad_()))
    batch = with_coeffs(batch, batch.coeffs.detach().float().requires_grad_())
    with pytest.raises(RuntimeError, match="same dtype"):
        Network(basis_info, "float64")(batch)
    in_float32 = train_step(network, batch)
    for found, expected in zip(in_float32, in_float64, strict=True):
        assert (found.dtype, expected.dtype) == (torch.float32, torch.float64)
        assert expected.norm() > 0
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output_dtype", ["input", torch.float16, "float64"])
def test_results_have_the_output_dtype_and_are_computed_in_float64(
    output_dtype: Any, basis_info: Any, batch: Any
) -> None:
    batch.coeffs, batch.gradient_label = batch.coeffs.float(), batch.gradient_label.float()
    exact, layers = some_layers(basis_info), [layer.float() for layer in some_layers(basis_info, output_dtype)]
    expected_dtype = {"input": torch.float32, "float64": torch.float64}.get(output_dtype, output_dtype)
    target = torch.ones(2)

    def results(atom: AtomRef, linear: LinearReferences, scale: DimensionWiseRescaling) -> list[Tensor]:
        energies = [atom.sample_forward(batch), linear(target, batch), linear.dereference(target, batch)]
        back = [scale.unscale_coeffs(batch.coeffs, batch), scale.unscale_gradient(batch.coeffs, batch)]
        return [*energies, scale(batch), *scale.rescale_coeffs_and_gradient(batch), *back]

    for found, float64 in zip(results(*layers), results(*exact), strict=True):
        assert (found.dtype, float64.dtype) == (expected_dtype, torch.float64)
        assert torch.equal(found, float64.to(expected_dtype))
    # energies of a normaliser stay float64, whatever the layers return
    normalizer = Normalizer(layers[0], layers[2])
    normalized = normalizer.normalize(batch)
    assert normalized.energy_reference.dtype == torch.float64
    torch.testing.assert_close(normalized.energy_reference, exact[0].sample_forward(batch))
