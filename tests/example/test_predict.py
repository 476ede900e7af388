"""Predictions of a checkpoint for label files and for geometries with coefficients."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import ase.io
import ase.units
import numpy as np
import pytest
import torch
from lightning import Trainer

from ofdft_norm import OFData, project_gradient
from ofdft_norm.config import EmbeddedLabels, SplitConfig
from ofdft_norm.data.basis import name_dimension
from ofdft_norm.data.dataset import compose as compose_transforms
from ofdft_norm.data.sample import collate_joined
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import DensityModule
from ofdft_norm.example.callbacks import CountOutOfRange
from ofdft_norm.example.metrics import MODEL_KEY
from ofdft_norm.example.predict import predict, to_csv, to_xyz, warn_of_extrapolation
from tests.hydra.composing import composed as composed_by_name
from tests.labelled_molecules import LabelledMolecules


def composed(*overrides: str) -> Any:
    return composed_by_name("predict", "accelerator=cpu", "range_tolerance=1e3", *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a checkpoint, the raw samples, and energies and gradients of the model, sample by sample."""
    setting: Any = LabelledMolecules(tmp_path_factory.mktemp("trained"))
    datamodule, model = setting.datamodule(), DensityModule(width=8, n_layers=1)
    trainer = setting.trainer(inference_mode=False)
    trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(setting.folder / "run.ckpt")
    setting.raw, normalizer = list(datamodule.source.open("all", datamodule.source.everything(), ())), model.normalizer
    prepared = list(datamodule.parts["all"])
    batches = [normalizer.normalize(collate_joined(sample)) for sample in prepared]
    setting.model, setting.pre_transforms = model.double().eval(), datamodule.pre_transforms
    found = [model.predict(batch) for batch in batches]
    setting.energies = [float(energy) for energy, _ in found]
    setting.gradients = np.concatenate([gradient.numpy() for _, gradient in found])
    setting.checkpoint = f"ckpt_path={setting.folder / 'run.ckpt'}"
    return setting


def labels_of(setting: Any, folder: Path) -> list[str]:
    basis = f"data.source.basis_info={setting.basis_info}"
    return ["data/source=label_files", f"data.source.paths={shutil.copytree(setting.labels, folder)}", basis]


def raw_gradient(trained: Any, sample: OFData) -> torch.Tensor:
    """Differentiates the predicted energy with respect to coefficients of the density basis, through every step."""
    raw, model = sample.clone(), trained.model
    raw.coeffs.requires_grad_()
    transform: Any = compose_transforms(trained.pre_transforms)
    batch = model.normalizer.normalize(transform(raw.clone()))
    energy = model.normalizer.denormalize_energy(model.network(batch, batch.coeffs), batch)
    (gradient,) = torch.autograd.grad(energy.sum(), raw.coeffs)
    return gradient


def test_label_files_are_predicted_without_training_data_and_the_checkpoint_is_read_once(
    trained, tmp_path, capsys, monkeypatch
):
    output, load, loads = tmp_path / "out" / "predictions.npz", torch.load, []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs))
    options = labels_of(trained, tmp_path / "elsewhere")
    predict(composed(trained.checkpoint, f"output={output}", "head=3", *options))
    assert len(loads) == 1
    with np.load(output, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    np.testing.assert_allclose(found["energy"], trained.energies, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["gradient"], trained.gradients, rtol=0, atol=1e-3)
    assert found["mol_id"].tolist() == [sample.mol_id for sample in trained.raw]
    assert found["scf_iteration"].tolist() == [int(sample.scf_iteration) for sample in trained.raw]
    assert found["n_basis"].tolist() == [len(sample.coeffs) for sample in trained.raw]
    labelled = np.array([bool(sample.has_energy_label) for sample in trained.raw])
    labels = np.array([float(sample.energy_label) for sample in trained.raw])
    np.testing.assert_allclose(found["energy_label"], np.where(labelled, labels, np.nan), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["pos"], np.concatenate([s.pos.numpy() for s in trained.raw]), atol=1e-6)
    assert json.loads(str(found["units"]))["energy"] == "hartree"
    printed = capsys.readouterr().out
    assert printed.count("\n" + trained.raw[0].mol_id) == 3
    with pytest.raises(ConfigError, match="exists already"):
        predict(composed(trained.checkpoint, f"output={output}", *options))
    raw = predict(composed(trained.checkpoint, f"output={output}", "overwrite=true", "coordinates=raw", *options))
    assert set(raw["coordinates"]) == {"raw"} != set(found["coordinates"])
    gradients = np.split(raw["gradient"], np.cumsum(raw["n_basis"])[:-1])
    for i in (1, len(gradients) - 1):
        expected = raw_gradient(trained, trained.raw[i])
        # single precision; in other coordinates than these a gradient would differ by its own size
        scale = float(project_gradient(expected, trained.raw[i]).abs().max())
        np.testing.assert_allclose(gradients[i], expected.numpy(), atol=1e-3 * scale)


def test_geometries_with_coefficients_give_the_same_predictions(trained, tmp_path):
    fields = ("pos", "atomic_numbers", "coeffs", "dual_basis_integrals")
    arrays = {name: np.concatenate([sample[name].numpy() for sample in trained.raw]) for name in fields}
    arrays["n_atoms"] = np.array([len(s.atomic_numbers) for s in trained.raw])
    np.savez(tmp_path / "samples.npz", **arrays)
    output = tmp_path / "predictions.xyz"
    source = (f"data.source.path={tmp_path / 'samples.npz'}", f"data.source.basis_info={trained.basis_info}")
    found = predict(composed(trained.checkpoint, f"output={output}", "data/source=samples", *source))
    np.testing.assert_allclose(found["energy"], trained.energies, rtol=0, atol=1e-4)
    assert np.isnan(found["energy_label"]).all()
    frames = ase.io.read(output, index=":")
    assert "energy=" not in output.read_text()  # ASE's name for total energies in eV
    for frame, sample, energy in zip(frames, trained.raw, found["energy"], strict=True):
        assert frame.info["e_kin_hartree"] == energy
        np.testing.assert_allclose(frame.positions, sample.pos.numpy() * ase.units.Bohr, atol=1e-6)


def test_the_farthest_sample_of_each_molecule_is_named_and_the_farthest_molecule_first():
    columns = {name: np.array(["a", "b", "a", "c"]) for name in ("mol_id", "scf_iteration", "range_dimension")}
    columns["range_excess"] = np.array([1.0, 5.0, 9.0, 0.0])
    with pytest.warns(UserWarning, match="3 of 4 samples, of 2 molecules.*: 'a' by 9.0.*; 'b' by 5.0"):
        warn_of_extrapolation(columns, 0.5)


def test_total_energies_have_ases_keys_and_csv_has_a_row_for_each_sample(tmp_path):
    forces = np.arange(6.0).reshape(2, 3)
    columns = {
        "mol_id": np.array(["H2"]),
        "scf_iteration": np.array([-1]),
        "energy": np.array([-1.1]),
        "energy_label": np.array([-1.2]),
        "range_excess": np.array([np.nan]),
        "range_dimension": np.array([""]),
        "n_atoms": np.array([2]),
        "atomic_numbers": np.array([1, 1]),
        "pos": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]]),
        "forces": forces,
    }
    facts = {"energy_name": None, "unit": "hartree", "length_unit": "bohr"}
    (tmp_path / "hartree.xyz").write_bytes(to_xyz(columns, facts))
    frame = ase.io.read(tmp_path / "hartree.xyz")
    assert frame.get_potential_energy() == pytest.approx(-1.1 * ase.units.Hartree, rel=1e-12)
    np.testing.assert_allclose(frame.get_forces(), forces * ase.units.Hartree / ase.units.Bohr, atol=1e-7)
    assert frame.positions[1, 2] == pytest.approx(1.4 * ase.units.Bohr, abs=1e-7)
    assert frame.info == {"mol_id": "H2", "energy_label_eV": pytest.approx(-1.2 * ase.units.Hartree)}
    [row] = csv.DictReader(to_csv(columns, facts).decode().splitlines())
    assert (row["mol_id"], row["scf_iteration"], row["energy_hartree"], row["range_excess"]) == ("H2", "", "-1.1", "")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ckpt_path={folder}/none.ckpt"], "no such checkpoint"),
        (["output={folder}/p.txt"], r"ends in \.npz, \.csv or \.xyz"),
        (["model._target_=ofdft_norm.example.PotentialModule"], r"is of a model .*DensityModule"),
        (["ckpt_path={folder}/other.ckpt"], r"of a model os\.system.*model\._target_=os\.system"),
    ],
)
def test_wrong_settings_are_named_and_no_name_of_a_file_is_imported(trained, overrides, message):
    content = torch.load(trained.folder / "run.ckpt", weights_only=True)
    torch.save({**content, MODEL_KEY: "os.system"}, trained.folder / "other.ckpt")
    given = [override.format(folder=trained.folder) for override in overrides]
    with pytest.raises(ConfigError, match=message):
        predict(composed(trained.checkpoint, f"output={trained.folder}/out.npz", *given))


def test_samples_outside_of_the_training_range_are_counted_and_named(tmp_path):
    fluorides = ["fluoromethane", "difluoromethane", "fluoroethane"]
    split = {"train": [*fluorides, "nitromethane", "propyne"], "val": ["carbon_tetrafluoride"]}
    files = {name: [f"{molecule}.zarr.zip" for molecule in molecules] for name, molecules in split.items()}
    (tmp_path / "split.json").write_text(json.dumps(files))
    (tmp_path / "setting").mkdir()
    setting = LabelledMolecules(tmp_path / "setting", ("water",))
    datamodule = setting.datamodule(source=EmbeddedLabels(), split=SplitConfig(file=str(tmp_path / "split.json")))
    trainer: Trainer = setting.trainer(callbacks=[CountOutOfRange()], limit_train_batches=1)
    with pytest.warns(UserWarning, match="labelled validation samples have coefficients outside"):
        trainer.fit(DensityModule(width=8, n_layers=1), datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert not any(datamodule.normalizer.range_excess(batch).excess.any() for batch in datamodule.train_dataloader())
    expected = [datamodule.normalizer.range_excess(sample) for sample in datamodule.parts["val"]]
    counted = sum(float(own.excess) > 1 for own in expected[1:])  # the first has no label
    assert trainer.callback_metrics["val/out_of_range_samples"] == counted > 0

    options = (f"ckpt_path={tmp_path / 'run.ckpt'}", f"output={tmp_path / 'p.npz'}", "data.predict_on=val")
    with pytest.warns(UserWarning, match=r"by more than 1 of its width.*'carbon_tetrafluoride' by"):
        found = predict(composed(*options, "range_tolerance=1"))
    np.testing.assert_allclose(found["range_excess"], [float(own.excess) for own in expected], rtol=1e-4)
    names = [name_dimension(datamodule.basis_info, int(own.dimension)) for own in expected]
    assert found["range_dimension"].tolist() == names
