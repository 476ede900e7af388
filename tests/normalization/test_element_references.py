"""LinearReferences: applied, inverted, stored; and, like AtomRef, one function with its derivative."""

import copy
import io
import itertools
import math
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.atom_ref import AtomRef
from ofdft_norm.normalization.element_references import LinearReferences
from ofdft_norm.normalization.fit_linear_references import fit_linear_references
from ofdft_norm.normalization.given_references import create_element_references, references_from_values
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics

VALUES = {1: -0.5, 6: -37.8, 8: -75.1}


def vector(values=VALUES, length=119):
    references = torch.zeros(length, dtype=torch.float64)
    for z, value in values.items():
        references[z] = value
    return references


def batch_of(*molecules):
    return Batch.from_data_list([Data(pos=torch.zeros(len(z), 3), atomic_numbers=torch.tensor(z)) for z in molecules])


def fitted():
    data = [Data(z=torch.tensor([6] + [1] * n), energy=-37.8 - 0.5 * n + 0.01 * n**2) for n in range(5)]
    return fit_linear_references(["energy"], data, 2)["energy"]


@given(
    st.lists(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=6), min_size=1, max_size=5), st.booleans()
)
def test_references_are_sums_over_atoms_and_invert(molecules, column):
    references = LinearReferences(vector())
    batch = batch_of(*molecules)
    target = torch.arange(len(molecules), dtype=torch.float64)
    target = target[:, None] if column else target
    expected = torch.tensor([sum(VALUES[z] for z in molecule) for molecule in molecules], dtype=torch.float64)
    added = references(target, batch)
    torch.testing.assert_close(added, target + expected.reshape(target.shape), rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(references.dereference(added, batch), target, rtol=0, atol=1e-12)
    assert added.dtype == torch.float64


def test_a_single_sample_and_the_field_z_work():
    references = LinearReferences(vector())
    assert references(torch.zeros(1), Data(z=torch.tensor([8, 1, 1]))).item() == pytest.approx(-76.1, abs=1e-13)
    named = LinearReferences(vector(), atomic_numbers_field="species")
    assert named(torch.zeros(1), Data(species=torch.tensor([8]), z=torch.tensor([1]))).item() == -75.1


def test_targets_of_other_shapes_and_samples_without_elements_are_refused():
    references = LinearReferences(vector())
    with pytest.raises(BatchError, match=r"the target has shape \(3,\), expected \(2,\) or \(2, 1\)"):
        references(torch.zeros(3), batch_of([1], [1]))
    with pytest.raises(BatchError, match=r"need the field 'atomic_numbers' .or 'z'."):
        references(torch.zeros(1), Data(pos=torch.zeros(1, 3)))


def test_unseen_elements_are_refused_or_zero():
    batch = batch_of([1, 7], [9])
    with pytest.raises(
        NormalizationError, match=r"no reference energy for the elements \[7, 9\].*unseen_elements = .zero."
    ):
        LinearReferences(vector()).energy(batch)
    batch.mol_id = ["ammonia", "hydrogen_fluoride"]
    with pytest.raises(NormalizationError, match=r"^molecules \['ammonia', 'hydrogen_fluoride'\]: no reference energy"):
        LinearReferences(vector()).energy(batch)
    assert LinearReferences(vector(), unseen_elements="zero").energy(batch).tolist() == [-0.5, 0.0]
    for number in (0, -1, 9):
        with pytest.raises(NormalizationError, match=rf"atomic numbers \[{number}\] are outside 1 ... 8"):
            LinearReferences(vector(length=9), 8, unseen_elements="zero").energy(Data(z=torch.tensor([number])))


def test_an_element_whose_reference_is_zero_is_not_unseen_if_it_was_fitted():
    data = [Data(z=torch.tensor([1] * n), energy=0.0) for n in (1, 2)]
    assert fit_linear_references(["energy"], data, 2)["energy"].energy(Data(z=torch.tensor([1, 1]))).tolist() == [0.0]


def test_bad_arguments_are_refused():
    with pytest.raises(StatisticsError, match=r"shape \(5, 2\), expected a vector"):
        LinearReferences(torch.zeros(5, 2))
    with pytest.raises(StatisticsError, match=r"seen_elements has shape \(4,\), expected .* \(5,\)"):
        LinearReferences(torch.zeros(5), seen_elements=torch.ones(4))
    with pytest.raises(StatisticsError, match=r"value -0.5 at index 0, .*which other programs ignore: put 0 there"):
        create_element_references(state_dict={"element_references": vector({0: -0.5, 1: 1.0})})
    with pytest.raises(StatisticsError, match="not finite"):
        LinearReferences(vector({1: math.nan}))
    with pytest.raises(ConfigError, match="unseen_elements = 'skip': expected 'error' or 'zero'"):
        LinearReferences(vector(), unseen_elements="skip")


# --- one function and its derivative ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["atom_ref", "scalar_atom_ref", "linear", "values", "none"])
def test_what_leaves_energy_and_gradient_is_one_function_and_its_derivative(kind, basis_info, make_sample, make_batch):
    rng = np.random.default_rng(5)
    n = basis_info.n_basis
    gbar = rng.normal(size=n)
    statistics = DatasetStatistics.from_arrays(
        {
            "w/gradient_label/mean": gbar,
            **{
                f"w/{name}_atom_type_bias": rng.normal(size=3) for name in ("atom_ref", "scalar_atom_ref", "linear_ref")
            },
            "w/atom_ref_global_bias": np.array(0.3),
            "w/scalar_atom_ref_global_bias": np.array(-0.7),
            "w/n_atoms": np.array([3, 4, 5]),
        }
    )
    reference = {
        "atom_ref": lambda: AtomRef.from_dataset_statistics(statistics, basis_info, "w"),
        "scalar_atom_ref": lambda: AtomRef.from_dataset_statistics(statistics, basis_info, "w", scalar_only=True),
        "linear": lambda: LinearReferences.from_dataset_statistics(statistics, basis_info, "w"),
        "values": lambda: references_from_values({"H": -0.5, "C": -37.8, "O": -75.1}),
        "none": lambda: None,
    }[kind]()
    scale = 0.25
    normalizer = Normalizer(reference, energy_scale=scale)
    batch = make_batch([make_sample(basis_info, rng) for _ in range(3)])
    out = normalizer.normalize(batch)
    removed_gradient = batch.gradient_label - scale * out.gradient_label

    def removed_energy(coeffs):
        changed = copy.copy(batch)
        changed.coeffs = coeffs
        return (changed.energy_label - scale * normalizer.normalize(changed).energy_label).sum()

    coeffs = batch.coeffs.clone().requires_grad_()
    energy = removed_energy(coeffs)
    derivative = torch.autograd.grad(energy, coeffs)[0] if energy.requires_grad else torch.zeros_like(coeffs)
    torch.testing.assert_close(derivative, removed_gradient, rtol=0, atol=1e-12)
    if kind == "atom_ref":
        torch.testing.assert_close(removed_gradient, torch.as_tensor(gbar)[batch.basis_function_ind])
    elif kind == "scalar_atom_ref":
        scalar = torch.as_tensor(basis_info.l_per_basis_func == 0)[batch.basis_function_ind]
        assert removed_gradient[~scalar].abs().max() < 1e-12 < removed_gradient[scalar].abs().max()
    else:
        assert removed_gradient.abs().max() < 1e-12


def test_a_molecule_is_never_referenced_twice(basis_info, make_sample):
    sample = make_sample(basis_info, np.random.default_rng(0))
    normalizer = Normalizer(references_from_values({"H": -0.5, "C": -37.8, "O": -75.1}))
    with pytest.raises(NormalizationError, match="normalised already"):
        normalizer.normalize(normalizer.normalize(sample))


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_training_in_low_precision_costs_energies_nothing(dtype, basis_info, make_sample, make_batch):
    rng = np.random.default_rng(1)
    values = {"H": -1234.567890123, "C": -2345.678901234, "O": -3456.789012345}
    samples = [make_sample(basis_info, rng, energy_label=np.array([-1e4 + rng.normal()])) for _ in range(8)]
    batch = make_batch(samples)
    normalizer = Normalizer(references_from_values(values), energy_scale=0.37).to(dtype)
    out = normalizer.normalize(batch)
    with torch.autocast("cpu", dtype=dtype if dtype != torch.float32 else torch.bfloat16):
        back = normalizer.denormalize_energy(out.energy_label, out)
    torch.testing.assert_close(back, batch.energy_label, rtol=0, atol=1e-9)


def test_dtype_changes_move_nothing_and_meta_devices_do_not_crash():
    references = LinearReferences(vector())
    for change in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float(), lambda m: m.double()):
        changed = change(LinearReferences(vector()))
        assert torch.equal(changed.element_references, references.element_references)
        assert changed.element_references.dtype == torch.float64
    meta = LinearReferences(vector()).to("meta")
    assert meta.element_references.device.type == "meta"
    materialised = meta.to_empty(device="cpu")
    materialised.load_state_dict(references.state_dict())
    assert torch.equal(materialised.element_references, references.element_references)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree():
    references = LinearReferences(vector())
    batch = batch_of(*[[8, 1, 1, 6] * n for n in range(1, 50)])
    expected = references(torch.zeros(49), batch)
    found = references.to("cuda")(torch.zeros(49, device="cuda"), batch.to("cuda")).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# --- state and files --------------------------------------------------------------------------------------------------


def test_state_dicts_round_trip_with_the_fit_report():
    references = fitted()
    file = io.BytesIO()
    torch.save(references.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    loaded = LinearReferences()
    loaded.load_state_dict(state)
    assert torch.equal(loaded.element_references, references.element_references)
    assert torch.equal(loaded.seen_elements, references.seen_elements)
    assert loaded.fit_report == references.fit_report
    assert str(loaded.summary()) == str(references.summary())
    created = create_element_references(state_dict=state)
    assert created.fit_report == references.fit_report
    assert pickle.loads(pickle.dumps(references)).fit_report == references.fit_report


def test_references_inside_other_modules_keep_their_report():
    normalizer = Normalizer(fitted())
    other = Normalizer(LinearReferences())
    other.load_state_dict(normalizer.state_dict())
    assert other.reference.fit_report == normalizer.reference.fit_report


def test_state_dicts_of_fairchem_load_strictly():
    references = fitted()
    references.load_state_dict({"element_references": vector()})
    assert references.fit_report is None
    assert references.seen_elements.nonzero().squeeze(1).tolist() == sorted(VALUES)
    assert set(references.state_dict()) == {"element_references"}


class Fairchem(torch.nn.Module):
    """What fairchem's class of this name is to a state dict."""

    def __init__(self, element_references):
        super().__init__()
        self.register_buffer("element_references", element_references)


@pytest.mark.parametrize("length", [10, 119, 130])
def test_state_dicts_go_both_ways_whatever_their_length(length):
    theirs, ours = Fairchem(torch.zeros(length)), LinearReferences(vector({1: -0.5}, length))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(theirs.element_references, vector({1: -0.5}, length).float())
    back = LinearReferences()
    back.load_state_dict(theirs.state_dict(), strict=True)
    assert back.max_num_elements == length - 1
    assert back.seen_elements.nonzero().squeeze(1).tolist() == [1]


def test_inside_other_modules_state_dicts_hold_everything():
    given = LinearReferences(vector({1: -0.5}), seen_elements=vector({1: 1, 8: 1}))
    for wrap in (lambda module: torch.nn.ModuleList([module]), Normalizer):
        inner, outer = wrap(given), wrap(LinearReferences())
        outer.load_state_dict(dict(inner.state_dict()))
        assert all(torch.equal(a, b) for a, b in zip(inner.buffers(), outer.buffers(), strict=True))


class Structures25AtomRef(torch.nn.Module):
    """What STRUCTURES25's AtomRef is to a state dict: its constant is an attribute."""

    def __init__(self, t_z, t_global, g_z):
        super().__init__()
        self.register_buffer("t_z", t_z)
        self.t_global = t_global
        self.register_buffer("g_z", g_z)


def test_state_dicts_of_atomic_references_go_both_ways(caplog):
    ours = AtomRef(torch.tensor([1.0, 2.0]), 0.5, torch.tensor([3.0, 4.0, 5.0]))
    theirs = Structures25AtomRef(torch.zeros(2), 0.25, torch.zeros(3))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert (theirs.t_z.tolist(), theirs.g_z.tolist()) == ([1.0, 2.0], [3.0, 4.0, 5.0])
    own = AtomRef(torch.zeros(2), 0.0, torch.zeros(3))
    own.load_state_dict(ours.state_dict())
    assert not caplog.records
    assert float(own.t_global) == 0.5
    own.load_state_dict(theirs.state_dict(), strict=True)
    assert "no t_global, which STRUCTURES25 keeps outside: 0.5 hartree stays" in caplog.text
    assert (own.t_z.tolist(), float(own.t_global)) == ([1.0, 2.0], 0.5)


@pytest.mark.parametrize("key", ["element_references", "coeff"])
def test_npz_files_of_both_generations_load(tmp_path, key):
    np.savez(tmp_path / "references.npz", **{key: vector().numpy()})
    references = create_element_references(tmp_path / "references.npz")
    assert torch.equal(references.element_references, vector())
    assert references.energy(Data(z=torch.tensor([6]))).tolist() == [-37.8]


@pytest.fixture
def fairchem_file(tmp_path, monkeypatch):
    """Writes modules as fairchem does, under the names of its classes, and returns the path."""
    name = "fairchem.core.modules.normalization.element_references"
    module = types.ModuleType(name)
    classes = {c: type(c, (Fairchem,), {"__module__": name}) for c in ("LinearReferences", "ElementReferences")}
    vars(module).update(classes)

    def write(content):
        with monkeypatch.context() as patch:
            for part in itertools.accumulate(name.split("."), "{}.{}".format):
                patch.setitem(sys.modules, part, module)
            torch.save(content(**classes), tmp_path / "element_references.pt")
        return tmp_path / "element_references.pt"

    return write


def test_fairchem_s_pickled_modules_open_without_fairchem(fairchem_file):
    path = fairchem_file(lambda LinearReferences, **_: {"energy": LinearReferences(vector().float())})
    references = create_element_references(path)
    assert torch.equal(references.element_references, vector().float().double())
    assert references.seen_elements.nonzero().squeeze(1).tolist() == sorted(VALUES)
    fairchem_file(lambda ElementReferences, **_: ElementReferences(vector()))
    assert torch.equal(create_element_references(path).element_references, vector())
    fairchem_file(lambda LinearReferences, **_: {str(n): LinearReferences(vector({1: n})) for n in (1, 2)})
    assert float(create_element_references(path, target="2").element_references[1]) == 2
    with pytest.raises(ConfigError, match=r"references of \['1', '2'\]: name one of them"):
        create_element_references(path)
    with pytest.raises(ConfigError, match="no references of '3'"):
        create_element_references(path, target="3")


class Foreign(Fairchem):
    """A class that no reader knows."""


@pytest.mark.parametrize("content", [{"energy": Foreign(vector())}, Foreign(vector())])
def test_other_pickled_modules_are_refused_with_a_way_that_works(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "module.pt")
    with pytest.raises(StatisticsError, match="pickled objects, which are never loaded") as refused:
        create_element_references(tmp_path / "module.pt")
    exec(re.search("`(.*)`", str(refused.value))[1], {})
    assert torch.equal(create_element_references("references.pt").element_references, vector())


def test_a_stand_in_lets_nothing_else_through(fairchem_file):
    path = fairchem_file(lambda LinearReferences, **_: {"e": LinearReferences(vector()), "f": Foreign(vector())})
    with pytest.raises(StatisticsError, match="pickled objects"):
        create_element_references(path)
    torch.save({"element_references": vector().float()}, path)
    assert create_element_references(path).element_references.dtype == torch.float64


def test_files_without_references_are_refused(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "broken.pt").write_bytes(b"")
    np.savez(tmp_path / "pickled.npz", element_references=np.array([None, {}], dtype=object))
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("broken.npz", "cannot be read"),
        ("broken.pt", "cannot be read"),
        ("pickled.npz", "cannot be read as plain arrays"),
        ("other.pt", r"lacks 'element_references'; it has \['other'\]"),
        ("list.pt", "holds a list, expected a state dict"),
        ("missing.pt", "no such file"),
        ("values.txt", "no such file"),
    ):
        with pytest.raises(StatisticsError, match=message):
            create_element_references(tmp_path / name)
    with pytest.raises(ConfigError, match="either a file or a state_dict"):
        create_element_references()


# --- from statistics --------------------------------------------------------------------------------------------------


def test_statistics_give_values_and_seen_elements():
    basis_info = BasisInfo([8, 1, 6], ["1x0e", "1x0e", "1x0e"])
    statistics = DatasetStatistics.from_arrays(
        {
            "w/linear_ref_atom_type_bias": np.array([-75.1, -0.5, 99.0]),
            "w/n_atoms": np.array([4, 8, 0]),
            "w/n_molecules": np.array(5),
            "w/linear_ref_rank": np.array(2),
            "w/energy_minus_linear_ref/rms": np.array(0.125),
            "w/energy/std": np.array(0.25),
        }
    )
    references = LinearReferences.from_dataset_statistics(statistics, basis_info, "w", unseen_elements="zero")
    assert torch.equal(references.element_references, vector({1: -0.5, 8: -75.1}))
    assert references.seen_elements.nonzero().squeeze(1).tolist() == [1, 8]
    report = references.fit_report
    assert (report.rmse, report.rank, report.n_samples, report.n_atoms, report.mae) == (0.125, 2, 5, [4, 8], None)
    assert report.r2 == 0.75
    assert [e.n_atoms for e in references.summary().elements] == [8, 4]
    assert "fit on 5 molecules: rank 2 of 2" in str(references.summary())
    with pytest.raises(StatisticsError, match="beyond max_num_elements = 7"):
        LinearReferences.from_dataset_statistics(statistics, basis_info, "w", max_num_elements=7)
    with pytest.raises(StatisticsError, match=r"element references for 3 .* the basis has 1"):
        LinearReferences.from_dataset_statistics(statistics, BasisInfo([1], ["1x0e"]), "w")


def test_loaders_of_pyg_apply_like_single_samples():
    references = LinearReferences(vector())
    data = [Data(pos=torch.zeros(n, 3), z=torch.tensor([1] * n), y=torch.tensor([float(n)])) for n in (1, 2, 3)]
    for batch in DataLoader(data, batch_size=3):
        assert references(batch.y, batch).tolist() == [0.5, 1.0, 1.5]
