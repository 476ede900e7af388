"""Lambda and equivariant parameters against loops, rescaled statistics against a new fit, and the initial guess."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import (
    AtomRef,
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    HasEnergyLabelSampleWeigher,
    InitialGuessDelta,
    InitialGuessOnlySampleWeigher,
    MinSCFIterationSampleWeigher,
    Normalizer,
    OFData,
)
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch


@pytest.mark.parametrize(
    ("std", "max_grad", "expected", "branch"),
    [
        (2.0, 0.5, 10.0, "gradient"),  # 0.5 / 0.05 = 10 < 50 / 2 = 25
        (2.0, 5.0, 25.0, "coefficient"),  # 5 / 0.05 = 100 > 25
        (100.0, 5.0, 0.5, "coefficient"),  # lambda may be below 1
        (1e9, 0.05, 1.0, "unscaled"),  # exactly s_grad is not above it
        (2.0, float(np.nextafter(0.05, 1)), float(np.nextafter(0.05, 1)) / 0.05, "gradient"),
        (0.0, 5.0, 100.0, "gradient"),  # no spread: the coefficient sets no limit
        (5e-324, 5.0, 100.0, "gradient"),
    ],
)
def test_lambda_in_every_branch_and_at_its_borders(std, max_grad, expected, branch):
    rescaling = DimensionWiseRescaling(np.zeros(1), np.array([std]), np.array([max_grad]))
    assert rescaling.lambda_z.tolist() == [expected]
    assert [name for name, mask in rescaling.branches().items() if mask.all()] == [branch]


def test_buffers_are_those_of_structures25_and_may_change_before_init_lambda_z():
    rescaling = DimensionWiseRescaling(torch.zeros(2), np.ones(2), np.array([1.0, 0.01]))
    assert list(rescaling.state_dict()) == ["coeff_biases", "coeff_stds", "max_grads", "lambda_z"]
    assert rescaling.lambda_z.tolist() == [20, 1]
    buffer = rescaling.lambda_z
    rescaling.max_grads[1], rescaling.coeff_stds[0] = 0.5, 25.0
    rescaling.init_lambda_z()
    assert rescaling.lambda_z is buffer
    assert buffer.tolist() == [2, 10]
    assert "s_grad=0.05" in repr(rescaling)


def test_settings_and_statistics_that_are_no_scales_are_named():
    for name, values in {"s_coeff": (0, np.nan), "s_grad": (-1, np.inf, 1j), "epsilon": (-1e-8, np.inf)}.items():
        for value in values:
            with pytest.raises(ConfigError, match=rf"data\.rescaling\.{name} = {value}"):
                DimensionWiseRescaling(np.zeros(1), np.ones(1), np.ones(1), **{name: value})
    good = {"coeff_biases": np.array([-3.0, 1.0]), "coeff_stds": np.ones(2), "max_grads": np.ones(2)}
    for name, value in (("coeff_biases", np.nan), ("coeff_stds", np.inf), ("coeff_stds", -1.0), ("max_grads", -1.0)):
        for shape in ((3,), (2, 1), ()):
            with pytest.raises(StatisticsError, match="has shape"):
                DimensionWiseRescaling(**{**good, name: np.ones(shape)})
        with pytest.raises(StatisticsError, match=rf"{name}\[1\] is {value}.*data\.statistics\.path"):
            DimensionWiseRescaling(**{**good, name: np.array([1.0, value])})


# --- from statistics, and of statistics -----


def test_equivariant_parameters_equal_a_loop_over_shells(samples, basis_info):
    basis, key, statistics = basis_info, "has_energy_label", fit(basis_info, samples)
    before = {key: value.copy() for key, value in statistics.to_arrays().items()}
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis, key, equivariant=True)
    mean, std, largest = (
        before[f"{key}/{n}"] for n in ("coeffs/mean", "coeffs/std", "gradient_max_after_scalar_atom_ref")
    )
    for b in range(basis.n_basis):
        shell = [c for c in range(basis.n_basis) if basis.basis_func_to_shell[c] == basis.basis_func_to_shell[b]]
        assert float(rescaling.coeff_biases[b]) == (mean[b] if basis.l_per_basis_func[b] == 0 else 0)
        assert float(rescaling.max_grads[b]) == max(largest[c] for c in shell)
        assert float(rescaling.coeff_stds[b]) == pytest.approx(sum(std[c] ** 2 for c in shell) ** 0.5, rel=1e-14)
    for name, values in before.items():  # STRUCTURES25 zeroes the means of the caller's arrays here
        np.testing.assert_array_equal(statistics.load_statistic(*name.split("/", 1)), values)
    with pytest.raises(ConfigError, match="equivariant=True needs basis_info"):
        DimensionWiseRescaling.from_dataset_statistics(statistics, None, key, equivariant=True)
    plain = DimensionWiseRescaling.from_dataset_statistics(statistics, None, key, s_coeff=7, s_grad=0.5, epsilon=0.1)
    expected = DimensionWiseRescaling(mean, std, before[f"{key}/gradient_max_after_atom_ref"], 7, 0.5, 0.1)
    assert all(map(torch.equal, plain.buffers(), expected.buffers()))


WEIGHERS = (HasEnergyLabelSampleWeigher(), ConstantSampleWeigher(), MinSCFIterationSampleWeigher(2))
INITIAL_GUESS_WEIGHERS = (InitialGuessOnlySampleWeigher(), ConstantSampleWeigher(2))


def fit(basis: BasisInfo, samples: list[OFData]) -> DatasetStatistics:
    return DatasetStatistics.from_dataset(None, samples, basis, WEIGHERS, INITIAL_GUESS_WEIGHERS, progress=False)


def rescaled(rescaling: DimensionWiseRescaling, sample: OFData) -> OFData:
    out, index = sample.clone(), sample.basis_function_ind
    lam, pbar = rescaling.lambda_z[index], rescaling.coeff_biases[index]
    out.coeffs = lam * (sample.coeffs - pbar)
    out.ground_state_coeffs = lam * (sample.ground_state_coeffs - pbar)
    out.gradient_label = sample.gradient_label / (lam + rescaling.epsilon)
    return out


@pytest.fixture(scope="module")
def samples(basis_info, make_sample) -> list[OFData]:
    """Eight molecules of linearly independent compositions, with four SCF iterations each."""
    rng = np.random.default_rng(0)
    molecules = [[1], [6], [8], [1, 6], [1, 1, 8], [6, 8, 8], [6, 6, 1, 1], [1, 8, 6, 6]]
    both = itertools.product(molecules, range(4))
    return [make_sample(basis_info, rng, z, str(z), scf_iteration=i, has_energy_label=i > 0) for z, i in both]


@pytest.mark.filterwarnings("ignore:the basis has the elements")
@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"s_coeff": 3, "s_grad": 0.01, "epsilon": 0.0}, {"epsilon": 0.5}, {"short": 1}]
)
def test_rescaled_statistics_equal_a_new_fit_on_the_rescaled_samples(options, equivariant, basis_info, samples):
    options = {**options, "basis_info": basis_info, "equivariant": equivariant}
    if options.pop("short", False):  # one weigher sees no carbon: its entries stay neutral
        samples = [s for s in samples if 6 not in s.atomic_numbers.tolist() or int(s.scf_iteration) < 2]
    statistics = fit(basis_info, samples)
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, weigher_key="constant", **options)
    transformed = DimensionWiseRescaling.apply_to_dataset_statistics(statistics, None, "constant", **options)
    expected = fit(basis_info, [rescaled(rescaling, sample) for sample in samples])
    assert transformed.keys_recursive() == expected.keys_recursive()
    for key, values in expected.to_arrays().items():
        if options.get("epsilon") == 0.5 and "_ref" in key and "max_after" not in key:
            continue  # energies follow the reference only to epsilon
        tolerance = 1e-6 * (1 + np.abs(values).max())
        np.testing.assert_allclose(transformed.load_statistic(*key.split("/", 1)), values, 1e-5, tolerance, err_msg=key)


def test_the_source_stays_and_the_result_is_written(basis_info, samples, tmp_path):
    statistics = fit(basis_info, samples)
    before = DatasetStatistics.from_arrays(statistics.to_arrays(), statistics.attributes)
    path = tmp_path / "folder" / "rescaled"
    transformed = DimensionWiseRescaling.apply_to_dataset_statistics(statistics, path, "has_energy_label")
    assert statistics.equals(before)
    read = DatasetStatistics(path)
    assert read.equals(transformed)
    assert "DimensionWiseRescaling" in read.attributes["rescaled_by"]


def test_statistics_of_structures25_are_centred_once_and_may_lack_minimum_and_maximum(basis_info, samples):
    key, folder = "has_energy_label", "has_energy_label/energy_minus_atom_ref"
    arrays = {name: value for name, value in fit(basis_info, samples).to_arrays().items() if name.startswith(key)}
    arrays = {name: value for name, value in arrays.items() if not name.endswith(("rms", "minimum", "maximum"))}
    # their std is the root mean square
    foreign = DatasetStatistics.from_arrays({**arrays, f"{folder}/mean": np.array(0.3), f"{folder}/std": np.array(0.5)})
    with pytest.raises(StatisticsError, match="pass basis_info"):
        DimensionWiseRescaling.apply_to_dataset_statistics(foreign, None, key)
    with pytest.warns(UserWarning, match=f"'{key}/coeffs/abs_max' cannot be transformed"):
        once = DimensionWiseRescaling.apply_to_dataset_statistics(foreign, None, key, basis_info=basis_info)
    assert f"{key}/coeffs/abs_max" not in once
    twice = DimensionWiseRescaling.apply_to_dataset_statistics(once, None, key, basis_info=basis_info)
    for statistics in (foreign, once, twice):
        found = [float(statistics.load_statistic(key, f"energy_minus_atom_ref/{n}")) for n in ("mean", "std", "rms")]
        np.testing.assert_allclose(found, [0.3, 0.4, 0.5], rtol=1e-15)


# --- deviation of the initial guess -----


@given(data=st.data())
def test_deviations_of_the_initial_guess_invert_alone_and_in_normalised_batches(data, some_samples, make_batch):
    basis, samples, rng = data.draw(some_samples)
    n = basis.n_basis
    std = rng.uniform(0.1, 3, n) * (rng.uniform(size=n) > 0.2)
    delta = InitialGuessDelta(rng.normal(size=n), std)
    batch = make_batch(samples)
    target = delta(batch)
    for i, value in enumerate(target.tolist()):
        b = int(batch.basis_function_ind[i])
        difference = float(batch.coeffs[i] - batch.ground_state_coeffs[i]) - float(delta.mean[b])
        assert value == pytest.approx(difference / (std[b] if std[b] > 0 else 1.0), abs=1e-11)
    torch.testing.assert_close(delta.unscale(target, batch), batch.coeffs - batch.ground_state_coeffs)
    torch.testing.assert_close(delta.ground_state_coeffs(target, batch), batch.ground_state_coeffs)
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.1, 9, n), rng.uniform(0, 5, n))
    normalizer = Normalizer(AtomRef(np.zeros(basis.n_types), 0.0, rng.normal(size=n)), rescaling)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        normalized = NormalizeBatch(normalizer, dtype)(batch)
        found = delta.of_normalized(normalized, normalizer)
        torch.testing.assert_close(found, target, rtol=tolerance, atol=tolerance)
        back = delta.ground_state_coeffs(target, normalized, normalizer)
        torch.testing.assert_close(back, batch.ground_state_coeffs, rtol=tolerance, atol=tolerance)


def test_scales_of_the_initial_guess_are_those_of_the_statistics(basis_info, samples):
    statistics = fit(basis_info, samples)
    key = INITIAL_GUESS_WEIGHERS[1].summary_string()
    delta = InitialGuessDelta.from_dataset_statistics(statistics, key)
    targets = torch.cat([delta(sample) for sample in samples])
    index = torch.cat([sample.basis_function_ind for sample in samples])
    for b in range(basis_info.n_basis):
        own = targets[index == b]
        assert float(own.mean()) == pytest.approx(0, abs=1e-10)
        assert float(own.std(correction=0)) == pytest.approx(1, abs=1e-10)
    with pytest.raises(StatisticsError, match="nothing"):
        InitialGuessDelta.from_dataset_statistics(statistics, "nothing")
