from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import BasisInfo, DatasetStatistics, DimensionWiseRescaling
from ofdft_norm.errors import ConfigError, NormalizationError, StatisticsError


def naive_lambda(std: float, max_grad: float, s_coeff: float, s_grad: float) -> float:
    """Equation 4 of M-OFDFT for one dimension."""
    if max_grad <= s_grad:
        return 1.0
    if std == 0:
        return max_grad / s_grad
    return min(max_grad / s_grad, s_coeff / std)


def random_rescaling(n: int, rng: np.random.Generator, **options: float) -> DimensionWiseRescaling:
    stds = rng.choice([0, 1e-6, 1, 100], n) * rng.uniform(0.5, 1, n)
    max_grads = rng.choice([0, 0.05, 0.06, 1, 500], n)
    return DimensionWiseRescaling(rng.normal(size=n), stds, max_grads, **options)


# --- lambda -----


@pytest.mark.parametrize(
    ("std", "max_grad", "expected", "branch"),
    [
        (2.0, 0.5, 10.0, "gradient"),  # 0.5 / 0.05 = 10 < 50 / 2 = 25
        (2.0, 5.0, 25.0, "coefficient"),  # 5 / 0.05 = 100 > 25
        (100.0, 5.0, 0.5, "coefficient"),  # lambda may be below 1
        (2.0, 0.01, 1.0, "unscaled"),
        (1e9, 0.01, 1.0, "unscaled"),
        (1e9, 0.05, 1.0, "unscaled"),  # exactly s_grad is not above it
        (2.0, float(np.nextafter(0.05, 1)), float(np.nextafter(0.05, 1)) / 0.05, "gradient"),
        (0.0, 5.0, 100.0, "gradient"),  # no spread: the coefficient sets no limit
        (0.0, 0.0, 1.0, "unscaled"),
        (5.0, 0.5, 10.0, "gradient"),  # both limits are 10
        (5e-324, 5.0, 100.0, "gradient"),
    ],
)
def test_lambda_in_every_branch_and_at_its_borders(std: float, max_grad: float, expected: float, branch: str) -> None:
    rescaling = DimensionWiseRescaling(np.zeros(1), np.array([std]), np.array([max_grad]))
    assert rescaling.lambda_z.tolist() == [expected]
    assert rescaling.branches() == {"gradient": 0, "coefficient": 0, "unscaled": 0, branch: 1}


@given(
    stds=st.lists(st.just(0.0) | st.floats(1e-9, 1e9), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
    s_coeff=st.floats(1e-3, 1e3),
    s_grad=st.floats(1e-4, 1e2),
)
def test_lambda_equals_a_loop_over_dimensions(stds: list[float], seed: int, s_coeff: float, s_grad: float) -> None:
    max_grads = np.random.default_rng(seed).choice([0, s_grad / 2, s_grad, s_grad * 2, 1e3], len(stds))
    rescaling = DimensionWiseRescaling(np.zeros(len(stds)), np.array(stds), max_grads, s_coeff, s_grad)
    expected = [naive_lambda(s, g, s_coeff, s_grad) for s, g in zip(stds, max_grads, strict=True)]
    assert rescaling.lambda_z.tolist() == pytest.approx(expected, rel=1e-14)
    assert sum(rescaling.branches().values()) == len(stds)


def test_arrays_and_tensors_give_the_same_buffers() -> None:
    values = [np.array([0.1, 0.2]), np.array([0.3, 100.0]), np.array([0.7, 0.9])]
    by_array = DimensionWiseRescaling(*values)
    by_tensor = DimensionWiseRescaling(*map(torch.from_numpy, values))
    by_float32 = DimensionWiseRescaling(*(torch.tensor(v, dtype=torch.float32) for v in values))
    names = ["coeff_biases", "coeff_stds", "max_grads", "lambda_z"]
    for module in (by_array, by_tensor, by_float32):
        assert [name for name, _ in module.named_buffers()] == names
        assert list(module.state_dict()) == names
        assert all(value.dtype == torch.float64 for _, value in module.named_buffers())
    for name, values_of in zip(names[:3], values, strict=True):
        np.testing.assert_array_equal(getattr(by_array, name).numpy(), values_of)
        assert torch.equal(getattr(by_array, name), getattr(by_tensor, name))
    assert torch.equal(by_array.lambda_z, by_tensor.lambda_z)


def test_changed_buffers_count_after_init_lambda_z() -> None:
    rescaling = DimensionWiseRescaling(np.zeros(2), np.ones(2), np.array([1.0, 0.01]))
    assert rescaling.lambda_z.tolist() == [20, 1]
    buffer = rescaling.lambda_z
    rescaling.max_grads[1] = 0.5
    rescaling.coeff_stds[0] = 25.0
    assert rescaling.lambda_z.tolist() == [20, 1]
    rescaling.init_lambda_z()
    assert rescaling.lambda_z.tolist() == [2, 10]
    assert rescaling.lambda_z is buffer
    rescaling.s_grad = 0.25
    rescaling.init_lambda_z()
    assert rescaling.lambda_z.tolist() == [2, 2]


# --- samples and batches -----


@given(data=st.data(), epsilon=st.sampled_from([0.0, 1e-8, 0.3]))
def test_samples_and_batches_equal_a_loop(
    epsilon: float, data: st.DataObject, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    rescaling = random_rescaling(basis.n_basis, rng, epsilon=epsilon)
    coeffs, gradients = [], []
    for sample in samples:
        position = 0
        for z in sample.atomic_numbers.tolist():
            element = basis.atomic_numbers.tolist().index(z)
            for b in basis.atom_ind_to_basis_function_ind[element].tolist():
                lam = naive_lambda(float(rescaling.coeff_stds[b]), float(rescaling.max_grads[b]), 50, 0.05)
                coeffs.append(lam * (float(sample.coeffs[position]) - float(rescaling.coeff_biases[b])))
                gradients.append(float(sample.gradient_label[position]) / (lam + epsilon))
                position += 1
    batch = make_batch(samples)
    for result in (
        rescaling.rescale_coeffs_and_gradient(batch),
        tuple(torch.cat(parts) for parts in zip(*map(rescaling.rescale_coeffs_and_gradient, samples), strict=True)),
        (rescaling(batch), rescaling.scale_gradient(batch.gradient_label, batch)),
    ):
        assert result[0].tolist() == pytest.approx(coeffs, rel=1e-14)
        assert result[1].tolist() == pytest.approx(gradients, rel=1e-14)
    torch.testing.assert_close(rescaling.unscale_coeffs(result[0], batch), batch.coeffs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rescaling.unscale_gradient(result[1], batch), batch.gradient_label, rtol=1e-14, atol=0)


@pytest.mark.parametrize("method", ["scale_coeffs", "unscale_coeffs", "scale_gradient", "unscale_gradient"])
def test_values_that_are_not_one_for_each_function_are_refused(method: str, basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(0)
    sample = make_sample(basis_info, rng, [8, 1], "hydroxyl")
    rescaling = random_rescaling(basis_info.n_basis, rng)
    for wrong in (sample.coeffs[:-1], sample.coeffs[:, None], sample.coeffs[None], sample.coeffs[0]):
        with pytest.raises(NormalizationError, match=r"molecule 'hydroxyl': .* has shape .*expected \(15,\)"):
            getattr(rescaling, method)(wrong, sample)
    del sample.basis_function_ind
    with pytest.raises(NormalizationError, match=r"'hydroxyl'.*'basis_function_ind'.*OFData.construct_new"):
        getattr(rescaling, method)(sample.coeffs, sample)


def test_missing_fields_are_named(basis_info: Any, make_sample: Any) -> None:
    rng = np.random.default_rng(0)
    sample = make_sample(basis_info, rng, mol_id="water")
    rescaling = random_rescaling(basis_info.n_basis, rng)
    del sample.gradient_label
    with pytest.raises(NormalizationError, match=r"molecule 'water': lacks the field 'gradient_label'"):
        rescaling.rescale_coeffs_and_gradient(sample)
    del sample.coeffs
    with pytest.raises(NormalizationError, match=r"molecule 'water': lacks the field 'coeffs'"):
        rescaling(sample)


# --- bad parameters -----


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("s_coeff", "s_grad") for value in (0, -1, np.inf, np.nan)),
        *(("epsilon", value) for value in (-1e-8, np.inf, np.nan)),
    ],
)
def test_scales_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = {value}.*data\.rescaling\.{name}"):
        DimensionWiseRescaling(np.zeros(1), np.ones(1), np.ones(1), **{name: value})


@pytest.mark.parametrize("name", ["coeff_biases", "coeff_stds", "max_grads"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_statistics_that_are_no_scales_are_named(name: str, value: float) -> None:
    values = {"coeff_biases": np.array([-3.0, 1.0]), "coeff_stds": np.ones(2), "max_grads": np.ones(2)}
    values[name][1] = value
    if (name, value) == ("coeff_biases", -1.0):
        assert DimensionWiseRescaling(**values).coeff_biases.tolist() == [-3, -1]
        return
    with pytest.raises(StatisticsError, match=rf"{name}\[1\] is {value}.*data\.statistics\.path"):
        DimensionWiseRescaling(**values)


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
@pytest.mark.parametrize("name", ["coeff_biases", "coeff_stds", "max_grads"])
def test_statistics_of_different_lengths_are_refused(name: str, shape: tuple[int, ...]) -> None:
    values = {"coeff_biases": np.zeros(3), "coeff_stds": np.ones(3), "max_grads": np.ones(3), name: np.ones(shape)}
    with pytest.raises(StatisticsError, match="has shape"):
        DimensionWiseRescaling(**values)


# --- from statistics -----


def some_statistics(basis: BasisInfo, rng: np.random.Generator, weigher: str = "constant") -> DatasetStatistics:
    n = basis.n_basis
    arrays = {
        "coeffs/mean": rng.normal(size=n),
        "coeffs/std": rng.uniform(0, 3, n),
        "gradient_max_after_atom_ref": rng.uniform(0, 3, n),
        "gradient_max_after_scalar_atom_ref": rng.uniform(0, 3, n),
    }
    return DatasetStatistics.from_arrays({f"{weigher}/{name}": values for name, values in arrays.items()})


@given(data=st.data())
def test_equivariant_parameters_equal_a_loop_over_shells(data: st.DataObject, some_bases: Any) -> None:
    basis = data.draw(some_bases)
    statistics = some_statistics(basis, np.random.default_rng(data.draw(st.integers(0, 1000))))
    before = {key: statistics.load_statistic(*key.split("/", 1)).copy() for key in statistics.keys_recursive()}
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis, "constant", equivariant=True)
    mean, std = before["constant/coeffs/mean"], before["constant/coeffs/std"]
    largest = before["constant/gradient_max_after_scalar_atom_ref"]
    for b in range(basis.n_basis):
        shell = [c for c in range(basis.n_basis) if basis.basis_func_to_shell[c] == basis.basis_func_to_shell[b]]
        assert float(rescaling.coeff_biases[b]) == (mean[b] if basis.l_per_basis_func[b] == 0 else 0)
        assert float(rescaling.max_grads[b]) == max(largest[c] for c in shell)
        assert float(rescaling.coeff_stds[b]) == pytest.approx(sum(std[c] ** 2 for c in shell) ** 0.5, rel=1e-14)
    for key, values in before.items():  # STRUCTURES25 zeroes the means of the caller's arrays here
        np.testing.assert_array_equal(statistics.load_statistic(*key.split("/", 1)), values)


def test_plain_parameters_are_the_statistics(basis_info: Any) -> None:
    statistics = some_statistics(basis_info, np.random.default_rng(0), "mine")
    rescaling = DimensionWiseRescaling.from_dataset_statistics(
        statistics, weigher_key="mine", s_coeff=7, s_grad=0.5, epsilon=0.1
    )
    assert (rescaling.s_coeff, rescaling.s_grad, rescaling.epsilon) == (7, 0.5, 0.1)
    for buffer, key in (
        ("coeff_biases", "coeffs/mean"),
        ("coeff_stds", "coeffs/std"),
        ("max_grads", "gradient_max_after_atom_ref"),
    ):
        np.testing.assert_array_equal(getattr(rescaling, buffer).numpy(), statistics.load_statistic("mine", key))
    assert "s_grad=0.5" in repr(rescaling)


def test_errors_from_statistics_name_what_is_there_and_the_config_key(basis_info: Any) -> None:
    build = DimensionWiseRescaling.from_dataset_statistics
    statistics = some_statistics(basis_info, np.random.default_rng(0))
    with pytest.raises(StatisticsError, match=r"'has_energy_label'; there are \['constant'\].*data.statistics.weigher"):
        build(statistics)
    with pytest.raises(ConfigError, match=r"equivariant=True needs basis_info"):
        build(statistics, weigher_key="constant", equivariant=True)
    with pytest.raises(StatisticsError, match=r"'coeffs/mean' has shape .* 2 functions.*data.source.basis_info"):
        build(statistics, BasisInfo([1], ["2x0e"]), "constant")
    partial = DatasetStatistics.from_arrays({"constant/coeffs/mean": np.zeros(2)})
    with pytest.raises(StatisticsError, match=r"'coeffs/std'; it has \['coeffs/mean'\]"):
        build(partial, weigher_key="constant")


@pytest.mark.parametrize("output_dtype", ["input", torch.float16])
def test_in_a_network_of_low_precision_all_is_computed_in_float64(
    output_dtype: Any, basis_info: Any, make_sample: Any
) -> None:
    sample = make_sample(basis_info, np.random.default_rng(0), [1, 8], "m")
    values = [torch.rand(basis_info.n_basis) + 0.1 for _ in range(3)]
    exact, rescaling = (DimensionWiseRescaling(*values, output_dtype=d) for d in (torch.float64, output_dtype))
    sample.coeffs, sample.gradient_label = sample.coeffs.float(), sample.gradient_label.float()
    dtype = torch.float32 if output_dtype == "input" else torch.float16
    expected = exact.rescale_coeffs_and_gradient(data_sample=sample)
    found = rescaling.float().rescale_coeffs_and_gradient(data_sample=sample)
    assert [x.dtype for x in found] == [dtype, dtype]
    assert all(torch.equal(x, y.to(dtype)) for x, y in zip(found, expected, strict=True))
    assert torch.equal(rescaling(data_sample=sample), found[0])
    assert rescaling.unscale_coeffs(found[0], sample).dtype == torch.float64
    with pytest.raises(ConfigError, match=r"output_dtype = 'float32': expected a torch.dtype or 'input'"):
        DimensionWiseRescaling(*values, output_dtype="float32")
