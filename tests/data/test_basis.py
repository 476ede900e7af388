import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from ofdft_norm import BasisInfo
from ofdft_norm.data.basis import UNKNOWN_ELEMENT, name_dimension
from ofdft_norm.data.elements import SYMBOLS, find_atomic_number, find_symbol
from ofdft_norm.errors import BasisError, ConfigError


@given(data=st.data())
def test_attributes_equal_a_naive_construction(data: st.DataObject, some_bases: Any) -> None:
    basis = data.draw(some_bases)
    l_values: list[int] = []
    m_values: list[int] = []
    shells: list[int] = []
    per_element: list[list[int]] = []
    shell = 0
    for irreps in basis.irreps_per_atom:
        own = []
        for multiplicity, irrep in o3.Irreps(irreps):  # e3nn reads the strings
            for _ in range(multiplicity):
                for m in [1, -1, 0] if irrep.l == 1 else range(-irrep.l, irrep.l + 1):
                    own.append(len(l_values))
                    l_values.append(irrep.l)
                    m_values.append(m)
                    shells.append(shell)
                shell += 1
        per_element.append(own)
    assert basis.n_types == len(basis.irreps_per_atom)
    assert basis.n_basis == len(l_values)
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
    elements = basis.atomic_numbers.tolist()
    numbers = data.draw(st.lists(st.sampled_from(elements), max_size=6))
    functions = [i for z in numbers for i in basis.atom_ind_to_basis_function_ind[elements.index(z)].tolist()]
    for dtype in (np.uint8, np.int32, np.float64):
        indices = basis.atom_indices(np.array(numbers, dtype=dtype))
        assert indices.tolist() == [elements.index(z) for z in numbers]
        assert basis.basis_function_ind(indices).tolist() == functions


@given(data=st.data())
def test_json_and_pickle_keep_everything(data: st.DataObject, some_bases: Any, tmp_path_factory: Any) -> None:
    basis = data.draw(some_bases)
    path = tmp_path_factory.mktemp("basis") / "basis_info.json"
    path.write_text(json.dumps(basis.to_dict()))
    for copy in (BasisInfo.from_json(path), pickle.loads(pickle.dumps(basis))):
        assert copy == basis
        assert hash(copy) == hash(basis)
        assert copy.fingerprint() == basis.fingerprint()
        assert copy.basis_func_to_shell.tolist() == basis.basis_func_to_shell.tolist()
    assert pickle.loads(pickle.dumps(basis)) is pickle.loads(pickle.dumps(basis))


@given(data=st.data())
def test_fields_are_split_by_element(data: st.DataObject, some_bases: Any) -> None:
    basis = data.draw(some_bases)
    values = np.random.default_rng(0).normal(size=(2, basis.n_basis))
    for given_values in (values, torch.from_numpy(values)):
        found = basis.split_field_by_atom_type(given_values, axis=1)
        for own, index in zip(found, basis.atom_ind_to_basis_function_ind, strict=True):
            np.testing.assert_array_equal(np.asarray(own), values[:, index])
    with pytest.raises(BasisError, match="the basis has"):
        basis.split_field_by_atom_type(values)


@pytest.mark.parametrize("numbers", [[2], [0], [-1], [119], [-(2**40)], [1.5], [np.nan], [[1, 8]], ["H"], 1])
def test_atoms_outside_the_basis_are_refused_by_name(numbers: Any) -> None:
    basis = BasisInfo([1, 8], ["1x0e", "2x0e"])
    with pytest.raises(BasisError, match="water: field 'atomic_numbers'"):
        basis.atom_indices(numbers, "water")
    index = int(basis.atomic_number_to_atom_index[6])  # of an element that the basis lacks
    for values in (np.arange(2), list(range(2)), torch.arange(1000)):
        with pytest.raises(IndexError):
            values[index]
    for wrong in (index, -1, 2):
        with pytest.raises(BasisError, match="'atom_ind'"):
            basis.basis_function_ind(np.array([0, wrong]))


def test_bases_are_compared_by_elements_functions_and_known_exponents() -> None:
    basis = BasisInfo([1, 8], ["1x0e", "2x0e"], [[1.0], [2.0, 3.0]])
    others = (
        BasisInfo([8, 1], ["2x0e", "1x0e"]),
        BasisInfo([1, 8], ["1x0e", "3x0e"]),
        BasisInfo([1], ["1x0e"]),
        BasisInfo([1, 8], ["1x0e", "2x0e"], [[1.0], [2.0, 3.1]]),
    )
    assert [other == basis for other in others] == [False] * 4
    assert len({other.fingerprint() for other in (*others, basis)}) == 5
    unknown_exponents = BasisInfo([1, 8], ["1x0e", "1x0e+1x0e"])
    assert (basis, hash(basis)) == (unknown_exponents, hash(unknown_exponents))
    assert basis.fingerprint() != unknown_exponents.fingerprint()
    assert basis != "a string"
    assert [other.is_subset(basis) for other in others] == [True, False, True, True]
    assert not basis.is_subset(others[2])


def test_exponents_are_kept_for_each_shell() -> None:
    exponents = [[3.0, 0.4], [9.0, 2.0, 0.5, 1.5]]
    basis = BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"], exponents)
    assert basis.exponent_per_shell[basis.basis_func_to_shell].tolist() == [3, 0.4, 9, 2, 0.5, 1.5, 1.5, 1.5]
    assert basis.to_dict()["exponents_per_atom"] == exponents
    for bad in ([[3.0]], [[3.0, 0.4], [1.0] * 5], [[3.0, -0.4], exponents[1]], [[3.0, np.nan], exponents[1]]):
        with pytest.raises(BasisError, match="exponents_per_atom"):
            BasisInfo([1, 8], ["2x0e", "3x0e+1x1o"], bad)


BAD_BASES = [
    ([1], ["6x0e+2x2o"], "expected the parity (-1)^l"),
    ([1], ["99999999x0e"], "expected terms such as"),
    ([1], ["1x13o"], "with l up to 12"),
    ([1], ["0x0e"], "has no function"),
    ([1], ["2x1o+1x0e"], "not sorted by angular momentum"),
    ([], [], "0 atomic_numbers and 0 irreps_per_atom"),
    ([119], ["1x0e"], "expected different numbers, 1 ... 118"),
    ([True], ["1x0e"], "whole numbers"),
    (1, ["1x0e"], "vector of whole numbers"),
]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\xff{}", "utf-8"),
        (b"[1]", "is no density basis"),
        (b'{"atomic_numbers": [1]}', "lacks 'irreps_per_atom'"),
        (b'{"atomic_numbers": [1], "irreps_per_atom": ["1x0e"], "exponents_per_atom": [[NaN]]}', "NaN"),
        (b'{"atomic_numbers": [1], "irreps_per_atom": ["1x0e"], "p_order": "yzx"}', "'xyz': ofdft_norm 0.2"),
        *((json.dumps({"atomic_numbers": z, "irreps_per_atom": i}).encode(), words) for z, i, words in BAD_BASES),
    ],
)
def test_a_bad_basis_file_is_named_with_the_config_key(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "basis.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BasisError, match=rf"{re.escape(str(path))}.*{re.escape(words)}.*data\.source\.basis_info"):
        BasisInfo.from_json(path)


def test_the_basis_of_a_pyscf_molecule_is_described_as_it_is() -> None:
    gto = pytest.importorskip("pyscf.gto")
    mol = gto.M(atom="O 0 0 0; H 0 0 1; H 0 1 0", basis="cc-pvdz", verbose=0)
    basis = BasisInfo.from_mol(mol)
    assert basis == BasisInfo([1, 8], ["2x0e+1x1o", "3x0e+2x1o+1x2e"])
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


def test_the_even_tempered_basis_that_a_data_set_names(tmp_path: Path) -> None:
    pytest.importorskip("pyscf.gto")
    path = tmp_path / "dataset_info.yaml"
    path.write_text("kohn_sham: {basis: '6-31G(2df,p)', xc: PBE}\nof_basis_set: even_tempered_2.5\nroot: ${oc.env:X}\n")
    basis = BasisInfo.from_dataset_info_yaml(path, [1, 6, 8])
    dim = ["6x0e+3x1o+1x2e", "11x0e+8x1o+7x2e+3x3o+2x4e", "11x0e+8x1o+7x2e+4x3o+2x4e"]
    assert basis == BasisInfo([1, 6, 8], dim)
    assert basis.exponent_per_shell is not None
    for bad in ("", "kohn_sham: 3", "kohn_sham: {basis: x}\nof_basis_set: def2", "{", "kohn_sham: {basis: x}"):
        path.write_text(bad)
        with pytest.raises(BasisError, match=r"dataset_info\.yaml.*data\.source\.basis_info"):
            BasisInfo.from_dataset_info_yaml(path, [1])
    with pytest.raises(BasisError, match="no orbital basis 'no such basis'"):
        BasisInfo.from_atomic_numbers_with_even_tempered_basis([1], "no such basis")


def test_dimensions_have_names() -> None:
    basis = BasisInfo([1, 9], ["2x0e", "1x0e+2x1o+1x2e"])
    names = [name_dimension(basis, i) for i in range(basis.n_basis)]
    assert names[:6] == ["H 1s", "H 2s", "F 1s", "F 1p, m = 1", "F 1p, m = -1", "F 1p, m = 0"]
    assert names[6] == "F 2p, m = 1"
    assert names[9:] == [f"F 1d, m = {m}" for m in range(-2, 3)]


def test_symbols_and_numbers_are_inverse() -> None:
    assert [find_atomic_number(find_symbol(z)) for z in range(1, 119)] == list(range(1, 119))
    assert len(set(SYMBOLS)) == 118
    assert [find_symbol(z) for z in (1, 6, 17, 26, 79, 118)] == ["H", "C", "Cl", "Fe", "Au", "Og"]


@pytest.mark.parametrize(("given", "words"), [("CL", "'CL'.*Cl"), ("", "''"), (0, "0"), (-1, "-1"), (119, "119")])
def test_unknown_elements_are_refused(given: str | int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_atomic_number(given) if isinstance(given, str) else find_symbol(given)
