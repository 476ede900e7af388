"""Density optimisation on toy functionals with known minima, and the exact terms of the energy against labels."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyscf")

from ofdft_norm import BasisInfo, BasisTransforms, Normalizer, OFData
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.errors import BasisError, BatchError, ConfigError
from ofdft_norm.example import ExactTerms, density_optimization
from ofdft_norm.example.density_optimization import (
    N_STAYS,
    format_optimizations,
    group_samples,
    minimize,
    optimize_density,
    plot_optimizations,
)
from ofdft_norm.labelling import make_labels, read_geometries

BASIS = BasisInfo([1], ["2x0e+1x1o"])


def quadratic(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A positive matrix A, b, integrals w, and a start of an energy p.A p / 2 - b.p."""
    torch.manual_seed(0)
    root = torch.randn(n, n, dtype=torch.float64)
    b, w, start = torch.randn(3, n, dtype=torch.float64)
    return root @ root.T + torch.eye(n, dtype=torch.float64), b, w, start


def constrained_minimum(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor, electrons: float) -> np.ndarray:
    """Solves A p - b = mu w with w.p = N."""
    n = len(b)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n], system[:n, n], system[n, :n] = a.numpy(), -w.numpy(), w.numpy()
    return np.linalg.solve(system, np.append(b.numpy(), electrons))[:n]


def test_a_quadratic_functional_is_minimised_at_a_constant_number_of_electrons():
    a, b, w, start = quadratic(12)
    path = minimize(lambda p: 0.5 * p @ a @ p - b @ p, start, w)
    np.testing.assert_allclose(path.coeffs, constrained_minimum(a, b, w, float(w @ start)), atol=1e-4)
    assert path.steps_to_converge is not None
    assert len(path.energies) == path.steps_to_converge + N_STAYS + 1


def test_functionals_without_a_minimum_do_not_converge():
    _, b, w, start = quadratic(5)
    assert minimize(lambda p: b @ p, start, w, max_steps=60).steps_to_converge is None
    flat = minimize(lambda p: -p @ p, 1e-4 * start, w, max_steps=80)  # a small gradient, then it runs away
    assert flat.gradient_norms[0] < density_optimization.SMALL_GRADIENT
    assert flat.steps_to_converge is None


def test_optimisation_of_a_sample_finds_the_density_of_the_label(monkeypatch):
    a, b, w, start = quadratic(10)
    truth = torch.from_numpy(constrained_minimum(a, b, w, float(w @ start)))

    class ToyTerms:
        def __init__(self, sample: Any, grid_level: int) -> None:
            assert sample.mol_id == "hydrogen"

        def __call__(self, coeffs: torch.Tensor) -> torch.Tensor:
            return 0.5 * coeffs @ a @ coeffs

    monkeypatch.setattr(density_optimization, "ExactTerms", ToyTerms)
    model: Any = SimpleNamespace(normalizer=Normalizer(), network=lambda batch, coeffs: -(b @ coeffs).reshape(1))
    options = {"ground_state_coeffs": truth, "dual_basis_integrals": w, "mol_id": "hydrogen"}
    labelled = {"energy_label": [float(-b @ truth)], "gradient_label": -b}
    samples = [
        OFData.construct_new(BASIS, np.eye(2, 3), [1, 1], start, **options),
        OFData.construct_new(BASIS, np.eye(2, 3), [1, 1], truth, **labelled, **options),
    ]
    [group] = group_samples(samples)
    found = optimize_density(model, group)
    assert found.energy_error == pytest.approx(0, abs=1e-6)
    assert found.density_error < 1e-3
    assert found.initial_density_error == pytest.approx(float((start - truth).norm()))
    row = format_optimizations({"test": [found]}).splitlines()[1].split()
    assert row[:4] == ["test", "1", "of", "1"]
    assert row[5:7] == ["0.0", "0.000"]
    assert len(plot_optimizations({"test": [found]}).axes) == 2
    with pytest.raises(ConfigError, match=r"'hydrogen'.*0 ground states"):
        optimize_density(model, samples[:1])


# --- exact terms -----


def labelled(name: str) -> OFData:
    """A labelled sample of an embedded molecule, in the density basis."""
    packed = PackedSet(EMBEDDED)
    index = np.array([packed.names().index(f"{name}.zarr.zip")])
    return PackedDataset([packed], [index], transform=BasisTransforms([]))[3]


def test_exact_terms_are_the_total_energy_minus_the_kinetic_label(tmp_path):
    (tmp_path / "hf.xyz").write_text("2\n\nH 0 0 0\nF 0 0 0.92\n")
    labels = make_labels(read_geometries(tmp_path / "hf.xyz")[0])
    basis = PackedSet(EMBEDDED).basis_info
    sample = OFData.construct_new(basis, labels.positions, labels.atomic_numbers, labels.coeffs[3])
    expected = labels.energies["e_tot"][3] - labels.energies["e_kin"][3]
    assert float(ExactTerms(sample)(sample.coeffs)) == pytest.approx(expected, abs=1e-7)


def test_the_derivative_of_exact_terms_is_that_of_finite_differences():
    raw = labelled("hydrogen_fluoride")
    exact = ExactTerms(raw, grid_level=0)
    p = raw.coeffs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(3.0 * exact(p), p)
    direction = torch.randn(len(p), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction *= raw.coeffs.abs()
    step = 1e-4
    change = (exact(raw.coeffs + step * direction) - exact(raw.coeffs - step * direction)) / (2 * step)
    assert float(gradient @ direction) == pytest.approx(3.0 * float(change), rel=1e-6)


def test_several_molecules_and_a_basis_without_exponents_are_refused(make_batch):
    sample = labelled("water")
    with pytest.raises(BatchError, match="the batch has 2"):
        ExactTerms(make_batch([sample, labelled("ammonia")]))
    sample.basis_info = BasisInfo(sample.basis_info.atomic_numbers, sample.basis_info.irreps_per_atom)
    with pytest.raises(BasisError, match=r"'water'.*exponents.*data\.source\.basis_info"):
        ExactTerms(sample)
