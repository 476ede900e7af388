from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import ProjectGradient, project_gradient
from ofdft_norm.data.sample import join_samples
from ofdft_norm.errors import BatchError
from tests.transforms.conftest import make_molecule


def random_samples(seed: int, n: int = 3) -> list[Any]:
    rng = np.random.default_rng(seed)
    samples = [make_molecule(rng, rng.choice([1, 6, 8], rng.integers(1, 4)).tolist()) for _ in range(n)]
    for sample in samples:
        sample.dual_basis_integrals = torch.tensor(rng.uniform(0.1, 2, len(sample.coeffs)))
    return samples


def naive_projection(gradient: torch.Tensor, integrals: torch.Tensor) -> torch.Tensor:
    """P g = g - w (w.g)/(w.w), with plain loops."""
    g, w = gradient.tolist(), integrals.tolist()
    share = sum(w[i] * g[i] for i in range(len(g))) / sum(w[i] * w[i] for i in range(len(g)))
    return torch.tensor([g[i] - w[i] * share for i in range(len(g))], dtype=torch.float64)


@given(seed=st.integers(0, 2**32 - 1))
def test_equals_a_loop_over_samples_and_is_a_projection(seed: int) -> None:
    samples = random_samples(seed)
    expected = [naive_projection(sample.gradient_label, sample.dual_basis_integrals) for sample in samples]
    for sample, values in zip(samples, expected, strict=True):
        torch.testing.assert_close(project_gradient(sample.gradient_label, sample), values)
    batch = join_samples(samples)
    once = project_gradient(batch.gradient_label, batch)
    torch.testing.assert_close(once, torch.cat(expected))
    torch.testing.assert_close(project_gradient(once, batch), once, rtol=1e-12, atol=1e-12)
    shift = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)[batch.coeffs_batch]
    moved = project_gradient(batch.gradient_label + shift * batch.dual_basis_integrals, batch)
    torch.testing.assert_close(moved, once, rtol=1e-10, atol=1e-11)
    gradient, weight = batch.gradient_label.clone().requires_grad_(), torch.randn(len(once), dtype=torch.float64)
    (project_gradient(gradient, batch) @ weight).backward()
    torch.testing.assert_close(gradient.grad, project_gradient(weight, batch))  # the projector is symmetric


def test_low_precision_gradients_are_projected_in_float64() -> None:
    sample = random_samples(2)[0]
    low = sample.gradient_label.to(torch.bfloat16)
    exact = naive_projection(low.double(), sample.dual_basis_integrals).to(low.dtype)
    torch.testing.assert_close(project_gradient(low, sample), exact, rtol=0, atol=0)


def test_the_transform_leaves_its_argument_and_other_fields_alone() -> None:
    sample = random_samples(3)[0]
    before, projected = sample.clone(), ProjectGradient()(sample)
    assert torch.equal(projected.gradient_label, project_gradient(before.gradient_label, before))
    assert torch.equal(sample.gradient_label, before.gradient_label)
    assert all(projected[field] is sample[field] for field in sample.keys() if field != "gradient_label")
    del sample.gradient_label
    assert "gradient_label" not in ProjectGradient()(sample)


def test_nan_labels_and_integrals_of_zero_stay_in_their_molecule() -> None:
    samples = random_samples(4)
    samples[0].dual_basis_integrals = torch.zeros_like(samples[0].dual_basis_integrals)
    samples[1].gradient_label = torch.full_like(samples[1].gradient_label, torch.nan)
    batch = join_samples(samples)
    projected = ProjectGradient()(batch).gradient_label
    assert torch.equal(projected.isnan(), batch.coeffs_batch == 1)
    assert torch.equal(projected[batch.coeffs_batch == 0], samples[0].gradient_label)


def test_what_cannot_be_projected_is_refused() -> None:
    sample = random_samples(5)[0]
    with pytest.raises(BatchError, match="shape"):  # it would be broadcast to a matrix
        project_gradient(sample.gradient_label[:, None], sample)
    with pytest.raises(BatchError, match="complex"):
        project_gradient(sample.gradient_label + 0j, sample)
    batch = join_samples([sample, sample])
    del batch.coeffs_batch
    with pytest.raises(BatchError, match=r"'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        project_gradient(batch.gradient_label, batch)
    sample.integrals_rescaled = torch.tensor([True])
    with pytest.raises(BatchError, match=r"normalised.*Normalizer\.denormalize"):
        project_gradient(sample.gradient_label, sample)
    del sample.integrals_rescaled, sample.dual_basis_integrals
    with pytest.raises(BatchError, match=r"'dual_basis_integrals'.*of_labels/spatial.*data\.pre_transforms"):
        ProjectGradient()(sample)
