"""Geometry files: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from ofdft_norm.labelling.errors import GeometryError
from ofdft_norm.labelling.geometries import BOHR_IN_ANGSTROM, read_geometries

WATER = '3\nmol_id=water source="somewhere, 1999"\nO 0 0 0.1\nH 0 0.75 -0.5\nh 0 -0.75 -0.5\n'
FLUORIDE = "2\nHF in its simplest comment\nF 0 0 0\nH 0 0 0.92\n"


def _write(folder: Path, text: str, name: str = "molecules.xyz") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_reads_frames_in_order_and_in_bohr(tmp_path: Path) -> None:
    water, fluoride = read_geometries(_write(tmp_path, WATER + FLUORIDE))

    assert (water.mol_id, fluoride.mol_id) == ("water", "HF_1")
    assert water.source == "somewhere, 1999"
    assert water.atomic_numbers.tolist() == [8, 1, 1]
    assert (water.n_electrons, fluoride.n_electrons) == (10, 10)
    np.testing.assert_allclose(fluoride.positions[1, 2], 0.92 / BOHR_IN_ANGSTROM, rtol=1e-15)


def test_several_files_make_one_list_and_names_stay_unique(tmp_path: Path) -> None:
    paths = [_write(tmp_path, WATER + FLUORIDE, "a.xyz"), _write(tmp_path, FLUORIDE + "\n\n", "b.xyz")]
    assert [g.mol_id for g in read_geometries(paths)] == ["water", "HF_1", "HF_2"]


def test_whatever_ase_writes_is_read(tmp_path: Path) -> None:
    frames = [Atoms("H2S", [[0, 0, 0], [0, 0.96, 0.93], [0, -0.96, 0.93]]), Atoms("HCl", [[0, 0, 0], [0, 0, 1.28]])]
    frames[0].info["energy"] = -3.0
    frames[0].arrays["forces"] = np.ones((3, 3))
    for name in ("a.xyz", "b.extxyz", "c.traj", "d.json"):
        ase.io.write(tmp_path / name, frames)
        found = read_geometries(tmp_path / name)
        assert [g.mol_id for g in found] == ["H2S_0", "HCl_1"]
        for geometry, frame in zip(found, frames, strict=True):
            np.testing.assert_allclose(geometry.positions * BOHR_IN_ANGSTROM, frame.positions, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WATER + WATER, r"xyz@1: molecule id 'water' was already used at .*molecules.xyz@0"),
        (WATER + "\n" + FLUORIDE, "xyz:6: a blank line, at which ASE stops"),
        (WATER + "1\nmol_id=dummy\nXx 0 0 0\n", "xyz@1: ASE cannot read this frame: KeyError: 'Xx'"),
        ("1\nmol_id=dummy\nX 0 0 0\n", "'dummy': has X at .*expected atoms"),
        ("three\nmol_id=x\nH 0 0 0\n", "xyz@0: ASE cannot read"),
        ("3\nmol_id=x\nH 0 0 0\n", "xyz@0: ASE cannot read.*expected 3"),
        ("0\nmol_id=x\n", "expected atoms"),
        ("1\nmol_id=x\nH 0 0\n", "ASE cannot read"),
        ("1\nmol_id=x\nH 0 0 nan\n", "'x': has H at"),
        ("1\nmol_id=../x\nH 0 0 0\n", "becomes a file name"),
        ("1\nmol_id=ion charge=1\nH 0 0 0\n", "'ion': has charge 1 .*neutral"),
        ('1\nLattice="9 0 0 0 9 0 0 0 9"\nHe 0 0 0\n', r"'He_0': has .*periodic directions \[True, True, True\]"),
        ("2\nmol_id=x\nH 0 0 0\nH 0 0 0.1\n", "two atoms 0.189 bohr apart"),
        ("\n\n", "no molecules"),
    ],
)
def test_refuses_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        read_geometries(_write(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"absent\.xyz: no such file; expected"):
        read_geometries(tmp_path / "absent.xyz")
