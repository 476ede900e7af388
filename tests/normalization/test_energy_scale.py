"""The energy scale, from numbers and from statistics."""

import numpy as np
import pytest

from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.energy_scale import resolve_energy_scale
from ofdft_norm.normalization.given_references import references_from_values
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics

RESIDUALS = np.array([0.3, -0.1, 0.5, 0.2])
ENERGIES = np.array([-76.0, -40.0, -1.1, -113.0])


def statistics(**without):
    arrays = {
        "w/energy/mean": ENERGIES.mean(),
        "w/energy/std": ENERGIES.std(),
        "w/energy/mae": np.abs(ENERGIES - ENERGIES.mean()).mean(),
        "w/n_atoms": np.array([6, 2, 4]),
        "w/n_samples": np.array(4),
    }
    for name, factor in (("atom_ref", 1), ("scalar_atom_ref", 2), ("linear_ref", 3)):
        r = RESIDUALS * factor
        arrays |= {f"w/energy_minus_{name}/{k}": v for k, v in (("mean", r.mean()), ("std", r.std()))}
        arrays |= {f"w/energy_minus_{name}/rms": np.sqrt((r**2).mean()), f"w/energy_minus_{name}/mae": np.abs(r).mean()}
    return DatasetStatistics.from_arrays({key: np.asarray(v) for key, v in arrays.items() if key not in without})


@pytest.mark.parametrize(("name", "factor"), [("atom_ref", 1), ("scalar_atom_ref", 2), ("linear_ref", 3)])
@pytest.mark.parametrize("per_atom", [False, True])
def test_words_read_the_statistics_of_the_reference(name, factor, per_atom):
    atoms = 3.0 if per_atom else 1.0  # twelve atoms in four samples
    expected = {
        "std": RESIDUALS.std(),
        "rmsd": np.sqrt((RESIDUALS**2).mean()),
        "mae": np.abs(RESIDUALS).mean(),
    }
    for word, value in expected.items():
        scale = resolve_energy_scale(word, statistics(), "w", name, per_atom)
        assert scale == pytest.approx(factor * value / atoms, rel=1e-14)


def test_without_a_reference_words_are_about_the_mean_energy():
    assert resolve_energy_scale("std", statistics(), "w", None) == ENERGIES.std()
    assert resolve_energy_scale("rmsd", statistics(), "w", None) == ENERGIES.std()
    assert resolve_energy_scale("mae", statistics(), "w", None) == np.abs(ENERGIES - ENERGIES.mean()).mean()


@pytest.mark.parametrize("name", ["given_ref", "linear_ref_with_ridge"])
def test_references_that_no_second_pass_measures_say_what_to_choose(name):
    with pytest.raises(StatisticsError, match=r"no mean absolute value: choose std or rmsd \(config: data.energy"):
        resolve_energy_scale("mae", statistics(), "w", name)


@pytest.mark.parametrize("number", [1.0, 2, 0.0159, np.float64(3.5)])
def test_numbers_are_used_as_they_are(number):
    assert resolve_energy_scale(number, DatasetStatistics(None), "w", "atom_ref", per_atom=True) == float(number)


@pytest.mark.parametrize("spec", [0, -1.0, float("nan"), float("inf"), True, None, [1.0], "1.0", "sdt", "STD"])
def test_anything_else_is_refused(spec):
    with pytest.raises(ConfigError, match=r"energy_scale = .*expected a positive number .*config: data\.energy_scale"):
        resolve_energy_scale(spec, statistics(), "w", "atom_ref")


def test_misspelt_words_are_corrected():
    with pytest.raises(ConfigError, match="did you mean 'std'"):
        resolve_energy_scale("sdt", statistics(), "w", "atom_ref")
    with pytest.raises(ConfigError, match="did you mean 'rmsd'"):
        resolve_energy_scale("rms", statistics(), "w", "atom_ref")


@pytest.mark.parametrize(("name", "folder"), [("atom_ref", "energy_minus_atom_ref"), (None, "energy")])
def test_a_missing_mae_names_the_second_pass(name, folder):
    without = statistics(**{f"w/{folder}/mae": None})
    with pytest.raises(StatisticsError, match=rf"needs 'w/{folder}/mae'.*data\.statistics\.residuals=true"):
        resolve_energy_scale("mae", without, "w", name)
    assert resolve_energy_scale("std", without, "w", name) > 0


def test_missing_statistics_are_named():
    with pytest.raises(StatisticsError, match="energy_minus_linear_ref/std"):
        resolve_energy_scale("std", statistics(**{"w/energy_minus_linear_ref/std": None}), "w", "linear_ref")
    with pytest.raises(StatisticsError, match="no statistics for the weigher 'other'"):
        resolve_energy_scale("std", statistics(), "other", "atom_ref")


def test_energies_that_the_reference_explains_give_no_scale():
    exact = DatasetStatistics.from_arrays({"w/energy/std": np.array(3e-14)})
    with pytest.raises(StatisticsError, match=r"is 3e-14: .*give a number .config: data\.energy_scale=1\.0."):
        resolve_energy_scale("std", exact, "w", None)


def test_one_scale_divides_energies_and_gradients(basis_info, make_sample):
    scale = resolve_energy_scale("mae", statistics(), "w", "linear_ref")
    sample = make_sample(basis_info, np.random.default_rng(3), atomic_numbers=[8, 1, 1])
    references = references_from_values({"H": -0.5, "O": -75.1})
    normalizer = Normalizer(references, energy_scale=scale)
    out = normalizer.normalize(sample)
    assert out.energy_label.item() == pytest.approx((sample.energy_label.item() + 76.1) / scale, rel=1e-13)
    np.testing.assert_allclose(out.gradient_label.numpy(), sample.gradient_label.numpy() / scale, rtol=1e-15)
    back = normalizer.denormalize(out)
    np.testing.assert_allclose(back.energy_label.numpy(), sample.energy_label.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(back.gradient_label.numpy(), sample.gradient_label.numpy(), rtol=1e-14)
