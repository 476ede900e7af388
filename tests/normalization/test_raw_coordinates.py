"""The whole way: stored labels, the density basis, changes of basis, normalised numbers, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyscf")

from ofdft_norm import (
    AtomRef,
    BasisInfo,
    BasisTransforms,
    DimensionWiseRescaling,
    LocalFrames,
    NaturalReparametrization,
    Normalizer,
    project_gradient,
)
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.data.sample import PER_FUNCTION, join_samples
from ofdft_norm.errors import ConfigError
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch

MOLECULES = ("water", "carbon_tetrafluoride", "methane", "acetamide", "hydrogen_cyanide")
CHAINS: dict[str, Any] = {
    "raw": BasisTransforms([]),
    "natrep": BasisTransforms([NaturalReparametrization()]),
    "canonical": BasisTransforms([LocalFrames(), NaturalReparametrization("canonical")]),
    "local_frames": BasisTransforms([LocalFrames()]),
    "local_frames_natrep": BasisTransforms([LocalFrames(), NaturalReparametrization()]),
    "stored": lambda sample: sample,
}


@pytest.fixture(scope="module")
def embedded() -> PackedDataset:
    return PackedDataset([PackedSet(EMBEDDED)], keep_initial_guess=False)


@pytest.fixture(scope="module")
def stored(embedded: PackedDataset) -> list[Any]:
    """Two densities of each of some embedded molecules, in the coordinates of the set."""
    names = [path.name.split(".")[0] for path in embedded.paths]
    first = embedded.sample_offsets
    return [embedded[int(i)] for name in MOLECULES for m in [names.index(name)] for i in (first[m], first[m + 1] - 1)]


def some_normalizer(basis_info: BasisInfo) -> Normalizer:
    rng = np.random.default_rng(0)
    n = basis_info.n_basis
    reference = AtomRef(rng.normal(size=basis_info.n_types) - 40, 0.3, rng.normal(size=n))
    rescaling = DimensionWiseRescaling(rng.normal(size=n), rng.uniform(0.01, 2, n), rng.uniform(0, 5, n))
    return Normalizer(reference, rescaling, 0.7)


@pytest.mark.parametrize("chain", CHAINS)
def test_raw_labels_come_back_from_normalised_ones(chain: str, stored: list[Any]) -> None:
    normalizer = some_normalizer(stored[0].basis_info)
    raw = join_samples([BasisTransforms([])(sample) for sample in stored])
    normalized = join_samples([normalizer.normalize(CHAINS[chain](sample)) for sample in stored])
    back = normalizer.denormalize(normalized, coordinates="raw")
    assert back.coordinates == ["raw"] * len(stored)
    single = {
        "coeffs": normalizer.denormalize_coeffs(normalized.coeffs, normalized, "raw"),
        "gradient_label": normalizer.denormalize_gradient(normalized.gradient_label, normalized, "raw"),
        "dual_basis_integrals": normalizer.denormalize_integrals(normalized.dual_basis_integrals, normalized, "raw"),
    }
    for field in PER_FUNCTION:
        scale = float(raw[field].abs().max())
        torch.testing.assert_close(back[field], raw[field], rtol=0, atol=1e-10 * scale)
        if field in single:
            torch.testing.assert_close(single[field], back[field], rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(back.energy_label, raw.energy_label, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_every_embedded_molecule_comes_back(embedded: PackedDataset) -> None:
    normalizer, transform = some_normalizer(embedded.basis_info), CHAINS["natrep"]
    for i in embedded.sample_offsets[:-1].tolist():
        raw = BasisTransforms([])(embedded[i])
        back = normalizer.denormalize(normalizer.normalize(transform(raw.clone())), "raw")
        for field in PER_FUNCTION:
            torch.testing.assert_close(back[field], raw[field], rtol=0, atol=1e-12 * float(raw[field].abs().max()))


@pytest.mark.parametrize("chain", ["canonical", "stored"])
@pytest.mark.parametrize("target", [None, "raw"])
def test_gradient_difference_is_projected_in_the_coordinates_that_are_asked_for(
    chain: str, target: str | None, stored: list[Any]
) -> None:
    normalizer = some_normalizer(stored[0].basis_info)
    transformed = [CHAINS[chain](sample.clone()) for sample in stored]
    normalized = join_samples([normalizer.normalize(sample) for sample in transformed])
    rng = np.random.default_rng(2)
    predicted = torch.tensor(rng.normal(size=len(normalized.coeffs)), requires_grad=True)
    found = normalizer.gradient_difference(predicted, normalized, target)
    there = [BasisTransforms([])(sample.clone()) for sample in transformed] if target else transformed
    difference = normalizer.denormalize_gradient(predicted.detach(), normalized, target)
    difference = difference - torch.cat([sample.gradient_label for sample in there])
    expected = project_gradient(difference, join_samples(there))
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    (derivative,) = torch.autograd.grad(found.square().sum(), predicted)
    assert derivative.isfinite().all()


@pytest.mark.parametrize("chain", CHAINS)
def test_energy_and_gradient_agree_in_raw_coordinates(chain: str, stored: list[Any]) -> None:
    """Autograd through the whole chain, of a network's energy with respect to coefficients of the density basis."""
    normalizer = some_normalizer(stored[0].basis_info)
    raw = join_samples([BasisTransforms([])(sample) for sample in stored])
    start = BasisTransforms([NaturalReparametrization()]) if chain == "stored" else CHAINS[chain]
    raw.coeffs.requires_grad_()
    normalized = normalizer.normalize(start(raw))
    weights = torch.tensor(np.random.default_rng(1).normal(size=len(raw.coeffs)))

    def network(coeffs: Any) -> Any:
        terms = torch.tanh(weights * coeffs)
        return torch.zeros(len(stored), dtype=torch.float64).index_add(0, normalized.coeffs_batch, terms)

    energies = normalizer.denormalize_energy(network(normalized.coeffs), normalized)
    (through_all,) = torch.autograd.grad(energies.sum(), raw.coeffs)
    own = normalized.coeffs.detach().requires_grad_()
    (predicted,) = torch.autograd.grad(network(own).sum(), own)
    found = normalizer.denormalize_gradient(predicted, normalized, coordinates="raw")
    # epsilon of the rescaling is all that differs
    torch.testing.assert_close(found.detach(), through_all, rtol=1e-6, atol=1e-8 * float(through_all.abs().max()))


def test_single_precision_leaves_equally_near_neighbours_in_their_order(stored: list[Any]) -> None:
    normalizer = some_normalizer(stored[0].basis_info)
    transform = BasisTransforms([LocalFrames(), NaturalReparametrization()])
    raw = join_samples([BasisTransforms([])(sample) for sample in stored])
    batch = join_samples([NormalizeBatch(normalizer, torch.float32)(transform(sample)) for sample in stored])
    assert (batch.pos.dtype, batch.pos_float64.dtype) == (torch.float32, torch.float64)
    back = normalizer.denormalize(batch, "raw")
    for field in PER_FUNCTION:
        error = (back[field] - raw[field]).abs().max() / raw[field].abs().max()
        assert float(error) < 1e-4
    at_once = NormalizeBatch(normalizer, torch.float32)(transform(raw.clone()))  # as data.apply=batch
    for i, sample in enumerate(at_once.to_data_list()):
        assert torch.equal(sample.pos_float64, raw[i].pos)
        assert torch.equal(at_once[i].pos_float64, raw[i].pos)


def test_other_coordinates_than_raw_can_be_asked_for(stored: list[Any]) -> None:
    normalizer = some_normalizer(stored[0].basis_info)
    sample = stored[3]
    found = normalizer.denormalize(normalizer.normalize(CHAINS["raw"](sample.clone())), sample.coordinates)
    torch.testing.assert_close(found.coeffs, sample.coeffs, rtol=0, atol=1e-11 * float(sample.coeffs.abs().max()))
    with pytest.raises(ConfigError, match=r"coordinates 'cartesian'.*'raw'.*local_frames"):
        normalizer.denormalize(normalizer.normalize(sample), "cartesian")
