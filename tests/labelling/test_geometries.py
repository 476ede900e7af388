"""Geometry files: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ofdft_norm.labelling.errors import GeometryError
from ofdft_norm.labelling.geometries import BOHR_IN_ANGSTROM, read_geometries

WATER = '3\nmol_id=water source="somewhere, 1999"\nO 0 0 0.1\nH 0 0.75 -0.5\nh 0 -0.75 -0.5\n'
FLUORIDE = "2\nHF in its simplest comment\nF 0 0 0\nH 0 0 0.92\n"


def _write(folder: Path, text: str, name: str = "molecules.xyz") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_reads_frames_in_order_and_in_bohr(tmp_path: Path) -> None:
    water, fluoride = read_geometries(_write(tmp_path, WATER + "\n" + FLUORIDE))

    assert (water.mol_id, fluoride.mol_id) == ("water", "HF")
    assert water.source == "somewhere, 1999"
    assert water.atomic_numbers.tolist() == [8, 1, 1]
    assert (water.n_electrons, fluoride.n_electrons) == (10, 10)
    np.testing.assert_allclose(fluoride.positions[1, 2], 0.92 / BOHR_IN_ANGSTROM, rtol=1e-15)


def test_several_files_make_one_list(tmp_path: Path) -> None:
    paths = [_write(tmp_path, WATER, "a.xyz"), _write(tmp_path, FLUORIDE, "b.xyz")]
    assert [g.mol_id for g in read_geometries(paths)] == ["water", "HF"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WATER + WATER, "'water' was already used at .*molecules.xyz:1"),
        ("1\nmol_id=salt\nNa 0 0 0\n", "'salt' has the element 'Na'.*allowed_elements"),
        ("1\nmol_id=dummy\nXx 0 0 0\n", "element 'Xx'"),
        ("three\nmol_id=x\nH 0 0 0\n", "expected the number of atoms.*'three'"),
        ("3\nmol_id=x\nH 0 0 0\n", "3 atoms announced, but 1 lines"),
        ("0\nmol_id=x\n", "0 atoms announced"),
        ("1\nmol_id=x\nH 0 0\n", "expected 'symbol x y z', got 'H 0 0'"),
        ("1\nmol_id=x\nH 0 0 nan\n", "expected 'symbol x y z'"),
        ("1\nenergy=3.0\nH 0 0 0\n", "expected mol_id=NAME"),
        ("1\nmol_id=../x\nH 0 0 0\n", "becomes a file name"),
        ("2\nmol_id=x\nH 0 0 0\nH 0 0 0.1\n", "two atoms 0.189 bohr apart"),
        ("\n\n", "no molecules"),
    ],
)
def test_refuses_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        read_geometries(_write(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"absent\.xyz: cannot read"):
        read_geometries(tmp_path / "absent.xyz")
