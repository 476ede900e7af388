from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import ProjectGradient, project_gradient
from ofdft_norm.errors import BatchError


def naive_projection(gradient: torch.Tensor, integrals: torch.Tensor) -> list[float]:
    """P g = g - w (w.g)/(w.w), with plain loops."""
    g, w = gradient.tolist(), integrals.tolist()
    overlap, square = 0.0, 0.0
    for i in range(len(g)):
        overlap += w[i] * g[i]
        square += w[i] * w[i]
    return [g[i] - w[i] * overlap / square for i in range(len(g))]


@given(data=st.data())
def test_equals_a_loop_over_samples_alone_and_batched(data: st.DataObject, some_samples: Any, make_batch: Any) -> None:
    _, samples, _ = data.draw(some_samples)
    expected = [naive_projection(s.gradient_label, s.dual_basis_integrals) for s in samples]
    for sample, values in zip(samples, expected, strict=True):
        torch.testing.assert_close(project_gradient(sample.gradient_label, sample), torch.tensor(values).double())
    batch = make_batch(samples)
    joined = torch.tensor([value for values in expected for value in values], dtype=torch.float64)
    torch.testing.assert_close(project_gradient(batch.gradient_label, batch), joined, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ProjectGradient()(batch).gradient_label, joined, rtol=1e-12, atol=1e-12)


@given(data=st.data())
def test_is_idempotent_orthogonal_and_removes_multiples_of_the_integrals(
    data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    _, samples, rng = data.draw(some_samples)
    batch = make_batch(samples)
    once = project_gradient(batch.gradient_label, batch)
    torch.testing.assert_close(project_gradient(once, batch), once, rtol=1e-12, atol=1e-12)
    shift = torch.tensor(rng.normal(size=len(samples)))[batch.coeffs_batch]
    moved = project_gradient(batch.gradient_label + shift * batch.dual_basis_integrals, batch)
    torch.testing.assert_close(moved, once, rtol=1e-10, atol=1e-11)
    for i in range(len(samples)):
        own = batch.coeffs_batch == i
        assert abs(float(once[own] @ batch.dual_basis_integrals[own])) < 1e-11


def test_autograd_flows_through(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(1)
    batch = make_batch([make_sample(basis_info, rng) for _ in range(2)])
    gradient = batch.gradient_label.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda g: project_gradient(g, batch), (gradient,))
    weight = torch.randn(len(gradient), dtype=torch.float64)
    (project_gradient(gradient, batch) @ weight).backward()
    # the projector is symmetric: its transpose is the projector
    torch.testing.assert_close(gradient.grad, project_gradient(weight, batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_gradients_are_projected_in_float64(
    dtype: torch.dtype, basis_info: Any, make_sample: Any
) -> None:
    sample = make_sample(basis_info, np.random.default_rng(2), [6] * 40)
    low = sample.gradient_label.to(dtype)
    projected = project_gradient(low, sample)
    assert projected.dtype == dtype
    exact = torch.tensor(naive_projection(low.double(), sample.dual_basis_integrals), dtype=torch.float64)
    torch.testing.assert_close(projected, exact.to(dtype), rtol=0, atol=0)


def test_the_transform_leaves_its_argument_and_other_fields_alone(basis_info: Any, make_sample: Any) -> None:
    sample = make_sample(basis_info, np.random.default_rng(3))
    before = sample.clone()
    projected = ProjectGradient()(sample)
    assert not torch.equal(projected.gradient_label, before.gradient_label)
    for field in before.keys():
        unchanged = sample[field] == before[field]
        assert unchanged if isinstance(unchanged, bool) else unchanged.all()
        if field != "gradient_label":
            assert projected[field] is sample[field]


def test_nan_labels_of_one_molecule_stay_there(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(4)
    samples = [make_sample(basis_info, rng) for _ in range(3)]
    samples[1].gradient_label = torch.full_like(samples[1].gradient_label, torch.nan)
    batch = ProjectGradient()(make_batch(samples))
    assert torch.equal(batch.gradient_label.isnan(), batch.coeffs_batch == 1)


def test_without_integrals_of_a_molecule_there_is_nothing_to_project(
    basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
    rng = np.random.default_rng(5)
    samples = [make_sample(basis_info, rng) for _ in range(2)]
    samples[0].dual_basis_integrals = torch.zeros_like(samples[0].dual_basis_integrals)
    batch = make_batch(samples)
    projected = project_gradient(batch.gradient_label, batch)
    first = batch.coeffs_batch == 0
    assert torch.equal(projected[first], batch.gradient_label[first])
    assert not torch.equal(projected[~first], batch.gradient_label[~first])


def test_samples_without_gradient_pass(basis_info: Any, make_sample: Any) -> None:
    sample = make_sample(basis_info, np.random.default_rng(6))
    del sample.gradient_label
    assert "gradient_label" not in ProjectGradient()(sample)


def test_missing_integrals_name_field_and_config_key(basis_info: Any, make_sample: Any) -> None:
    sample = make_sample(basis_info, np.random.default_rng(7))
    del sample.dual_basis_integrals
    with pytest.raises(BatchError, match=r"'dual_basis_integrals'.*of_labels/spatial.*data.pre_transforms"):
        ProjectGradient()(sample)


def test_a_batch_without_coeffs_batch_says_how_to_get_one(basis_info: Any, make_sample: Any, make_batch: Any) -> None:
    batch = make_batch([make_sample(basis_info, np.random.default_rng(8)) for _ in range(2)])
    del batch.coeffs_batch
    with pytest.raises(BatchError, match=r"'coeffs_batch'.*follow_batch=\['coeffs'\]"):
        project_gradient(batch.gradient_label, batch)


def test_a_column_of_gradients_is_refused_instead_of_broadcast(basis_info: Any, make_sample: Any) -> None:
    sample = make_sample(basis_info, np.random.default_rng(9))
    with pytest.raises(BatchError, match="shape"):
        project_gradient(sample.gradient_label[:, None], sample)
