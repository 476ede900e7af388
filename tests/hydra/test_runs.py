"""Whole runs: several processes, their record, labels and predictions in other coordinates, another application."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from ofdft_norm import OFData, project_gradient
from ofdft_norm.cli import main
from ofdft_norm.data.dataset import compose as compose_transforms
from ofdft_norm.data.files import package_version
from ofdft_norm.example.callbacks import CHECKPOINT_KEY
from ofdft_norm.example.predict import predict
from tests.hydra.composing import composed
from tests.labelled_molecules import LabelledMolecules
from tests.processes import as_torchrun, in_new_process, run_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
TINY_POTENTIAL = (
    *("experiment=potential", "model.hidden_channels=8", "model.num_filters=8", "model.num_interactions=1"),
    *("data.source.datamodule.n_train=16", "data.source.datamodule.n_val=5", "data.source.datamodule.n_test=5"),
    *("data.source.datamodule.batch_size=4", "data.statistics.progress=false", "logger=csv"),
    *("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"),
)


def train(folder: Path, *overrides: str) -> int:
    """Trains one epoch; returns the number of processes."""
    warnings.simplefilter("ignore")
    run_script(SCRIPT, *overrides, "trainer.max_epochs=1", folder=folder)
    return dist.get_world_size() if dist.is_initialized() else 1


@pytest.mark.parametrize("example", ["density", "potential"])
def test_two_torchrun_processes_end_with_results_and_one_record(
    example: str, tmp_path: Path, small_run: tuple[str, ...]
) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    own = (*small_run, "data.rescaling.s_grad=0.07") if example == "density" else TINY_POTENTIAL
    overrides = (*own, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={folder}")
    assert as_torchrun(train, tmp_path, *overrides, OFDFT_NORM_CACHE=str(cache)) == [2, 2]

    for name in ("results.txt", "results.csv", "parity.png", "normalization.png", "summary.txt"):
        assert (folder / name).exists()
    written = yaml.safe_load((folder / "run.yaml").read_text())
    assert written["package_version"] == package_version()
    assert yaml.safe_load((folder / "config.yaml").read_text()) == written["config"]
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert checkpoint[CHECKPOINT_KEY] == written
        assert checkpoint["OFDFTDataModule"]["fingerprint"] == written["statistics_fingerprint"]
    if example == "density":
        assert written["config"]["data"]["rescaling"]["s_grad"] == 0.07
        (statistics,) = cache.glob("*.npz")
        assert statistics.name.startswith(written["statistics_fingerprint"][:16])


@pytest.mark.slow  # each of four processes imports everything
def test_spawned_processes_without_callbacks_end_with_results(tmp_path: Path, small_run: tuple[str, ...]) -> None:
    own = [override for override in small_run if not override.startswith("callbacks.")]
    overrides = (*own, "trainer=ddp_spawn", "callbacks=none", f"hydra.run.dir={tmp_path / 'run'}")
    in_new_process(train, tmp_path, *overrides, OFDFT_NORM_CACHE=str(tmp_path / "cache"))
    assert "model" in (tmp_path / "run" / "results.txt").read_text()


def fit(folder: Path, *overrides: str) -> str:
    """Fits; returns the printed text."""
    warnings.simplefilter("ignore")
    return run_script(SCRIPT.with_name("fit_statistics.py"), *overrides, folder=folder)


def test_two_processes_fit_ahead_of_training_and_one_prints(tmp_path: Path, small_data: tuple[str, ...]) -> None:
    cache = tmp_path / "cache"
    first, second = as_torchrun(fit, tmp_path, *small_data, OFDFT_NORM_CACHE=str(cache))
    (statistics,) = cache.glob("*.npz")
    assert first.endswith(f"statistics: {statistics}\n")
    assert second == ""
    assert list(tmp_path.iterdir()) == [cache]  # no run folder


# --- coordinates ------------------------------------------------------------------------------------------------------


def raw_gradient(model: Any, sample: OFData, pre_transforms: list[Any]) -> torch.Tensor:
    """Differentiates the predicted energy with respect to coefficients of the density basis, through every step."""
    raw = sample.clone()
    raw.coeffs.requires_grad_()
    transform: Any = compose_transforms(pre_transforms)
    batch = model.normalizer.normalize(transform(raw.clone()))
    energy = model.normalizer.denormalize_energy(model.double().network(batch, batch.coeffs), batch)
    (gradient,) = torch.autograd.grad(energy.sum(), raw.coeffs)
    return gradient


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize(
    ("option", "coordinates"), [("project", "raw"), ("local_frames_natrep", "local_frames+natural_symmetric")]
)
def test_option_trains_on_raw_labels_and_predicts_gradients_in_their_basis(
    option: str, coordinates: str, tmp_path: Path
) -> None:
    molecules = LabelledMolecules(tmp_path, ("methyl_nitrite", "nitromethane", "cyanic_acid"))
    files = (f"data.source.paths={molecules.labels}", f"data.source.basis_info={molecules.basis_info}")
    labels = ("data/source=label_files", *files, "data.split.train=1", "data.split.val=0", "data.split.test=0")
    settings = (f"data/pre_transforms={option}", f"data.statistics.dir={tmp_path}", "data.statistics.progress=false")
    trainer = ("trainer=debug", "trainer.detect_anomaly=false", "trainer.enable_progress_bar=false")
    checkpoint = tmp_path / "run.ckpt"
    config = composed("train", *labels, *settings, *trainer, "model.width=8", "model.n_layers=1")
    options = (f"ckpt_path={checkpoint}", f"output={tmp_path / 'out.npz'}", "head=0", "accelerator=cpu")
    to_predict = composed("predict", *labels[:3], "coordinates=raw", *options)
    datamodule, model = instantiate(config.data), instantiate(config.model)
    trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False, default_root_dir=str(tmp_path))
    trainer.fit(model, datamodule)
    trainer.save_checkpoint(checkpoint)
    assert datamodule.normalizer.coordinates == coordinates
    assert next(iter(datamodule.train_dataloader())).coordinates[0] == coordinates

    found, source = predict(to_predict), instantiate(config.data.source)
    samples = source.open("all", source.everything(), ())
    assert len(found["energy"]) == len(samples)
    assert set(found["coordinates"]) == {"raw"}
    gradients = np.split(found["gradient"], np.cumsum(found["n_basis"])[:-1])
    for i in (1, len(samples) - 1):
        expected = raw_gradient(model, samples[i], datamodule.pre_transforms)
        # single precision; in other coordinates than these a gradient would differ by its own size
        scale = float(project_gradient(expected, samples[i]).abs().max())
        np.testing.assert_allclose(gradients[i], expected.numpy(), atol=1e-3 * scale)


# --- another application ----------------------------------------------------------------------------------------------

TRAIN = """\
import hydra, lightning
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig):
    lightning.seed_everything(cfg.seed, workers=True)
    datamodule, model = hydra.utils.instantiate(cfg.data), hydra.utils.instantiate(cfg.model)
    callbacks = [hydra.utils.instantiate(entry) for entry in cfg.callbacks.values()]
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks)
    trainer.fit(model=model, datamodule=datamodule)
    trainer.test(model=model, datamodule=datamodule, ckpt_path=trainer.checkpoint_callback.best_model_path)


main()
"""
CONFIG = """\
defaults: [_self_, {data: ofdft_norm}]
seed: 1
model:
  _target_: tests.lightning.conftest.TinyModel
  n_basis: ${ofdft_norm.n_basis:data}
callbacks:
  checkpoint:
    _target_: lightning.pytorch.callbacks.ModelCheckpoint
    dirpath: ${hydra:runtime.output_dir}/checkpoints
    filename: best
    monitor: val_mae
  normalization: {_target_: ofdft_norm.example.callbacks.LogNormalization, plots: false}
trainer:
  _target_: lightning.Trainer
  accelerator: cpu
  devices: 1
  max_epochs: 1
  limit_train_batches: 2
  default_root_dir: ${hydra:runtime.output_dir}
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_another_application_sizes_its_model_by_the_data_and_predicts_with_the_command(
    small_data: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"configs/train.yaml": CONFIG, "train.py": TRAIN}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    run = tmp_path / "run"
    options = (f"hydra.run.dir={run}", f"data.statistics.dir={tmp_path}", "hydra/job_logging=disabled")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py"), *options, *small_data])
    runpy.run_path(str(tmp_path / "train.py"), run_name="__main__")
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["n_basis"] == len(checkpoint["state_dict"]["weights"]) == 477

    words = ["predict", f"ckpt_path={path}", f"output={tmp_path / 'out.csv'}", "data.predict_on=test"]
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit):  # a class is not imported because a file names it
        main(words)
    assert "model._target_=" in capsys.readouterr().err
    main([*words, "model._target_=tests.lightning.conftest.TinyModel", "range_tolerance=1e9"])
    assert "hydrazine" in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize(
    ("name", "message"), [("ASEFiles, paths: a.xyz", r"data\.source has no density basis"), ("None", r"data\.source")]
)
def test_resolvers_explain_a_missing_basis(name: str, message: str) -> None:
    composed("train")  # Hydra loads the plug-in that registers the resolvers
    keys = "{" + ", ".join(f"{n}: '${{ofdft_norm.{n}:data}}'" for n in ("n_basis", "irreps_per_atom", "atomic_numbers"))
    config: Any = OmegaConf.create(f"{keys}, data: {{source: {{_target_: ofdft_norm.config.{name}}}}}}}")
    with pytest.raises(InterpolationResolutionError, match=message):
        _ = config.n_basis
    config.data.source = {"_target_": "ofdft_norm.config.EmbeddedLabels"}
    assert len(config.irreps_per_atom) == len(config.atomic_numbers) == 5
