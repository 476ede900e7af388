from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import BasisInfo
from ofdft_norm.data.basis_info import UNKNOWN_ELEMENT
from ofdft_norm.errors import BasisError

ORDERS = st.sampled_from(["yzx", "xyz"])


def draw_basis(data: st.DataObject, some_bases: Any) -> BasisInfo:
    basis = data.draw(some_bases)
    return BasisInfo(basis.atomic_numbers, basis.irreps_per_atom, data.draw(ORDERS))


@given(data=st.data())
def test_attributes_equal_a_naive_construction(data: st.DataObject, some_bases: Any) -> None:
    basis = draw_basis(data, some_bases)
    l_values: list[int] = []
    m_values: list[int] = []
    shells: list[int] = []
    per_element: list[list[int]] = []
    shell = 0
    for irreps in basis.irreps_per_atom:
        own = []
        for multiplicity, irrep in o3.Irreps(irreps):  # e3nn reads the strings
            for _ in range(multiplicity):
                naive_order = [1, -1, 0] if irrep.l == 1 and basis.p_order == "xyz" else range(-irrep.l, irrep.l + 1)
                for m in naive_order:
                    own.append(len(l_values))
                    l_values.append(irrep.l)
                    m_values.append(m)
                    shells.append(shell)
                shell += 1
        per_element.append(own)
    assert basis.n_types == len(basis.irreps_per_atom)
    assert basis.n_basis == len(l_values) == sum(o3.Irreps(irreps).dim for irreps in basis.irreps_per_atom)
    assert basis.basis_dim_per_atom.tolist() == [len(own) for own in per_element]
    assert basis.l_per_basis_func.tolist() == l_values
    assert basis.m_per_basis_func.tolist() == m_values
    assert basis.basis_func_to_shell.tolist() == shells
    assert [own.tolist() for own in basis.atom_ind_to_basis_function_ind] == per_element
    for z in range(119):
        expected = basis.atomic_numbers.tolist().index(z) if z in basis.atomic_numbers else UNKNOWN_ELEMENT
        assert basis.atomic_number_to_atom_index[z] == expected


@given(data=st.data())
def test_indices_of_a_molecule_equal_loops_over_its_atoms(data: st.DataObject, some_bases: Any) -> None:
    basis = data.draw(some_bases)
    numbers = data.draw(st.lists(st.sampled_from(basis.atomic_numbers.tolist()), max_size=6))
    atom_ind: list[int] = []
    function_ind: list[int] = []
    for z in numbers:
        element = basis.atomic_numbers.tolist().index(z)
        atom_ind.append(element)
        start = sum(basis.basis_dim_per_atom[:element])
        function_ind += range(start, start + basis.basis_dim_per_atom[element])
    indices = basis.atom_indices(np.array(numbers, dtype=np.uint8))
    assert indices.tolist() == atom_ind
    assert basis.basis_function_ind(indices).tolist() == function_ind


@pytest.mark.parametrize("irreps", ["1x0e+1x2e+1x1o", "1x1o+1x0e", "2x0e+1x1o+1x0e"])
def test_unsorted_irreps_are_refused(irreps: str) -> None:
    with pytest.raises(BasisError, match=r"element 8.*not sorted by angular momentum"):
        BasisInfo([1, 8], ["1x0e", irreps])


def test_repeated_shells_of_equal_l_are_sorted() -> None:
    assert BasisInfo([1], ["1x0e+2x0e+1x1o+1x1o"]).l_per_basis_func.tolist() == [0] * 3 + [1] * 6


@pytest.mark.parametrize("irreps", ["", "s+p", "1x0e,1x1o", "0e", "-1x0e", "1x0x", "1x0e+"])
def test_unreadable_irreps_are_refused_with_an_example(irreps: str) -> None:
    with pytest.raises(BasisError, match=r"element 6.*6x0e\+2x1o"):
        BasisInfo([6], [irreps])


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([1, 1], "names an element twice"),
        ([1, 0], r"\[0\] outside 1 ... 118"),
        ([1, 119], r"\[119\] outside"),
        ([1, -1], r"\[-1\] outside"),
        ([1], "1 atomic_numbers but 2 irreps_per_atom"),
        ([1, 6.5], "whole"),
        ([1, float("nan")], "whole"),
        (["H", "C"], "whole"),
        ([[1], [6]], "whole"),
    ],
)
def test_invalid_elements_are_refused(elements: list[Any], message: str) -> None:
    with pytest.raises(BasisError, match=message):
        BasisInfo(elements, ["1x0e", "1x0e"])


@pytest.mark.parametrize("number", [2, 0, -1, 119, 200, -(2**40)])
def test_an_element_outside_the_basis_names_it_the_molecule_and_the_config_key(number: int) -> None:
    basis = BasisInfo([1, 8], ["1x0e", "2x0e"])
    with pytest.raises(
        BasisError, match=rf"water: field 'atomic_numbers'.*\[{number}\].*\[1, 8\].*data.source.basis_info"
    ):
        basis.atom_indices(np.array([1, number, 8]), "water")


@pytest.mark.parametrize("numbers", [[1.5], [float("nan")], [[1, 8]], ["H"], 1])
def test_atomic_numbers_must_be_a_vector_of_whole_numbers(numbers: Any) -> None:
    with pytest.raises(BasisError, match="water: field 'atomic_numbers'"):
        BasisInfo([1, 8], ["1x0e", "2x0e"]).atom_indices(numbers, "water")


def test_whole_numbers_of_any_dtype_are_read() -> None:
    basis = BasisInfo([1, 8], ["1x0e", "2x0e"])
    for dtype in (np.uint8, np.int32, np.float64):
        assert basis.atom_indices(np.array([8, 1], dtype=dtype)).tolist() == [1, 0]


def test_the_index_of_an_unknown_element_never_picks_another_one() -> None:
    basis = BasisInfo([1, 8], ["1x0e", "2x0e"])
    index = int(basis.atomic_number_to_atom_index[6])
    for values in (np.arange(2), list(range(2)), torch.arange(2), torch.arange(1000)):
        with pytest.raises(IndexError):
            values[index]
    with pytest.raises(IndexError):
        torch.arange(2)[torch.tensor([0, index])]
    for wrong in (index, -1, 2):
        with pytest.raises(BasisError, match="'atom_ind'"):
            basis.basis_function_ind(np.array([0, wrong]))


@given(data=st.data())
def test_json_and_pickle_round_trips(data: st.DataObject, some_bases: Any, tmp_path_factory: Any) -> None:
    basis = draw_basis(data, some_bases)
    path = tmp_path_factory.mktemp("basis") / "basis_info.json"
    path.write_text(json.dumps(basis.to_dict()))
    for copy in (BasisInfo.from_json(path), pickle.loads(pickle.dumps(basis))):
        assert copy == basis
        assert hash(copy) == hash(basis)
        assert copy.fingerprint() == basis.fingerprint()
        assert copy.basis_func_to_shell.tolist() == basis.basis_func_to_shell.tolist()


def test_bases_that_differ_are_not_equal() -> None:
    basis = BasisInfo([1, 8], ["1x0e", "2x0e"])
    for other in (
        BasisInfo([8, 1], ["2x0e", "1x0e"]),
        BasisInfo([1, 8], ["1x0e", "3x0e"]),
        BasisInfo([1], ["1x0e"]),
        BasisInfo([1, 8], ["1x0e", "2x0e"], p_order="xyz"),
    ):
        assert basis != other
        assert basis.fingerprint() != other.fingerprint()
    assert basis != "a string"
    assert "8: 2x0e" in repr(basis)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot read the basis"),
        (b"\xff\xfe\x00", "cannot read the basis"),
        (b"[1, 2]", "lacks .*'atomic_numbers', 'irreps_per_atom'"),
        (b'{"atomic_numbers": [1]}', r"lacks \['irreps_per_atom'\]; it has \['atomic_numbers'\]"),
        (b'{"atomic_numbers": [1], "irreps_per_atom": ["p"]}', "cannot read 'p'"),
        (b'{"atomic_numbers": [1], "irreps_per_atom": null}', "NoneType"),
        (
            b'{"atomic_numbers": [1], "irreps_per_atom": ["1x0e"], "p_order": "zxy"}',
            "p_order is 'zxy', expected one of",
        ),
        (b'{"atomic_numbers": null, "irreps_per_atom": ["1x0e"]}', "whole numbers"),
    ],
)
def test_a_bad_basis_file_is_named_with_the_config_key(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "basis.json"
    path.write_bytes(content)
    with pytest.raises(BasisError, match=message) as error:
        BasisInfo.from_json(path)
    assert str(path) in str(error.value)
    assert "data.source.basis_info" in str(error.value)


def test_a_missing_basis_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BasisError, match=r"nowhere\.json.*data.source.basis_info"):
        BasisInfo.from_json(tmp_path / "nowhere.json")


@given(data=st.data())
def test_fields_are_split_by_element(data: st.DataObject, some_bases: Any) -> None:
    basis = data.draw(some_bases)
    values = np.random.default_rng(0).normal(size=(2, basis.n_basis))
    for found in (
        basis.split_field_by_atom_type(values, axis=1),
        basis.split_field_by_atom_type(torch.from_numpy(values), axis=-1),
    ):
        expected = [values[:, index] for index in basis.atom_ind_to_basis_function_ind]
        for own, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(own), theirs)
    with pytest.raises(BasisError, match=rf"axis 0 has 2 entries, but the basis has {basis.n_basis} functions"):
        basis.split_field_by_atom_type(np.zeros((2, basis.n_basis + 1)))


def test_a_subset_has_every_element_with_the_same_functions() -> None:
    large = BasisInfo([1, 6, 8], ["2x0e", "3x0e+1x1o", "2x0e+1x1o"])
    assert large.is_subset(large)
    assert BasisInfo([8, 1], ["1x0e+1x0e+1x1o", "2x0e"]).is_subset(large)
    assert BasisInfo([1], ["2x0e"], "xyz").is_subset(large)
    assert not large.is_subset(BasisInfo([1, 6], ["2x0e", "3x0e+1x1o"]))
    assert not BasisInfo([8], ["3x0e+1x1o"]).is_subset(large)
    assert not BasisInfo([8], ["2x0e+1x1o"], "xyz").is_subset(large)


def test_the_basis_of_a_pyscf_molecule_is_described_as_it_is() -> None:
    gto = pytest.importorskip("pyscf.gto")
    mol = gto.M(atom="O 0 0 0; H 0 0 1; H 0 1 0", basis="cc-pvdz", verbose=0)
    basis = BasisInfo.from_mol(mol)
    assert basis == BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+2x1o+1x2e"], "xyz")
    indices = basis.basis_function_ind(basis.atom_indices(mol.atom_charges()))
    letters = ["spdf".index(name.split()[2][1]) for name in mol.ao_labels()]
    assert basis.l_per_basis_func[indices].tolist() == letters
    components = {"px": 1, "py": -1, "pz": 0}
    for label, m in zip(mol.ao_labels(), basis.m_per_basis_func[indices], strict=True):
        assert components.get(label.split()[2][1:], m) == m
    with pytest.raises(BasisError, match="Cartesian"):
        BasisInfo.from_mol(gto.M(atom="He 0 0 0", basis="cc-pvdz", cart=True, verbose=0))
    with pytest.raises(BasisError, match="element 2 have different"):
        BasisInfo.from_mol(gto.M(atom="He1 0 0 0; He2 0 0 9", basis={"He1": "cc-pvdz", "He2": "sto-3g"}, verbose=0))
    unsorted = gto.M(atom="He 0 0 0", basis={"He": [[1, [1.0, 1.0]], [0, [1.0, 1.0]]]}, verbose=0)
    if [unsorted.bas_angular(i) for i in range(2)] == [1, 0]:
        with pytest.raises(BasisError, match="not sorted"):
            BasisInfo.from_mol(unsorted)


def test_p_shells_in_the_order_of_pyscf() -> None:
    basis = BasisInfo([8], ["1x0e+2x1o+1x2e"], p_order="xyz")
    assert basis.m_per_basis_func.tolist() == [0, 1, -1, 0, 1, -1, 0, -2, -1, 0, 1, 2]
    assert "p_order='xyz'" in repr(basis)


def test_a_file_without_p_order_means_m_ascending(tmp_path: Path) -> None:
    path = tmp_path / "basis.json"
    path.write_text('{"atomic_numbers": [8], "irreps_per_atom": ["1x0e+1x1o"]}')
    assert BasisInfo.from_json(path) == BasisInfo([8], ["1x0e+1x1o"], "yzx")


def test_exponents_are_kept_for_each_shell_and_written_back() -> None:
    exponents = [[3.0, 0.4], [9.0, 2.0, 0.5, 1.5]]
    basis_info = BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"], "xyz", exponents)
    assert basis_info.exponent_per_shell is not None
    assert basis_info.exponent_per_shell[basis_info.basis_func_to_shell].tolist() == [3, 0.4, 9, 2, 0.5, 1.5, 1.5, 1.5]
    assert basis_info.to_dict()["exponents_per_atom"] == exponents
    assert BasisInfo(**basis_info.to_dict()) == basis_info


def test_bases_are_equal_unless_known_exponents_differ() -> None:
    unknown, known = BasisInfo([1], ["2x0e"]), BasisInfo([1], ["2x0e"], exponents_per_atom=[[3.0, 0.4]])
    other = BasisInfo([1], ["2x0e"], exponents_per_atom=[[3.0, 0.5]])
    assert unknown == known
    assert hash(unknown) == hash(known)
    assert known != other
    assert known.fingerprint() != unknown.fingerprint()


@pytest.mark.parametrize(
    ("exponents", "message"),
    [
        ([[3.0]], r"\[1\] exponents.*expected \[2\]"),
        ([[3.0, 0.4], [1.0]], r"\[2, 1\] exponents"),
        ([[3.0, -0.4]], "not a positive number"),
        ([[3.0, float("nan")]], "not a positive number"),
    ],
)
def test_exponents_that_do_not_fit_the_shells_are_refused(exponents: list[list[float]], message: str) -> None:
    with pytest.raises(BasisError, match=message):
        BasisInfo([1], ["2x0e"], exponents_per_atom=exponents)


def test_a_basis_is_pickled_once_for_many_samples() -> None:
    basis_info = BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"], "xyz", [[3.0, 0.4], [9.0, 2.0, 0.5, 1.5]])
    one, two = pickle.loads(pickle.dumps(basis_info)), pickle.loads(pickle.dumps(basis_info))
    assert one is two
    assert one.to_dict() == basis_info.to_dict()
