"""A normaliser as plain data: back to the last bit, with its differences from another in words."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from ofdft_norm import BasisInfo, LinearReferences, Normalizer, fit_linear_references, fit_references_by_dataset
from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.state import describe_difference, normalizer_from_state, normalizer_to_state
from ofdft_norm.normalization.training_range import TrainingRange
from tests.normalization.conftest import random_normalizer


def normalizers(basis: BasisInfo) -> dict[str, Normalizer]:
    rng, n = np.random.default_rng(0), basis.n_basis
    both = itertools.product(([1], [8], [1, 8], [1, 1, 8]), "ab")
    data = [Data(z=torch.tensor(z), energy=float(rng.normal()), dataset=name) for z, name in both]
    seen = torch.zeros(119, dtype=torch.bool).index_fill(0, torch.tensor([1, 8]), True)
    full = {"seen_elements": seen, "energy_field": "y", "forces_field": "forces", "basis_info": basis, "unit": "eV"}
    training_range = TrainingRange(np.zeros(n), np.ones(n), np.ones(n))
    fitted = fit_linear_references(["energy"], data, 4, unseen_elements="zero")["energy"]
    atomic = random_normalizer(basis, 0, epsilon=0.0, coordinates="raw", training_range=training_range, **full)
    atomic.reference.output_dtype = "input"
    return {
        "empty": Normalizer(),
        "atomic": atomic,
        "linear": Normalizer(fitted, None, 2.0),
        "given": Normalizer(LinearReferences(torch.tensor([0.0, -0.5]), atomic_numbers_field="species")),
        "by_dataset": Normalizer(fit_references_by_dataset(["energy"], data)["energy"]),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("kind", ["empty", "atomic", "linear", "given", "by_dataset"])
def test_states_survive_a_file_to_the_last_bit(kind: str, basis_info: Any) -> None:
    normalizer = normalizers(basis_info)[kind]
    state = normalizer_to_state(normalizer)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    rebuilt = normalizer_from_state(torch.load(file, weights_only=True))
    assert equal(normalizer_to_state(rebuilt), state)
    assert describe_difference(normalizer_to_state(rebuilt), state) == ""
    assert equal(dict(rebuilt.named_buffers()), dict(normalizer.named_buffers()))
    names = {
        "": ("energy_field", "forces_field", "basis_info", "coordinates", "unit"),
        "reference": ("fit_report", "output_dtype", "residuals", "names", "unseen_elements", "atomic_numbers_field"),
        "rescaling": ("s_coeff", "s_grad", "epsilon"),
    }
    for part, own in names.items():
        a, b = (getattr(n, part) if part else n for n in (rebuilt, normalizer))
        assert all(getattr(a, name, None) == getattr(b, name, None) for name in own)


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
    assert text == "rescaling.coeff_stds: differs by up to 0.001; rescaling.s_grad: 0.05 against 0.4"


def test_states_of_other_versions_are_refused_by_name(basis_info: Any) -> None:
    state = normalizer_to_state(normalizers(basis_info)["atomic"])
    older = {"state_version": 1, "package_version": "0.2.0", "reference": None, "rescaling": None}
    for other in (older, {**state, "version": 3, "package_version": "0.2.0"}):
        with pytest.raises(NormalizationError, match=r"written by ofdft-norm 0\.2\.0"):
            normalizer_from_state(other)
    state["parts"]["reference"]["class"] = "os.system"
    with pytest.raises(NormalizationError, match=r"class 'os\.system'"):
        normalizer_from_state(state)
