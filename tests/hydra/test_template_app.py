"""An application with groups for data, model, callbacks, loggers and trainer, which sizes its model by the data."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

import ofdft_norm
from ofdft_norm.data.embedded_data import EMBEDDED_DATA

TRAIN = """\
import hydra
import lightning
from omegaconf import DictConfig, OmegaConf


def each(group):
    return [hydra.utils.instantiate(entry) for entry in (group or {}).values()]


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig):
    lightning.seed_everything(cfg.seed, workers=True)
    print(OmegaConf.to_yaml(cfg.model, resolve=True))
    datamodule = hydra.utils.instantiate(cfg.data)
    model = hydra.utils.instantiate(cfg.model)
    loggers = each(cfg.logger)
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=each(cfg.callbacks), logger=loggers)
    for logger in loggers:
        logger.log_hyperparams({"model": OmegaConf.to_container(cfg.model, resolve=True)})
    trainer.fit(model=model, datamodule=datamodule)
    trainer.test(model=model, datamodule=datamodule, ckpt_path=trainer.checkpoint_callback.best_model_path)


main()
"""

MODEL = """\
import torch
from lightning import LightningModule
from ofdft_norm import NormalizerMixin


class Functional(NormalizerMixin, LightningModule):
    def __init__(self, n_basis, elements, learning_rate):
        super().__init__()
        self.save_hyperparameters()
        self.weights = torch.nn.Parameter(torch.zeros(n_basis))
        self.by_element = torch.nn.ParameterDict({str(z): torch.zeros(()) for z in elements})

    def energies(self, batch):
        terms = self.weights[batch.basis_function_ind] * torch.tanh(batch.coeffs)
        return torch.zeros(batch.num_graphs).index_add(0, batch.coeffs_batch, terms)

    def training_step(self, batch, batch_idx):
        return (self.energies(batch) - batch.energy_label)[batch.has_energy_label].abs().mean()

    def log_error(self, batch, name):
        error = self.normalizer.denormalize_energy(self.energies(batch) - batch.energy_label, batch)
        self.log(name, (error - batch.energy_reference)[batch.has_energy_label].abs().mean().float())

    def validation_step(self, batch, batch_idx):
        self.log_error(batch, "val/mae")

    def test_step(self, batch, batch_idx):
        self.log_error(batch, "test/mae")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)
"""

CONFIGS = {
    "train": """
defaults: [_self_, {data: ofdft_norm}, {model: functional}, {callbacks: default}, {logger: both}, {trainer: default}]
seed: 1
""",
    "model/functional": """
_target_: functional.Functional
n_basis: ${ofdft_norm.n_basis:data}
elements: ${ofdft_norm.atomic_numbers:data}
learning_rate: 0.01
""",
    "callbacks/default": """
checkpoint:
  _target_: lightning.pytorch.callbacks.ModelCheckpoint
  dirpath: ${hydra:runtime.output_dir}/checkpoints
  filename: best
  monitor: val/mae
normalization: {_target_: ofdft_norm.example.callbacks.LogNormalization, plots: false}
""",
    "logger/both": """
csv: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: "${hydra:runtime.output_dir}", name: csv}
tensorboard:
  _target_: lightning.pytorch.loggers.TensorBoardLogger
  save_dir: ${hydra:runtime.output_dir}
  name: tensorboard
""",
    "trainer/default": """
_target_: lightning.Trainer
accelerator: cpu
devices: 1
max_epochs: 1
limit_train_batches: 2
limit_test_batches: 1
enable_progress_bar: false
enable_model_summary: false
""",
}


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_the_template_s_train_sizes_its_model_by_the_data(
    small_data: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in CONFIGS.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "functional.py").write_text(MODEL)
    (tmp_path / "train.py").write_text(TRAIN)
    run, script = tmp_path / "run", str(tmp_path / "train.py")
    options = (f"hydra.run.dir={run}", f"data.statistics.dir={tmp_path}", "hydra/job_logging=disabled")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", [script, *options, *small_data])
    runpy.run_path(script, run_name="__main__")
    sys.modules.pop("functional")
    assert "n_basis: 477\nelements:\n- 1\n- 6\n- 7\n- 8\n- 9\n" in capsys.readouterr().out
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["n_basis"] == len(checkpoint["state_dict"]["weights"]) == 477
    assert checkpoint["hyper_parameters"]["elements"] == [1, 6, 7, 8, 9]
    header = (run / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/mae", "test/mae", "normalization/energy_scale_mHa"} <= set(header)
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))


def test_names_that_ask_for_the_basis_say_where_there_is_none() -> None:
    config = OmegaConf.create(
        {
            "data": {"source": {"_target_": "ofdft_norm.config.ASEFiles", "paths": "data.xyz"}},
            "other": {"source": {"_target_": "ofdft_norm.config.EmbeddedLabels"}},
            "size": "${ofdft_norm.n_basis:data}",
            "lost": "${ofdft_norm.n_basis:nothing}",
            "shells": "${ofdft_norm.irreps_per_atom:other}",
        }
    )
    basis = ofdft_norm.BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")
    assert list(config.shells) == list(basis.irreps_per_atom)
    with pytest.raises(InterpolationResolutionError, match=r"data.source has no density basis: give the"):
        _ = config.size
    with pytest.raises(InterpolationResolutionError, match=r"nothing.source: the configuration has none"):
        _ = config.lost
