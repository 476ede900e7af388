"""Density optimisation on toy functionals with known minima, and the exact terms of the energy against labels."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyscf")

import optimize_density as optimize_density_script
from optimize_density import (
    N_STAYS,
    format_optimizations,
    group_samples,
    minimize,
    optimize_density,
    plot_optimizations,
)

from ofdft_norm import BasisInfo, BasisTransforms, Normalizer, OFData
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.errors import BasisError, BatchError, ConfigError
from ofdft_norm.example import ExactTerms
from ofdft_norm.labelling import make_labels, read_geometries

BASIS = BasisInfo([1], ["2x0e+1x1o"])


def quadratic(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A positive matrix A, b, integrals w, and a start of an energy p.A p / 2 - b.p."""
    torch.manual_seed(0)
    root = torch.randn(n, n, dtype=torch.float64)
    b, w, start = torch.randn(3, n, dtype=torch.float64)
    return root @ root.T + torch.eye(n, dtype=torch.float64), 0.3 * b, w, 0.3 * start


def constrained_minimum(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor, electrons: float) -> np.ndarray:
    """Solves A p - b = mu w with w.p = N."""
    n = len(b)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n], system[:n, n], system[n, :n] = a.numpy(), -w.numpy(), w.numpy()
    return np.linalg.solve(system, np.append(b.numpy(), electrons))[:n]


def test_a_quadratic_functional_is_minimised_at_a_constant_number_of_electrons():
    a, b, w, start = quadratic(12)
    path = minimize(lambda p: 0.5 * p @ a @ p - b @ p, start, w)
    error = path.coeffs.numpy() - constrained_minimum(a, b, w, float(w @ start))
    assert np.linalg.norm(error) < optimize_density_script.SMALL_GRADIENT  # the smallest eigenvalue of A is above 1
    assert path.converged
    assert len(path.energies) == path.final_step + N_STAYS + 1


def test_functionals_without_a_minimum_do_not_converge():
    _, b, w, start = quadratic(5)
    assert not minimize(lambda p: b @ p, start, w, max_steps=60).converged
    flat = minimize(lambda p: -p @ p, 1e-3 * start, w, max_steps=80)  # a small gradient, then it runs away
    assert flat.final_step == 0
    assert flat.gradient_norms[0] < optimize_density_script.SMALL_GRADIENT
    assert not flat.converged
    assert len(minimize(lambda p: -9 * p @ p, start, w).energies) < 100  # it ends where the energy runs away


def test_optimisation_of_a_sample_finds_the_density_of_the_label(monkeypatch):
    a, b, w, start = quadratic(10)
    truth = torch.from_numpy(constrained_minimum(a, b, w, 2.0))  # the molecule has two electrons

    class ToyTerms:
        def __init__(self, sample: Any, xc: str | None, grid_level: int) -> None:
            assert (sample.mol_id, xc, grid_level) == ("hydrogen", None, 1)

        def __call__(self, coeffs: torch.Tensor) -> torch.Tensor:
            return 0.5 * coeffs @ a @ coeffs

    monkeypatch.setattr(optimize_density_script, "ExactTerms", ToyTerms)
    model: Any = SimpleNamespace(normalizer=Normalizer(), network=lambda batch, coeffs: -(b @ coeffs).reshape(1))
    options = {"ground_state_coeffs": truth, "dual_basis_integrals": w, "mol_id": "hydrogen"}
    labelled = {"energy_label": [float(-b @ truth)], "gradient_label": -b}
    samples = [
        OFData.construct_new(BASIS, np.eye(2, 3), [1, 1], start, **options),
        OFData.construct_new(BASIS, np.eye(2, 3), [1, 1], truth, **labelled, **options),
    ]
    [group] = group_samples(samples)
    found = optimize_density(model, group, "e_kin_plus_xc", np.array([4.0, 1.0, 2.0, 0.5, 1.0]))
    assert found.energy_error == pytest.approx(0, abs=1e-3)
    assert found.density_error < 0.1
    assert found.initial_density_error == pytest.approx(float((start - truth).norm()))
    _, final, initial = (line.split() for line in format_optimizations({"test": [found]}).splitlines())
    assert final[:5] == ["test", "1", "of", "1", str(found.path.final_step)]
    assert float(final[5]) == pytest.approx(1e3 * abs(found.energy_error), abs=0.05)
    assert float(initial[-2]) == pytest.approx(found.initial_density_error, abs=5e-4)
    assert len(plot_optimizations({"test": [found]}).axes) == 2
    for key, own, message in (("e_kin", samples[:1], "0 ground states"), ("e_tot", samples, "e_tot in hartree")):
        with pytest.raises(ConfigError, match=rf"'hydrogen'.*{message}"):
            optimize_density(model, own, key, np.ones(5))


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
    without_xc = labels.energies["e_tot"][3] - labels.energies["e_kin_plus_xc"][3]
    assert float(ExactTerms(sample, xc=None)(sample.coeffs)) == pytest.approx(without_xc, abs=1e-7)


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
