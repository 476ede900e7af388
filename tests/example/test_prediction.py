"""Predictions of a checkpoint for label files and for geometries with coefficients."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import ase.io
import ase.units
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule
from omegaconf import DictConfig

from ofdft_norm import BasisInfo, NormalizerMixin
from ofdft_norm.config import EmbeddedLabels, SplitConfig
from ofdft_norm.config.readable_errors import config_dir
from ofdft_norm.data.irreps import dimension_name
from ofdft_norm.data.sample_file import SampleFileDataset
from ofdft_norm.errors import ConfigError, LabelFileError, SplitError
from ofdft_norm.example import DensityModule
from ofdft_norm.example.callbacks import CountOutOfRange
from ofdft_norm.example.prediction import Meaning, Prediction, predict, table, write_xyz
from ofdft_norm.example.run_record import CHECKPOINT_KEY


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("predict", overrides=["accelerator=cpu", "range_tolerance=1e3", *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, labelled_molecules: Any) -> Any:
    """A folder with a checkpoint of the package's model, whose training files are gone."""
    setting = labelled_molecules(tmp_path_factory.mktemp("trained"))
    datamodule, model = setting.datamodule(), DensityModule(width=8, rank=2, n_layers=1, n_radial=4)
    trainer = setting.trainer(max_epochs=1, inference_mode=False)
    trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(setting.folder / "run.ckpt")
    setting.raw = [datamodule.raw_datasets["all"][i] for i in range(len(datamodule.raw_datasets["all"]))]
    setting.model, setting.normalizer = model.eval(), datamodule.normalizer
    return setting


def expected(setting: Any) -> tuple[list[float], list[np.ndarray]]:
    """Energies and gradients of all samples, one at a time, without data module or trainer."""
    from torch_geometric.data import Batch

    from ofdft_norm.normalization.transforms import NormalizeTransform

    energies, gradients = [], []
    for sample in setting.raw:
        batch = Batch.from_data_list([NormalizeTransform(setting.normalizer)(sample)], follow_batch=["coeffs"])
        energy, gradient = setting.model(batch)
        energies.append(float(setting.normalizer.denormalize_energy(energy.detach(), batch)))
        gradients.append(setting.normalizer.denormalize_gradient(gradient.detach(), batch).numpy())
    return energies, gradients


def test_label_files_are_predicted_without_training_data(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = shutil.copytree(trained.labels, tmp_path / "elsewhere")
    output = tmp_path / "out" / "predictions.npz"
    options = ["data/source=label_files", f"data.source.paths={labels}", f"data.source.basis_info={trained.basis_info}"]
    predictions = predict(composed(f"ckpt_path={trained.folder / 'run.ckpt'}", f"output={output}", "head=3", *options))
    energies, gradients = expected(trained)
    with np.load(output, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    assert len(predictions) == len(trained.raw) == len(found["energy"])
    np.testing.assert_allclose(found["energy"], energies, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["gradient"], np.concatenate(gradients), rtol=0, atol=1e-4)
    assert found["mol_id"].tolist() == [sample.mol_id for sample in trained.raw]
    assert found["scf_iteration"].tolist() == [int(sample.scf_iteration) for sample in trained.raw]
    assert found["n_basis"].tolist() == [len(sample.coeffs) for sample in trained.raw]
    labelled = np.array([bool(sample.has_energy_label) for sample in trained.raw])
    assert np.isnan(found["energy_label"][~labelled]).all()
    raw_labels = np.array([float(sample.energy_label) for sample in trained.raw])
    np.testing.assert_allclose(found["energy_label"][labelled], raw_labels[labelled], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["pos"], np.concatenate([s.pos.numpy() for s in trained.raw]), atol=1e-6)
    units = json.loads(str(found["units"]))
    assert units["energy"] == "hartree"
    assert units["gradient"].startswith("hartree")
    printed = capsys.readouterr().out
    assert "energy [hartree]" in printed
    assert printed.count("\n" + trained.raw[0].mol_id) == 3
    assert f"{len(energies)} predictions: {output}" in printed
    assert f"samples: LabelFiles of {labels} (config: data/source)\n" in printed
    assert [p.name for p in output.parent.iterdir()] == [output.name]


def write_samples(setting: Any, path: Path, **changes: Any) -> Path:
    arrays = {
        "n_atoms": np.array([len(s.atomic_numbers) for s in setting.raw]),
        "pos": np.concatenate([s.pos.numpy() for s in setting.raw]),
        "atomic_numbers": np.concatenate([s.atomic_numbers.numpy() for s in setting.raw]),
        "coeffs": np.concatenate([s.coeffs.numpy() for s in setting.raw]),
        "dual_basis_integrals": np.concatenate([s.dual_basis_integrals.numpy() for s in setting.raw]),
        "mol_id": np.array([f"{s.mol_id}/{int(s.scf_iteration)}" for s in setting.raw]),
    }
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return path


def test_geometries_with_coefficients_give_what_label_files_give(trained: Any, tmp_path: Path) -> None:
    energies, _ = expected(trained)
    output = tmp_path / "predictions.xyz"
    for changes in ({}, {"dual_basis_integrals": None, "mol_id": None}):
        path = write_samples(trained, tmp_path / "samples.npz", **changes)
        options = [f"data.source.path={path}", f"data.source.basis_info={trained.basis_info}"]
        checkpoint = f"ckpt_path={trained.folder / 'run.ckpt'}"
        predictions = predict(composed(checkpoint, f"output={output}", "data/source=samples", *options))
        np.testing.assert_allclose([p.energy for p in predictions], energies, rtol=0, atol=1e-4)
        assert all(np.isnan(p.energy_label) for p in predictions)
        assert predictions[3].mol_id == ("3" if changes else f"{trained.raw[3].mol_id}/3")

    frames = ase.io.read(output, index=":")
    assert len(frames) == len(trained.raw)
    assert "energy=" not in output.read_text()  # ASE's name for total energies in eV
    for frame, sample, prediction in zip(frames, trained.raw, predictions, strict=True):
        assert frame.info["e_kin_hartree"] == prediction.energy
        assert frame.numbers.tolist() == sample.atomic_numbers.tolist()
        np.testing.assert_allclose(frame.positions, sample.pos.numpy() * ase.units.Bohr, atol=1e-6)


def predicted(unit: str, energy: float, label: float, forces: Any = ()) -> Prediction:
    pos = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
    forces = np.reshape(forces, (-1, 3))
    return Prediction("H2", -1, np.array([1, 1]), pos, energy, label, np.empty(0), forces, "", np.nan, "", unit)


def test_total_energies_and_forces_stand_under_the_keys_of_ase(tmp_path: Path) -> None:
    forces = np.arange(6.0)
    predictions = [predicted("hartree", -1.1, -1.2, forces), predicted("eV", -30.0, np.nan, forces)]
    meanings = [Meaning(None, "bohr", ""), Meaning(None, "angstrom", "")]
    frames = []
    for prediction, meaning in zip(predictions, meanings, strict=True):
        with (tmp_path / "predictions.xyz").open("wb") as file:
            write_xyz(file, [prediction], meaning)
        frames.append(ase.io.read(tmp_path / "predictions.xyz"))
    hartree, ev = frames
    assert hartree.get_potential_energy() == pytest.approx(-1.1 * ase.units.Hartree, rel=1e-12)
    np.testing.assert_allclose(hartree.get_forces().ravel(), forces * ase.units.Hartree / ase.units.Bohr, atol=1e-7)
    assert hartree.positions[1, 2] == pytest.approx(1.4 * ase.units.Bohr, abs=1e-7)
    assert hartree.info["energy_label_eV"] == pytest.approx(-1.2 * ase.units.Hartree)
    assert ev.get_potential_energy() == -30.0
    np.testing.assert_array_equal(ev.get_forces().ravel(), forces)
    assert ev.positions[1, 2] == 1.4
    assert ev.info == {"mol_id": "H2"}


def test_other_energies_have_keys_that_end_in_their_unit(tmp_path: Path) -> None:
    with (tmp_path / "predictions.xyz").open("wb") as file:
        write_xyz(file, [predicted("kcal/mol", 5.0, 6.0)], Meaning("e_kin", "bohr", ""))
    frame = ase.io.read(tmp_path / "predictions.xyz")
    assert frame.info == {"mol_id": "H2", "e_kin_kcal_per_mol": 5.0, "e_kin_label_kcal_per_mol": 6.0}
    assert frame.calc is None


def test_the_printed_table_has_columns_of_what_there_is_alone() -> None:
    printed = table([predicted("eV", -30.0, np.nan), predicted("eV", -31.0, -30.5)], head=5).splitlines()
    assert printed[0].split("  ")[0] == "molecule"
    assert re.findall(r"\S+(?: \[\S+\])?", printed[0]) == ["molecule", "energy [eV]", "label [eV]", "error [meV]"]
    assert not any(line.startswith(("  SCF", "  excess")) for line in printed)


def test_sample_files_that_do_not_fit_are_refused(trained: Any, tmp_path: Path) -> None:
    basis_info = BasisInfo.from_json(trained.basis_info)
    path = tmp_path / "samples.npz"
    cases = {
        "lacks the arrays": {"coeffs": None},
        "array 'coeffs' has shape": {"coeffs": np.zeros(7)},
        "array 'pos' has shape": {"pos": np.zeros((3, 3))},
        "array 'mol_id' has shape": {"mol_id": np.array(["a"])},
        "array 'dual_basis_integrals' has shape": {"dual_basis_integrals": np.zeros(2)},
        "one positive integer for each sample": {"n_atoms": np.array([0.5])},
    }
    for message, changes in cases.items():
        with pytest.raises(LabelFileError, match=message):
            SampleFileDataset(str(write_samples(trained, path, **changes)), basis_info)
    coeffs = np.concatenate([s.coeffs.numpy() for s in trained.raw])
    coeffs[5] = np.nan
    with pytest.raises(LabelFileError, match="'coeffs' holds NaN"):
        SampleFileDataset(str(write_samples(trained, path, coeffs=coeffs)), basis_info)
    path.write_bytes(b"PK nothing")
    with pytest.raises(LabelFileError, match="cannot be read as an npz file"):
        SampleFileDataset(str(path), basis_info)
    write_samples(trained, path)
    dataset = SampleFileDataset(str(path), basis_info)
    assert torch.equal(dataset[-1].coeffs, trained.raw[-1].coeffs)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_wrong_settings_of_a_prediction_are_named(trained: Any, tmp_path: Path) -> None:
    from ofdft_norm.config import SampleFile

    checkpoint = trained.folder / "run.ckpt"
    with pytest.raises(ConfigError, match=r"no such checkpoint \(config: ckpt_path\)"):
        predict(composed(f"ckpt_path={tmp_path / 'none.ckpt'}"))
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"cut\.ckpt: is no checkpoint, or is truncated"):
        predict(composed(f"ckpt_path={tmp_path / 'cut.ckpt'}"))
    with pytest.raises(ConfigError, match=r"ends in \.npz or \.xyz"):
        predict(composed(f"ckpt_path={checkpoint}", "output=predictions.csv"))
    path = write_samples(trained, tmp_path / "samples.npz")
    to_train = trained.datamodule(source=SampleFile(str(path), trained.basis_info))
    with pytest.raises(SplitError, match=r"no 'train' split; they have \[\]"):
        to_train.setup("fit")


POTENTIAL = "ofdft_norm.example.PotentialModule"


class ConstantModel(NormalizerMixin, LightningModule):
    """Predicts E' = value, and no gradient."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.where(batch.has_energy_label, self.value - batch.energy_label, 0.0).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        values = self.value.expand(len(batch.energy_reference))
        return {"energy": self.normalizer.denormalize_energy(values, batch)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def test_models_of_others_are_loaded_by_their_class_name(
    tmp_path: Path, labelled_molecules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    molecules = labelled_molecules(tmp_path)
    path, datamodule = tmp_path / "run.ckpt", molecules.datamodule()
    trainer = molecules.trainer()
    trainer.fit(ConstantModel(), datamodule=datamodule)
    trainer.save_checkpoint(path)
    monkeypatch.setitem(sys.modules, "somebodys_models", sys.modules[ConstantModel.__module__])
    options = [
        "model._target_=somebodys_models.ConstantModel",
        "data/source=label_files",
        f"data.source.paths={molecules.labels}",
        f"data.source.basis_info={molecules.basis_info}",
        "data.predict_on=test",
        f"output={tmp_path / 'predictions.npz'}",
    ]
    message = r"run\.ckpt: .*has no 'basis_info', .*\(config: model\._target_\)"
    with pytest.raises(ConfigError, match=message):  # the default's class
        predict(composed(f"ckpt_path={path}", *options[1:]))
    predictions = predict(composed(f"ckpt_path={path}", *options))
    assert len(predictions) == len(datamodule.datasets["test"])
    content = torch.load(path, weights_only=True)
    torch.save({**content, CHECKPOINT_KEY: {"config": {"model": {"_target_": POTENTIAL}}}}, path)
    with pytest.raises(ConfigError, match=rf"run\.ckpt: is of a model {POTENTIAL}, .*model\._target_={POTENTIAL}"):
        predict(composed(f"ckpt_path={path}", *options))
    assert all(p.gradient.size == 0 for p in predictions)


def excess_of(raw: Any, lowest: np.ndarray, highest: np.ndarray, shell: np.ndarray) -> tuple[float, int]:
    """How far a sample leaves a range, and in which dimension, by plain loops."""
    worst = (0.0, -1)
    for b, p in zip(raw.basis_function_ind.tolist(), raw.coeffs.tolist(), strict=True):
        width = max(highest[b] - lowest[b], 0.01 * max((highest - lowest)[shell == shell[b]]))
        excess = max(p - highest[b], lowest[b] - p, 0.0) / width
        worst = max(worst, (excess, b), key=lambda pair: pair[0])
    return worst


def test_samples_outside_of_the_training_range_are_told(
    tmp_path: Path, labelled_molecules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fluorides = ["fluoromethane", "difluoromethane", "trifluoromethane"]
    split = {"train": [*fluorides, "nitromethane", "propyne"], "val": ["carbon_tetrafluoride"], "test": ["ethane"]}
    files = {name: [f"{molecule}.zarr.zip" for molecule in molecules] for name, molecules in split.items()}
    (tmp_path / "split.json").write_text(json.dumps(files))
    setting, path = labelled_molecules(tmp_path / "setting"), tmp_path / "run.ckpt"
    datamodule = setting.datamodule(source=EmbeddedLabels(), split=SplitConfig(file=str(tmp_path / "split.json")))
    trainer = setting.trainer(callbacks=[CountOutOfRange()], limit_train_batches=1, num_sanity_val_steps=1)
    with pytest.warns(UserWarning, match="labelled validation samples have coefficients that leave the range"):
        trainer.fit(ConstantModel(), datamodule=datamodule)
    trainer.save_checkpoint(path)
    basis_info, raw = datamodule.basis_info, [s for name in ("val", "test") for s in datamodule.raw_datasets[name]]
    lowest, highest = np.full(basis_info.n_basis, np.inf), np.full(basis_info.n_basis, -np.inf)
    for sample in datamodule.raw_datasets["train"]:
        if sample.has_energy_label:
            np.minimum.at(lowest, sample.basis_function_ind.numpy(), sample.coeffs.numpy())
            np.maximum.at(highest, sample.basis_function_ind.numpy(), sample.coeffs.numpy())
    outside = [excess_of(sample, lowest, highest, basis_info.basis_func_to_shell) for sample in raw]
    expected = {(s.mol_id, int(s.scf_iteration)): of_sample for s, of_sample in zip(raw, outside, strict=True)}
    counted = [e for (name, i), (e, _) in expected.items() if name == "carbon_tetrafluoride" and i > 0]
    assert trainer.callback_metrics["val/out_of_range_samples"] == sum(e > 1 for e in counted) == len(counted)
    assert float(trainer.callback_metrics["val/largest_range_excess"]) == pytest.approx(max(counted), rel=1e-4)

    monkeypatch.setitem(sys.modules, "somebodys_models", sys.modules[ConstantModel.__module__])
    overrides = ["model._target_=somebodys_models.ConstantModel", f"ckpt_path={path}", f"output={tmp_path / 'p.npz'}"]
    with pytest.warns(UserWarning, match="leave the range of the training split by more than 1 of its width") as told:
        found = predict(composed(*overrides, "data.predict_on=val", "head=1", "range_tolerance=1"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*num_workers.*|.*does not have many workers.*")
        found += predict(composed(*overrides, "data.predict_on=test", "range_tolerance=3"))
    for p in found:
        excess, dimension = expected[p.mol_id, p.scf_iteration]
        assert p.range_excess == pytest.approx(excess, rel=1e-4, abs=1e-5)
        if excess > 1e-4:
            assert p.range_dimension == dimension_name(basis_info, dimension)
    worst = max(found, key=lambda p: p.range_excess)
    message = next(str(w.message) for w in told if "by more than 1 of" in str(w.message))
    where = f"SCF {worst.scf_iteration}, {worst.range_dimension}"
    assert f"'carbon_tetrafluoride' by {worst.range_excess:.1f} ({where})" in message
    assert "excess" in capsys.readouterr().out
    with np.load(tmp_path / "p.npz") as written:
        ethane = [p for p in found if p.mol_id == "ethane"]
        assert written["range_excess"].tolist() == [p.range_excess for p in ethane]
        assert written["range_dimension"].tolist() == [p.range_dimension for p in ethane]
