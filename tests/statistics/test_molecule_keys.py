"""Which samples belong to one molecule."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import BasisInfo
from ofdft_norm.statistics.molecule_keys import ConsecutiveMolecules, MoleculesScattered, molecule_keys


def test_keys_tell_geometry_and_name(basis_info: BasisInfo, make_sample: Any, make_batch: Any) -> None:
    rng = np.random.default_rng(0)
    one = make_sample(basis_info, rng, [8, 1, 1], "a")
    variants = [one.clone() for _ in range(5)]
    variants[0].scf_iteration += 1  # the same molecule
    variants[0].coeffs += 1
    variants[1].mol_id = "b"
    variants[2].pos = variants[2].pos.flip(0)
    variants[3].pos = -variants[3].pos
    variants[4].pos = variants[4].pos.clone()
    variants[4].pos[0, 0] = torch.nextafter(variants[4].pos[0, 0], torch.tensor(9.0).double())
    keys = molecule_keys(make_batch([one, *variants])).tolist()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5
    assert molecule_keys(one).tolist() == keys[:1]
    others = [make_sample(basis_info, rng, None, "c") for _ in range(3)]
    assert molecule_keys(make_batch([*others, one, *others]))[3] == keys[0]


def test_keys_of_zeros(basis_info: BasisInfo, make_sample: Any) -> None:
    one = make_sample(basis_info, np.random.default_rng(0), [1], "a")
    one.pos = torch.zeros(1, 3)
    two = one.clone()
    two.pos = -torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(molecule_keys(one), molecule_keys(two))


def test_keys_are_the_same_in_every_process() -> None:
    code = """
import torch
from ofdft_norm import BasisInfo, OFData
from ofdft_norm.statistics.molecule_keys import molecule_keys
sample = OFData.construct_new(BasisInfo([1], ["1x0e"]), [[0.1, 0.2, 0.3]], [1], torch.zeros(1), mol_id="a")
print(molecule_keys(sample).item())
"""
    scope: dict[str, Any] = {}
    exec(code.replace("print(", "key = ("), scope)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == scope["key"]


def test_consecutive_molecules() -> None:
    watch = ConsecutiveMolecules()
    watch.check(torch.tensor([1, 1, 2, 3]))
    watch.check(torch.tensor([3, 3, 4]))
    with pytest.raises(MoleculesScattered):
        watch.check(torch.tensor([4, 2]))
