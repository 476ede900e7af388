"""Geometry files, relaxed geometries, and samples of their normal modes."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ase")
pytest.importorskip("pyscf")

import ase.io
from ase import Atoms
from make_embedded_labels import BOLTZMANN, DALTON, _hartree_fock, relax, sample_normal_modes

from ofdft_norm.labelling import LabellingError, read_geometries
from ofdft_norm.labelling.geometries import BOHR_IN_ANGSTROM, Geometry

WATER = '3\nmol_id=water source="somewhere, 1999"\nO 0 0 0.1\nH 0 0.75 -0.5\nh 0 -0.75 -0.5\n'
FLUORIDE = "2\nHF in its simplest comment\nF 0 0 0\nH 0 0 0.92\n"


def test_reads_frames_of_several_files_in_order_and_in_bohr(tmp_path: Path) -> None:
    (tmp_path / "a@3.xyz").write_text(WATER + FLUORIDE)  # a file's name may have an @
    sulfide = Atoms("H2S", [[0, 0, 0], [0, 0.96, 0.93], [0, -0.96, 0.93]], info={"energy": -3.0})
    ase.io.write(tmp_path / "b.traj", [sulfide])
    water, fluoride, last = read_geometries([tmp_path / "a@3.xyz", tmp_path / "b.traj"])
    assert [g.mol_id for g in (water, fluoride, last)] == ["water", "HF_1", "H2S_2"]
    assert water.source == "somewhere, 1999"
    assert water.atomic_numbers.tolist() == [8, 1, 1]
    assert (water.n_electrons, fluoride.n_electrons) == (10, 10)
    np.testing.assert_allclose(fluoride.positions[1, 2], 0.92 / BOHR_IN_ANGSTROM, rtol=1e-15)
    np.testing.assert_allclose(last.positions * BOHR_IN_ANGSTROM, sulfide.positions, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WATER + WATER, r"xyz@1: molecule id 'water' is also the id of .*molecules.xyz@0"),
        (WATER + "\n" + FLUORIDE, "xyz:6: ASE stops at this blank line"),
        ("1\nmol_id=dummy\nX 0 0 0\n", "'dummy': has X at .*expected elements"),
        ("3\nmol_id=x\nH 0 0 0\n", "xyz@0: ASE cannot read.*expected 3"),
        ("1\nmol_id=../x\nH 0 0 0\n", "becomes a file name"),
        ("1\nmol_id=ion charge=1\nH 0 0 0\n", "'ion': has charge 1 .*neutral"),
        ('1\nLattice="9 0 0 0 9 0 0 0 9"\nHe 0 0 0\n', r"'He_0': has .*periodic directions \[True, True, True\]"),
        ("2\nmol_id=x\nH 0 0 0\nH 0 0 0.1\n", "two atoms 0.189 bohr apart"),
        ("\n\n", "no molecules"),
    ],
)
def test_bad_frames_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "molecules.xyz"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LabellingError, match=message):
        read_geometries(path)


def test_only_files_are_read(tmp_path: Path) -> None:
    for name in ("absent.xyz", "."):
        with pytest.raises(LabellingError, match="no such file; expected"):
            read_geometries(tmp_path / name)


# --- normal modes -----------------------------------------------------------------------------------------------------

BENT = Geometry("water", np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.2], [0.0, 1.5, -0.9], [0.0, -1.4, -0.9]]))
DIATOMIC = Geometry("hf", np.array([1, 9]), np.array([[0.0, 0.0, 0.0], [0.3, 0.2, 1.6]]))


@pytest.fixture(scope="module")
def relaxed() -> Geometry:
    return relax(BENT, "STO-3G")


def test_each_mode_has_its_share_of_the_temperature(relaxed: Geometry) -> None:
    """The mean potential energy of classical harmonic modes is half k T each; the whole molecule does not move."""
    samples = sample_normal_modes(relaxed, 4000, 300.0, "STO-3G")
    assert [sample.mol_id for sample in samples[:2]] == ["water_000", "water_001"]
    steps = np.stack([sample.positions - relaxed.positions for sample in samples])
    hessian = _hartree_fock(relaxed, "STO-3G").Hessian().kernel()
    energies = 0.5 * np.einsum("kiu,ijuv,kjv->k", steps, hessian, steps)
    n_modes = 3
    assert energies.mean() == pytest.approx(n_modes / 2 * BOLTZMANN * 300.0, rel=0.1)
    masses = np.array([15.9994, 1.008, 1.008]) * DALTON
    np.testing.assert_allclose(masses @ steps.transpose(1, 0, 2).reshape(3, -1) / masses.sum(), 0.0, atol=1e-5)
    turned = np.cross(relaxed.positions, masses[:, None] * steps).sum(axis=1) / masses.sum()
    np.testing.assert_allclose(turned, 0.0, atol=1e-4)


def test_a_linear_molecule_vibrates_along_its_bond() -> None:
    relaxed = relax(DIATOMIC, "STO-3G")
    sample = sample_normal_modes(relaxed, 1, 300.0, "STO-3G")[0]
    bonds = [g.positions[1] - g.positions[0] for g in (relaxed, sample)]
    np.testing.assert_allclose(np.cross(*bonds), 0.0, atol=1e-6)
    assert abs(np.linalg.norm(bonds[0]) - np.linalg.norm(bonds[1])) > 1e-4
