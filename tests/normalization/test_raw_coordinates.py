"""The whole way: stored labels, the density basis, changes of basis, normalised numbers, and back."""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyscf")

from ofdft_norm import BasisTransforms, LocalFrames, NaturalReparametrization, project_gradient
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
def stored() -> list[Any]:
    """Two densities of each of some embedded molecules, in the coordinates of the set."""
    embedded = PackedDataset([PackedSet(EMBEDDED)], keep_initial_guess=False)
    names, first = [path.name.split(".")[0] for path in embedded.paths], embedded.sample_offsets
    return [embedded[int(i)] for m in map(names.index, MOLECULES) for i in (first[m], first[m + 1] - 1)]


@pytest.mark.parametrize("chain", CHAINS)
def test_raw_labels_come_back_from_normalised_ones(chain, stored, make_normalizer):
    normalizer = make_normalizer(stored[0].basis_info)
    raw = join_samples([BasisTransforms([])(sample) for sample in stored])
    normalized = join_samples([normalizer.normalize(CHAINS[chain](sample)) for sample in stored])
    back = normalizer.denormalize(normalized, coordinates="raw")
    assert back.coordinates == ["raw"] * len(stored)
    for field in PER_FUNCTION:
        torch.testing.assert_close(back[field], raw[field], rtol=0, atol=1e-10 * float(raw[field].abs().max()))
    for field, method in (("coeffs", "coeffs"), ("gradient_label", "gradient"), ("dual_basis_integrals", "integrals")):
        single = getattr(normalizer, f"denormalize_{method}")(normalized[field], normalized, "raw")
        torch.testing.assert_close(single, back[field], rtol=0, atol=1e-12 * float(raw[field].abs().max()))
    torch.testing.assert_close(back.energy_label, raw.energy_label, rtol=1e-12, atol=0)
    predicted = torch.linspace(-1, 1, len(raw.coeffs), dtype=torch.float64)
    for target, labels in (("raw", raw), (None, normalizer.denormalize(normalized))):
        difference = normalizer.denormalize_gradient(predicted, normalized, target) - labels.gradient_label
        expected = project_gradient(difference, labels)  # in the coordinates that are asked for
        found = normalizer.gradient_difference(predicted, normalized, target)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
        assert not normalizer.gradient_difference(normalized.gradient_label, normalized, target).any()


@pytest.mark.parametrize("chain", CHAINS)
def test_energy_and_gradient_agree_in_raw_coordinates(chain, stored, make_normalizer):
    """Autograd through the whole chain, of a network's energy with respect to coefficients of the density basis."""
    normalizer = make_normalizer(stored[0].basis_info)
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


def test_single_precision_leaves_equally_near_neighbours_in_their_order(stored, make_normalizer):
    normalizer = make_normalizer(stored[0].basis_info)
    transform = BasisTransforms([LocalFrames(), NaturalReparametrization()])
    raw = join_samples([BasisTransforms([])(sample) for sample in stored])
    batch = join_samples([NormalizeBatch(normalizer, torch.float32)(transform(sample)) for sample in stored])
    assert (batch.pos.dtype, batch.pos_float64.dtype) == (torch.float32, torch.float64)
    back = normalizer.denormalize(batch, "raw")
    for field in PER_FUNCTION:
        error = (back[field] - raw[field]).abs().max() / raw[field].abs().max()
        assert float(error) < 1e-4
    at_once = NormalizeBatch(normalizer, torch.float32)(transform(raw.clone()))  # as data.apply=batch
    assert all(torch.equal(at_once[i].pos_float64, raw[i].pos) for i in range(len(stored)))


def test_other_coordinates_than_raw_can_be_asked_for(stored, make_normalizer):
    normalizer = make_normalizer(stored[0].basis_info)
    sample = stored[3]
    found = normalizer.denormalize(normalizer.normalize(CHAINS["raw"](sample.clone())), sample.coordinates)
    torch.testing.assert_close(found.coeffs, sample.coeffs, rtol=0, atol=1e-11 * float(sample.coeffs.abs().max()))
    with pytest.raises(ConfigError, match=r"coordinates 'cartesian'.*'raw'.*local_frames"):
        normalizer.denormalize(normalizer.normalize(sample), "cartesian")
