"""Sets of labels: written, resumed, added to, refused; the embedded ones are made again."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("pyscf")

import make_embedded_labels as embedded

from ofdft_norm import BasisInfo, OFDataset
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.packed import PackedDataset
from ofdft_norm.data.zarr_v2 import ZarrGroup
from ofdft_norm.errors import OFDFTNormError
from ofdft_norm.labelling import CheckTolerances, KohnShamSettings, LabellingError, LabelSettings, generate_labels
from tests import processes

HYDROGEN = "2\nmol_id=dihydrogen\nH 0 0 0\nH 0 0 0.74\n"
LONG = "2\nmol_id=long\nH 0 0 0\nH 0 0 0.85\n"
FLUORIDE = "2\nmol_id=fluoride\nH 0 0 0\nF 0 0 0.93\n"
RADICAL = "2\nmol_id=hydroxyl\nO 0 0 0\nH 0 0 0.97\n"
MADE_AGAIN = ("water", "hydrogen_fluoride", "formaldehyde_003")
QUICK = LabelSettings(KohnShamSettings(xc="LDA,VWN", basis="STO-3G", grid_level=0))
LOOSE = CheckTolerances(electrons=1.0, fit_residual=1.0, finite_difference=1.0, kinetic_shift=1.0)


def _generate(folder: Path, frames: str, settings: LabelSettings = QUICK, **options: Any) -> Any:
    (folder / "molecules.xyz").write_text(frames)
    options = {"tolerances": LOOSE, "progress": False, **options}
    return generate_labels(folder / "molecules.xyz", folder / "set", settings, **options)


def test_label_files_have_what_structures25_reads(tmp_path: Path) -> None:
    result = _generate(tmp_path, HYDROGEN, LabelSettings(), tolerances=None)
    path = tmp_path / "set/labels/dihydrogen.zarr.zip"
    energies = ("kin", "hartree", "xc", "ext", "kinapbe", "kin_minus_apbe", "kin_plus_xc", "electron", "tot")
    spatial = ("coeffs", "dual_basis_integrals", "grad_kin", "grad_kin_plus_xc", "grad_kin_minus_apbe")
    names = {*(f"of_labels/energies/e_{name}" for name in energies), *(f"of_labels/spatial/{name}" for name in spatial)}
    with ZarrGroup(path) as group:
        assert names <= set(group.arrays())
    basis_info = BasisInfo.from_json(tmp_path / "set/basis_info.json")
    samples = OFDataset([path], basis_info, "e_kin_minus_apbe", "grad_kin_minus_apbe")
    assert len(samples) == result.made["dihydrogen"].n_labelled + 1
    assert float(samples[-1].coeffs @ samples[-1].dual_basis_integrals) == pytest.approx(2.0, abs=1e-2)


def test_a_run_continues_and_refuses_to_mix(tmp_path: Path) -> None:
    path = tmp_path / "set/labels/dihydrogen.zarr.zip"
    assert list(_generate(tmp_path, HYDROGEN).made) == ["dihydrogen"]
    again = _generate(tmp_path, HYDROGEN)
    assert (again.kept, again.made) == (["dihydrogen"], {})
    other = replace(QUICK, density_fit="constrained", kohn_sham=replace(QUICK.kohn_sham, xc="PBE"))
    with pytest.raises(
        LabellingError, match=r"n\.zarr\.zip: .*\(density_fit: 'l.*; kohn_sham.xc: 'LDA,VWN', expected 'PBE'\)"
    ):
        _generate(tmp_path, HYDROGEN, other)
    with pytest.raises(LabellingError, match="another geometry of 'dihydrogen'"):
        _generate(tmp_path, HYDROGEN.replace("0.74", "0.75"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LabellingError, match=r"dihydrogen\.zarr\.zip: not a label file of"):
        _generate(tmp_path, HYDROGEN)


def test_molecules_are_added_in_shards(tmp_path: Path) -> None:
    first = _generate(tmp_path, FLUORIDE, command="first")
    frames = HYDROGEN + LONG + FLUORIDE
    made = [_generate(tmp_path, frames, shard=f"{k}/2", command=f"shard {k}") for k in (1, 2)]
    assert [list(result.made) for result in made] == [["dihydrogen"], ["long"]]
    assert made[0].kept == ["fluoride"]
    assert BasisInfo.from_json(tmp_path / "set/basis_info.json").atomic_numbers.tolist() == [1, 9]
    provenance = yaml.safe_load((tmp_path / "set/provenance.yaml").read_text())
    assert provenance["settings"]["density_fit"] == "least_squares"
    assert [run["command"] for run in provenance["runs"]] == ["first", "shard 1", "shard 2"]
    shifts = sorted((report.kinetic_shift, name) for result in (first, *made) for name, report in result.made.items())
    assert provenance["kinetic_shift"]["mean"] == pytest.approx(np.mean([shift for shift, _ in shifts]), abs=1e-12)
    assert provenance["kinetic_shift"]["highest"] == {"mol_id": shifts[-1][1], "value": shifts[-1][0]}


def test_molecules_that_fail_are_reported_and_not_written(tmp_path: Path) -> None:
    strict = _generate(tmp_path, HYDROGEN + RADICAL, tolerances=replace(LOOSE, fit_residual=1e-12))
    assert "fit_residual is" in strict.failures["dihydrogen"]
    assert "'hydroxyl' has 9 electrons" in strict.failures["hydroxyl"]
    assert not list((tmp_path / "set").rglob("*.*"))
    assert list(_generate(tmp_path, HYDROGEN + RADICAL).made) == ["dihydrogen"]
    assert [path.name for path in (tmp_path / "set/labels").iterdir()] == ["dihydrogen.zarr.zip"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: got 0"),
        ({"shard": "0/4"}, "shard: got '0/4'"),
        ({"settings": LabelSettings(KohnShamSettings(xc="B3LYP"))}, "xc: got 'B3LYP'"),
    ],
)
def test_nothing_is_written_where_options_are_wrong(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(OFDFTNormError, match=message):
        _generate(tmp_path, HYDROGEN, **options)
    assert not (tmp_path / "set").exists()


def test_embedded_labels_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = processes.context()  # its processes need not import everything anew
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    # sampled geometries of 300 K need Hessians; the shipped ones are taken
    monkeypatch.setattr(embedded, "sample_geometries", lambda present: [g for g in present if g.mol_id in MADE_AGAIN])
    packed = embedded.make_embedded(tmp_path / "set", workers=2)
    for energy, gradient in (("e_kin", "grad_kin"), ("e_kin_plus_xc", "grad_kin_plus_xc"), ("e_kin_vw", "grad_kin")):
        shipped, again = (PackedDataset([folder], None, energy, gradient) for folder in (EMBEDDED, packed))
        names = [path.name for path in shipped.paths]
        expected = shipped.molecules([names.index(path.name) for path in again.paths])
        found = again.molecules(range(again.n_molecules))
        assert set(found.coordinates) == set(expected.coordinates)
        assert torch.equal(found.perturbed, expected.perturbed)
        # what other linear algebra and other thread counts may change
        for field, tolerance in {"energy_label": 1e-6, "coeffs": 1e-6, "gradient_label": 1e-5}.items():
            np.testing.assert_allclose(found[field], expected[field], rtol=0, atol=tolerance, err_msg=field)
