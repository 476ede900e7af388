"""A normaliser as plain data: back to the last bit, with its differences from another in words."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
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
from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.state import describe_difference, normalizer_from_state, normalizer_to_state
from ofdft_norm.normalization.training_range import TrainingRange


def normalizers(basis: BasisInfo) -> dict[str, Normalizer]:
    rng, n = np.random.default_rng(0), basis.n_basis
    values = rng.normal(size=n), rng.uniform(0.1, 2, n), rng.uniform(0, 5, n)
    data = [
        Data(z=torch.tensor(z), energy=float(rng.normal()), dataset=name)
        for z in ([1], [8], [1, 8], [1, 1, 8])
        for name in ("a", "b")
    ]
    atomic = AtomRef(rng.normal(size=3), 0.1, rng.normal(size=n), output_dtype="input")
    seen = torch.zeros(119, dtype=torch.bool).index_fill(0, torch.tensor([1, 8]), True)
    training_range = TrainingRange(np.zeros(n), np.ones(n), np.ones(n))
    rescaling = DimensionWiseRescaling(*values, s_coeff=7, s_grad=0.3, epsilon=0.0)
    full: dict[str, Any] = {"coordinates": "raw", "training_range": training_range, "unit": "eV"}
    fitted = fit_linear_references(["energy"], data, 4, unseen_elements="zero")["energy"]
    return {
        "empty": Normalizer(),
        "atomic": Normalizer(atomic, rescaling, 0.37, seen, "y", "forces", basis, **full),
        "linear": Normalizer(fitted, None, 2.0),
        "given": Normalizer(LinearReferences(torch.tensor([0.0, -0.5]), atomic_numbers_field="species")),
        "by_dataset": Normalizer(fit_references_by_dataset(["energy"], data)["energy"]),
    }


KINDS = ["empty", "atomic", "linear", "given", "by_dataset"]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("kind", KINDS)
def test_states_survive_a_file_to_the_last_bit(kind: str, basis_info: Any) -> None:
    normalizer = normalizers(basis_info)[kind]
    state = normalizer_to_state(normalizer)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    rebuilt = normalizer_from_state(torch.load(file, weights_only=True))
    assert equal(normalizer_to_state(rebuilt), state)
    assert describe_difference(normalizer_to_state(rebuilt), state) == ""
    for (name, a), (_, b) in zip(normalizer.named_buffers(), rebuilt.named_buffers(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    for name in ("energy_field", "forces_field", "basis_info", "coordinates", "unit"):
        assert getattr(rebuilt, name) == getattr(normalizer, name)
    report = getattr(normalizer.reference, "fit_report", None)
    assert getattr(rebuilt.reference, "fit_report", None) == report
    if kind == "atomic":
        assert rebuilt.reference.output_dtype == "input"
        assert (rebuilt.rescaling.s_coeff, rebuilt.rescaling.s_grad, rebuilt.rescaling.epsilon) == (7, 0.3, 0)
    if kind == "by_dataset":
        assert rebuilt.reference.summary() == normalizer.reference.summary()
        assert rebuilt.reference.residuals == normalizer.reference.residuals


def test_differences_are_named(basis_info: Any) -> None:
    states = {kind: normalizer_to_state(normalizer) for kind, normalizer in normalizers(basis_info).items()}
    text = describe_difference(states["atomic"], states["linear"])
    for part in ("reference: 'AtomRef' against 'LinearReferences'", "rescaling: 'DimensionWiseRescaling' against None"):
        assert part in text
    assert "unit: 'eV' against 'hartree'" in text
    changed = copy.deepcopy(states["atomic"])
    changed["parts"]["rescaling"]["values"]["coeff_stds"][3] += 1e-3
    changed["parts"]["rescaling"]["settings"]["s_grad"] = 0.4
    text = describe_difference(states["atomic"], changed)
    assert text == "rescaling.coeff_stds: differs by up to 0.001; rescaling.s_grad: 0.3 against 0.4"


def test_states_of_other_versions_are_refused_by_name(basis_info: Any) -> None:
    state = normalizer_to_state(normalizers(basis_info)["atomic"])
    older = {"state_version": 1, "package_version": "0.2.0", "reference": None, "rescaling": None}
    for other in (older, {**state, "version": 3, "package_version": "0.2.0"}):
        with pytest.raises(NormalizationError, match=r"written by ofdft-norm 0\.2\.0"):
            normalizer_from_state(other)
    state["parts"]["reference"]["class"] = "os.system"
    with pytest.raises(NormalizationError, match=r"class 'os\.system'"):
        normalizer_from_state(state)
