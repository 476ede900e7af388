"""Raw samples and batches whose values cannot be right are refused, with field, place and expectation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import LinearReferences, Normalizer, OFData, project_gradient
from ofdft_norm.errors import BatchError, NormalizationError, OFDFTNormError, StatisticsError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch


def change(field: str, function: Callable[[Any], Any]) -> Callable[[Any], None]:
    return lambda batch: batch.update({field: function(batch[field].clone())})


def put(field: str, entry: Any, value: Any) -> Callable[[Any], None]:
    def put_entry(values: Any) -> Any:
        values[entry] = value
        return values

    return change(field, put_entry)


# Of a batch of hydroxyl (H, O: 2 atoms) and water (O, H, H) in a basis of H, C, O.
CASES: list[tuple[Callable[[Any], None], type[Exception], str]] = [
    (put("atom_ind", 1, -1), BatchError, r"'atom_ind' has -1 at entry 1, expected 2"),
    (change("atom_ind", lambda v: v[:-1]), BatchError, r"'atom_ind' has 4 entries"),
    (change("atom_ind", lambda v: v.double()), BatchError, r"'atom_ind' is float64"),
    (put("atomic_numbers", 0, 6), BatchError, r"'atom_ind' has 0 at entry 0, expected 1"),
    (put("basis_function_ind", 3, 999), BatchError, r"'basis_function_ind' has 999 at"),
    (change("basis_function_ind", lambda v: v.flip(0)), BatchError, r"'basis_function_ind' has"),
    (put("coeffs_batch", -1, 2), BatchError, r"'coeffs_batch' has 2 at entry \d+, expected 1"),
    (change("coeffs_batch", lambda v: v.flip(0)), BatchError, r"'coeffs_batch' has 1 at entry 0"),
    (change("coeffs_batch", lambda v: v[:-2]), BatchError, r"'coeffs_batch' has \d+ entries"),
    (put("batch", -1, 5), BatchError, r"'batch' has 5 at entry 4, expected 1"),
    (change("batch", lambda v: v[:-1]), BatchError, r"'batch' has 4 entries, expected 5"),
    (put("coeffs", 4, torch.nan), NormalizationError, r"'coeffs' has nan at entry 4"),
    (put("pos", (1, 2), torch.inf), NormalizationError, r"'pos' has inf at entry 5"),
    *(
        (change(field, lambda v: v * (1 + 1j)), NormalizationError, rf"'{field}' has .*complex")
        for field in ("coeffs", "energy_label", "gradient_label", "dual_basis_integrals")
    ),
]


@pytest.fixture
def normalizer(basis_info, make_normalizer) -> Normalizer:
    return make_normalizer(basis_info, rescaling="none", basis_info=basis_info)


@pytest.fixture
def batch(basis_info, make_sample, make_batch):
    rng, molecules = np.random.default_rng(0), {"hydroxyl": [1, 8], "water": [8, 1, 1]}
    return make_batch([make_sample(basis_info, rng, numbers, name) for name, numbers in molecules.items()])


@pytest.mark.parametrize(("make_wrong", "error", "message"), CASES)
def test_a_wrong_value_is_named(make_wrong, error, message, normalizer, batch):
    normalizer.normalize(batch)
    make_wrong(batch)
    for action in (normalizer.normalize, NormalizeBatch(normalizer)):
        with pytest.raises(error, match=r"molecules \['hydroxyl', 'water'\].*" + message):
            action(batch)


def test_objects_that_are_no_sample_and_complex_predictions_are_refused(normalizer, batch):
    for value in (None, [], [OFData()], "water", 3, {"coeffs": torch.zeros(2)}):
        for action in (normalizer.normalize, normalizer.denormalize):
            with pytest.raises(NormalizationError, match=f"expected a sample or batch .* got a {type(value).__name__}"):
                action(value)
    with pytest.raises(OFDFTNormError, match="'coeffs'"):
        normalizer.normalize(OFData())
    batch = normalizer.normalize(batch)
    with pytest.raises(NormalizationError, match="complex"):
        normalizer.denormalize_energy(torch.zeros(2, dtype=torch.complex128), batch)
    with pytest.raises(NormalizationError, match="complex"):
        normalizer.denormalize_gradient(batch.coeffs * 1j, batch)
    with pytest.raises(StatisticsError, match="energy_scale is complex"):
        Normalizer(energy_scale=2 + 1j)
    with pytest.raises(BatchError, match="complex"):
        LinearReferences(torch.ones(119))(torch.zeros(2, dtype=torch.complex128), batch)


def test_samples_in_other_coordinates_are_refused(batch):
    normalizer = Normalizer(coordinates="natural_symmetric")
    with pytest.raises(NormalizationError, match=r"'raw'.*'natural_symmetric'.*data\.pre_transforms"):
        normalizer.normalize(batch)
    batch.coordinates = ["natural_symmetric"] * 2
    normalizer.normalize(batch)


def test_gradients_are_projected_only_on_original_integrals(normalizer, batch, make_normalizer):
    rescaled = make_normalizer(normalizer.basis_info)
    normalised = rescaled.normalize(batch)
    assert normalised.integrals_rescaled.all()
    assert normalised.to_data_list()[1].integrals_rescaled.tolist() == [True]
    with pytest.raises(BatchError, match=r"Normalizer\.denormalize"):
        project_gradient(normalised.gradient_label, normalised)
    expected = project_gradient(batch.gradient_label, batch)
    back = rescaled.denormalize(normalised)
    torch.testing.assert_close(project_gradient(back.gradient_label, back), expected)
    assert "integrals_rescaled" not in normalizer.normalize(batch)
    assert "integrals_rescaled" not in back


# --- elements -----


def test_unseen_elements_name_molecule_element_and_config_key(basis_info, make_sample, make_batch):
    rng = np.random.default_rng(4)
    seen = torch.zeros(119, dtype=torch.bool).index_fill(0, torch.tensor([1, 8]), True)
    normalizer = Normalizer(None, None, 1.0, seen)
    water, methanol = make_sample(basis_info, rng, [8, 1, 1], "water"), make_sample(basis_info, rng, [6, 8], "methanol")
    normalizer.normalize(water)
    message = r"{}: .*'atomic_numbers' has the elements \[6\].*\[1, 8\].*data\.split.*data\.unseen_elements=identity"
    with pytest.raises(NormalizationError, match=message.format("molecule 'methanol'")):
        normalizer.normalize(methanol)
    with pytest.raises(NormalizationError, match=message.format(r"molecules \['methanol'\]")):
        normalizer.normalize(make_batch([water, methanol, water]))
    with pytest.raises(NormalizationError, match=message.format("the val split")):
        normalizer.check_numbers(torch.tensor([1, 6]), "the val split")
    Normalizer().normalize(methanol)
    linear = Normalizer(LinearReferences(torch.tensor([0.0, -0.5])))
    with pytest.raises(NormalizationError, match=r"the test split: no reference energy for the elements \[8\]"):
        linear.check_numbers(torch.tensor([1, 8]), "the test split")


def test_atomic_numbers_outside_the_table_never_pick_another_element():
    for number in (-1, 119, 1000):
        sample = OFData(pos=torch.zeros(2, 3), atomic_numbers=torch.tensor([1, number]))
        with pytest.raises(NormalizationError, match=rf"\[{number}\]"):
            Normalizer(seen_elements=torch.ones(119, dtype=torch.bool)).normalize(sample)
