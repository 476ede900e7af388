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
from ofdft_norm.normalization.guards import check_values
from ofdft_norm.normalization.transforms import CheckSamples, NormalizeTransform


def setting(field: str, entry: int, value: Any) -> Callable[[Any], None]:
    """Changes one entry of a field."""

    def change(batch: Any) -> None:
        batch[field] = batch[field].clone()
        batch[field][entry] = value

    return change


def replacing(field: str, function: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(batch: Any) -> None:
        batch[field] = function(batch[field])

    return change


# Of a batch of hydroxyl (H, O: 2 atoms) and water (O, H, H) in a basis of H, C, O.
CASES: list[tuple[str, Callable[[Any], None], type[Exception], str]] = [
    ("an element index below 0", setting("atom_ind", 1, -1), BatchError, r"'atom_ind' is -1 at entry 1, expected 2"),
    ("one beyond the basis", setting("atom_ind", 0, 7), BatchError, r"'atom_ind' is 7 at entry 0, expected 0"),
    ("another element's", setting("atom_ind", 0, 1), BatchError, r"'atom_ind' is 1 at entry 0.*'atomic_numbers'"),
    ("too few element indices", replacing("atom_ind", lambda v: v[:-1]), BatchError, r"'atom_ind' has 4 entries, exp"),
    ("element indices as floats", replacing("atom_ind", lambda v: v.double()), BatchError, r"'atom_ind' has dtype"),
    (
        "another element's number",
        setting("atomic_numbers", 0, 6),
        BatchError,
        r"'atom_ind' is 0 at entry 0, expected 1",
    ),
    ("a function index below 0", setting("basis_function_ind", 3, -2), BatchError, r"'basis_function_ind' is -2 at"),
    ("one beyond the basis", setting("basis_function_ind", 3, 999), BatchError, r"'basis_function_ind' is 999 at"),
    (
        "functions in another order",
        replacing("basis_function_ind", lambda v: v.flip(0)),
        BatchError,
        r"'basis_function_ind' is \d+ at entry 0, expected 0.*OFData\.construct_new",
    ),
    ("a molecule below 0", setting("coeffs_batch", 0, -1), BatchError, r"'coeffs_batch' is -1 at entry 0, expected 0"),
    (
        "a molecule too many",
        setting("coeffs_batch", -1, 2),
        BatchError,
        r"'coeffs_batch' is 2 at entry \d+, expected 1",
    ),
    ("unsorted", replacing("coeffs_batch", lambda v: v.flip(0)), BatchError, r"'coeffs_batch' is 1 at entry 0"),
    (
        "a border elsewhere",
        replacing("coeffs_batch", lambda v: (torch.arange(len(v)) > 4).long()),
        BatchError,
        r"'coeffs_batch' is 1 at entry 5, expected 0, as follows from each atom's molecule",
    ),
    (
        "of another batch",
        replacing("coeffs_batch", lambda v: v[:-2]),
        BatchError,
        r"'coeffs_batch' has \d+ entries",
    ),
    ("an atom's molecule below 0", setting("batch", 0, -1), BatchError, r"'batch' runs from -1 to 1"),
    ("an atom's molecule too many", setting("batch", -1, 5), BatchError, r"'batch' runs from 0 to 5"),
    ("unsorted atoms", replacing("batch", lambda v: v.flip(0)), BatchError, r"'batch' .* decreases at entry 3"),
    ("another batch's atoms", replacing("batch", lambda v: v[:-1]), BatchError, r"'batch' has 4 entries, expected 5"),
    ("NaN coefficients", setting("coeffs", 4, torch.nan), NormalizationError, r"'coeffs' holds nan at entry 4"),
    ("infinite coefficients", setting("coeffs", 0, torch.inf), NormalizationError, r"'coeffs' holds inf at entry 0"),
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


@pytest.mark.parametrize(("change", "error", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_wrong_value_is_named(
    change: Callable[[Any], None], error: type[Exception], message: str, normalizer: Normalizer, batch: Any
) -> None:
    normalizer.normalize(batch)
    change(batch)
    for action in (normalizer.normalize, NormalizeTransform(normalizer), CheckSamples(normalizer)):
        with pytest.raises(error, match=r"molecules \['hydroxyl', 'water'\].*" + message):
            action(batch)


def test_samples_of_all_kinds_pass(basis_info: Any, make_sample: Any, batch: Any) -> None:
    check_values(batch, basis_info)
    check_values(batch, None)
    check_values(make_sample(basis_info, np.random.default_rng(0)), basis_info)
    check_values(Data(z=torch.tensor([1, 8]), pos=torch.zeros(2, 3)), None)
    check_values(Data(atomic_numbers=torch.tensor([1, 8]), coeffs=torch.zeros(4)), basis_info)


@pytest.mark.parametrize("value", [None, [], [OFData()], "water", 3, {"coeffs": torch.zeros(2)}])
def test_what_is_no_sample_is_refused(value: Any, normalizer: Normalizer) -> None:
    with pytest.raises(NormalizationError, match=f"expected a sample or batch .* got a {type(value).__name__}"):
        normalizer.normalize(value)
    with pytest.raises(NormalizationError, match="expected a sample or batch"):
        normalizer.denormalize(value)


def test_an_empty_sample_and_the_meta_device_are_refused(normalizer: Normalizer, batch: Any) -> None:
    with pytest.raises(OFDFTNormError, match="'coeffs'"):
        normalizer.normalize(OFData())
    with pytest.raises(
        NormalizationError, match=r"\['hydroxyl', 'water'\].*'coeffs'.*meta device, which has no values"
    ):
        normalizer.normalize(batch.to("meta"))


def test_gradients_are_not_projected_on_a_normalised_batch(normalizer: Normalizer, batch: Any) -> None:
    normalised = normalizer.normalize(batch)
    with pytest.raises(BatchError, match=r"the batch is normalised.*Normalizer\.denormalize"):
        project_gradient(normalised.gradient_label, normalised)
    back = normalizer.denormalize(normalised)
    torch.testing.assert_close(
        project_gradient(back.gradient_label, back), project_gradient(batch.gradient_label, batch)
    )


def test_what_float16_cannot_hold_is_an_error_that_says_what_to_choose() -> None:
    sample = OFData(z=torch.tensor([8, 8]), pos=torch.zeros(2, 3), energy_label=torch.tensor([-1e5]).double())
    with pytest.raises(
        NormalizationError,
        match=r"'energy_label' has values up to 100000.*data\.dtype.*data/reference.*data\.energy_scale",
    ):
        NormalizeTransform(Normalizer(), torch.float16)(sample)
    references = LinearReferences([0.0, *[-5e4] * 118])
    for normalizer, dtype in (
        (Normalizer(references), torch.float16),
        (Normalizer(energy_scale=100.0), torch.float16),
        (Normalizer(), torch.bfloat16),
    ):
        assert NormalizeTransform(normalizer, dtype)(sample).energy_label.isfinite().all()


@pytest.mark.parametrize("empty", [False, True])
def test_a_normalised_sample_shares_no_memory_with_the_raw_one(empty: bool, normalizer: Normalizer, batch: Any) -> None:
    normalizer = Normalizer() if empty else normalizer
    before = batch.clone()
    normalised = normalizer.normalize(batch)
    back = normalizer.denormalize(normalised)
    kept = normalised.clone()
    for changed, untouched, copy in ((back, normalised, kept), (normalised, batch, before)):
        for _, value in changed:
            if isinstance(value, torch.Tensor):
                value.zero_()
        for name, value in untouched:
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, copy[name]), name
