"""Raw samples and batches whose values cannot be right are refused, with field, place and expectation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from ofdft_norm import AtomRef, LinearReferences, Normalizer, OFData, project_gradient
from ofdft_norm.errors import BatchError, NormalizationError, OFDFTNormError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch


def put(field: str, entry: Any, value: Any) -> Callable[[Any], None]:
    """Changes one entry of a field."""

    def change(batch: Any) -> None:
        batch[field] = batch[field].clone()
        batch[field][entry] = value

    return change


def change(field: str, function: Callable[[Any], Any]) -> Callable[[Any], None]:
    return lambda batch: batch.update({field: function(batch[field])})


# Of a batch of hydroxyl (H, O: 2 atoms) and water (O, H, H) in a basis of H, C, O.
CASES: list[tuple[Callable[[Any], None], type[Exception], str]] = [
    (put("atom_ind", 1, -1), BatchError, r"'atom_ind' has -1 at entry 1, expected 2"),
    (put("atom_ind", 0, 7), BatchError, r"'atom_ind' has 7 at entry 0, expected 0"),
    (change("atom_ind", lambda v: v[:-1]), BatchError, r"'atom_ind' has 4 entries"),
    (change("atom_ind", lambda v: v.double()), BatchError, r"'atom_ind' is float64"),
    (put("atomic_numbers", 0, 6), BatchError, r"'atom_ind' has 0 at entry 0, expected 1"),
    (put("basis_function_ind", 3, -2), BatchError, r"'basis_function_ind' has -2 at"),
    (put("basis_function_ind", 3, 999), BatchError, r"'basis_function_ind' has 999 at"),
    (change("basis_function_ind", lambda v: v.flip(0)), BatchError, r"'basis_function_ind' has"),
    (put("coeffs_batch", 0, -1), BatchError, r"'coeffs_batch' has -1 at entry 0, expected 0"),
    (put("coeffs_batch", -1, 2), BatchError, r"'coeffs_batch' has 2 at entry \d+, expected 1"),
    (change("coeffs_batch", lambda v: v.flip(0)), BatchError, r"'coeffs_batch' has 1 at entry 0"),
    (change("coeffs_batch", lambda v: v[:-2]), BatchError, r"'coeffs_batch' has \d+ entries"),
    (put("batch", 0, -1), BatchError, r"'batch' is \[-1, "),
    (put("batch", -1, 5), BatchError, r"'batch' is .* 5\]"),
    (change("batch", lambda v: v.flip(0)), BatchError, r"'batch' is \[1, "),
    (change("batch", lambda v: v[:-1]), BatchError, r"'batch' is .* 5 atoms"),
    (put("coeffs", 4, torch.nan), NormalizationError, r"'coeffs' has nan at entry 4"),
    (put("coeffs", 0, torch.inf), NormalizationError, r"'coeffs' has inf at entry 0"),
    (put("pos", (1, 2), torch.inf), NormalizationError, r"'pos' has inf at entry 5"),
    *(
        (change(field, lambda v: v * (1 + 1j)), NormalizationError, rf"'{field}' has .*complex")
        for field in ("coeffs", "energy_label", "gradient_label", "dual_basis_integrals")
    ),
]


@pytest.fixture
def normalizer(basis_info: Any) -> Normalizer:
    rng = np.random.default_rng(0)
    reference = AtomRef(rng.normal(size=3), 0.0, rng.normal(size=basis_info.n_basis))
    return Normalizer(reference, basis_info=basis_info)


@pytest.fixture
def batch(basis_info: Any, make_sample: Any, make_batch: Any) -> Any:
    rng = np.random.default_rng(0)
    return make_batch(
        [make_sample(basis_info, rng, [1, 8], "hydroxyl"), make_sample(basis_info, rng, [8, 1, 1], "water")]
    )


@pytest.mark.parametrize(("make_wrong", "error", "message"), CASES)
def test_a_wrong_value_is_named(
    make_wrong: Callable[[Any], None], error: type[Exception], message: str, normalizer: Normalizer, batch: Any
) -> None:
    normalizer.normalize(batch)
    make_wrong(batch)
    for action in (normalizer.normalize, NormalizeBatch(normalizer)):
        with pytest.raises(error, match=r"molecules \['hydroxyl', 'water'\].*" + message):
            action(batch)


def test_complex_predictions_are_refused(normalizer: Normalizer, batch: Any) -> None:
    batch = normalizer.normalize(batch)
    with pytest.raises(NormalizationError, match="complex"):
        normalizer.denormalize_energy(torch.zeros(2, dtype=torch.complex128), batch)
    with pytest.raises(NormalizationError, match="complex"):
        normalizer.denormalize_gradient(batch.coeffs * 1j, batch)


def test_samples_of_all_kinds_pass(basis_info: Any, make_sample: Any, batch: Any) -> None:
    known, unknown = Normalizer(basis_info=basis_info), Normalizer()
    for normalizer in (known, unknown):
        normalizer.check(batch)
        normalizer.check(make_sample(basis_info, np.random.default_rng(0)))
    unknown.check(Data(z=torch.tensor([1, 8]), pos=torch.zeros(2, 3)))
    known.check(Data(atomic_numbers=torch.tensor([1, 8]), coeffs=torch.zeros(4)))


@pytest.mark.parametrize("value", [None, [], [OFData()], "water", 3, {"coeffs": torch.zeros(2)}])
def test_objects_that_are_no_sample_are_refused(value: Any, normalizer: Normalizer) -> None:
    for action in (normalizer.normalize, normalizer.denormalize):
        with pytest.raises(NormalizationError, match=f"expected a sample or batch .* got a {type(value).__name__}"):
            action(value)
    with pytest.raises(OFDFTNormError, match="'coeffs'"):
        normalizer.normalize(OFData())


def test_samples_in_other_coordinates_are_refused(batch: Any) -> None:
    normalizer = Normalizer(coordinates="natural_symmetric")
    with pytest.raises(NormalizationError, match=r"'raw'.*'natural_symmetric'.*data\.pre_transforms"):
        normalizer.normalize(batch)
    batch.coordinates = ["natural_symmetric"] * 2
    normalizer.normalize(batch)


def test_gradients_are_not_projected_on_a_normalised_batch(normalizer: Normalizer, batch: Any) -> None:
    normalised = normalizer.normalize(batch)
    with pytest.raises(BatchError, match=r"normalised.*Normalizer\.denormalize"):
        project_gradient(normalised.gradient_label, normalised)
    back = normalizer.denormalize(normalised)
    torch.testing.assert_close(
        project_gradient(back.gradient_label, back), project_gradient(batch.gradient_label, batch)
    )


# --- elements -----


def test_unseen_elements_name_molecule_element_and_config_key(
    basis_info: Any, make_sample: Any, make_batch: Any
) -> None:
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


@pytest.mark.parametrize("number", [-1, 119, 1000])
def test_atomic_numbers_outside_the_table_never_pick_another_element(
    number: int, basis_info: Any, make_sample: Any
) -> None:
    sample = make_sample(basis_info, np.random.default_rng(4), [1, 1])
    sample.atomic_numbers = torch.tensor([1, number])
    with pytest.raises(NormalizationError, match=rf"\[{number}\]"):
        Normalizer(seen_elements=torch.ones(119, dtype=torch.bool)).normalize(sample)
