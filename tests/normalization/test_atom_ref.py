from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import AtomRef, BasisInfo, DatasetStatistics
from ofdft_norm.errors import ConfigError, StatisticsError


def naive_energy(basis: BasisInfo, sample: Any, t_z: Any, t_global: float, g_z: Any) -> float:
    """E_ref = sum_mu gbar p_mu + sum_atoms t_Z + t_0, atom after atom."""
    energy, position = float(t_global), 0
    for z in sample.atomic_numbers.tolist():
        element = basis.atomic_numbers.tolist().index(z)
        energy += float(t_z[element])
        for b in basis.atom_ind_to_basis_function_ind[element]:
            energy += float(g_z[b]) * float(sample.coeffs[position])
            position += 1
    return energy


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_energies_equal_a_loop_over_atoms_and_gradients_their_derivative(
    data: st.DataObject, dtype: torch.dtype, some_samples: Any, make_batch: Any
) -> None:
    basis, samples, rng = data.draw(some_samples)
    for sample in samples:
        sample.coeffs = sample.coeffs.to(dtype)
    t_z, t_global, g_z = rng.normal(size=basis.n_types) - 40, rng.normal(), rng.normal(size=basis.n_basis)
    reference = AtomRef(t_z, t_global, g_z)
    expected = [naive_energy(basis, sample, t_z, t_global, g_z) for sample in samples]
    batch = make_batch(samples)
    batch.coeffs = batch.coeffs.clone().requires_grad_()
    energies = reference.sample_forward(batch)
    assert energies.dtype == torch.float64
    assert energies.tolist() == pytest.approx(expected, rel=1e-13, abs=1e-11)
    assert [float(reference(s)) for s in samples] == pytest.approx(expected, rel=1e-13, abs=1e-11)
    (gradient,) = torch.autograd.grad(energies.sum(), batch.coeffs)
    assert torch.equal(gradient, reference.gradient(batch).to(dtype))


@pytest.mark.parametrize("name", ["t_z", "t_global", "g_z"])
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    values: dict[str, Any] = {"t_z": [0.0, 1.0], "t_global": [0.0], "g_z": np.zeros(4)}
    for wrong in (np.inf, 1j):
        with pytest.raises(StatisticsError, match=rf"AtomRef: {name} "):
            AtomRef(**{**values, name: np.array([*values[name][1:], wrong])})


def some_statistics(n_types: int, n_basis: int, rng: np.random.Generator) -> DatasetStatistics:
    arrays = {"gradient_label/mean": rng.normal(size=n_basis)}
    for name in ("atom_ref", "scalar_atom_ref"):
        arrays[f"{name}_atom_type_bias"] = rng.normal(size=n_types)
        arrays[f"{name}_global_bias"] = np.array(rng.normal())
    return DatasetStatistics.from_arrays({f"constant/{key}": value for key, value in arrays.items()})


@given(data=st.data(), scalar_only=st.booleans())
def test_values_come_from_the_statistics(data: st.DataObject, scalar_only: bool, some_bases: Any) -> None:
    basis = data.draw(some_bases)
    statistics = some_statistics(basis.n_types, basis.n_basis, np.random.default_rng(0))
    reference = AtomRef.from_dataset_statistics(statistics, basis, "constant", scalar_only)
    prefix = "scalar_atom_ref" if scalar_only else "atom_ref"
    gbar = statistics.load_statistic("constant", "gradient_label/mean")
    expected = [g if l == 0 or not scalar_only else 0.0 for g, l in zip(gbar, basis.l_per_basis_func, strict=True)]
    assert reference.g_z.tolist() == expected
    assert reference.t_z.tolist() == statistics.load_statistic("constant", f"{prefix}_atom_type_bias").tolist()
    assert float(reference.t_global) == float(statistics.load_statistic("constant", f"{prefix}_global_bias"))


def test_errors_from_statistics(basis_info: Any) -> None:
    statistics = some_statistics(3, basis_info.n_basis, np.random.default_rng(0))
    build = AtomRef.from_dataset_statistics
    with pytest.raises(StatisticsError, match="has_energy_label"):
        build(statistics, basis_info)
    with pytest.raises(ConfigError, match="scalar_only=True needs basis_info"):
        build(statistics, weigher_key="constant", scalar_only=True)
    with pytest.raises(StatisticsError, match="2 functions"):
        build(statistics, BasisInfo([1], ["2x0e"]), "constant")


def test_state_dicts_go_both_ways(caplog: Any) -> None:
    ours = AtomRef(torch.tensor([1.0, 2.0]), 0.5, torch.tensor([3.0, 4.0, 5.0]))
    theirs = torch.nn.Module()  # STRUCTURES25's constant is an attribute
    theirs.register_buffer("t_z", torch.zeros(2))
    theirs.register_buffer("g_z", torch.zeros(3))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert (theirs.t_z.tolist(), theirs.g_z.tolist()) == ([1.0, 2.0], [3.0, 4.0, 5.0])
    own = AtomRef(torch.zeros(2), 0.0, torch.zeros(3))
    own.load_state_dict(ours.state_dict())
    assert not caplog.records
    assert float(own.t_global) == 0.5
    own.load_state_dict(theirs.state_dict(), strict=True)
    assert "0.5 hartree stays" in caplog.text
    assert (own.t_z.tolist(), float(own.t_global)) == ([1.0, 2.0], 0.5)
