"""Whole runs: several processes, their record, another application."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from hydra.utils import instantiate
from lightning import Trainer
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from ofdft_norm.cli import main
from ofdft_norm.data.files import find_package_version
from ofdft_norm.example.callbacks import CHECKPOINT_KEY
from tests.hydra.composing import composed
from tests.processes import as_torchrun, in_new_process, run_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
TINY_POTENTIAL = (
    *("experiment=potential", "model.hidden_channels=8", "model.num_filters=8", "model.num_interactions=1"),
    *("data.source.train.n=26", "data.loader.batch_size=4", "data.statistics.progress=false", "logger=csv"),
    *("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"),
)


def train(folder: Path, *overrides: str) -> int:
    """Trains one epoch; returns the number of processes."""
    warnings.simplefilter("ignore")
    Figure.draw = lambda *_: None  # type: ignore[method-assign]  # drawing is a quarter of the time
    run_script(SCRIPT, *overrides, "trainer.max_epochs=1", folder=folder)
    return dist.get_world_size() if dist.is_initialized() else 1


@pytest.mark.parametrize("example", ["density", "potential"])
def test_two_torchrun_processes_end_with_results_and_one_record(example, tmp_path, small_run):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    own = (*small_run, "data.rescaling.s_grad=0.07") if example == "density" else TINY_POTENTIAL
    overrides = (*own, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={folder}")
    assert as_torchrun(train, tmp_path, *overrides, OFDFT_NORM_CACHE=str(cache)) == [2, 2]

    for name in ("results.txt", "results.csv", "parity.png", "normalization.png", "summary.txt"):
        assert (folder / name).exists()
    written = yaml.safe_load((folder / "run.yaml").read_text())
    assert written["package_version"] == find_package_version()
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
def test_spawned_processes_without_callbacks_end_with_results(tmp_path, small_run):
    own = [override for override in small_run if not override.startswith("callbacks.")]
    overrides = (*own, "trainer=ddp_spawn", "callbacks=none", f"hydra.run.dir={tmp_path / 'run'}")
    in_new_process(train, tmp_path, *overrides, OFDFT_NORM_CACHE=str(tmp_path / "cache"))
    assert "model" in (tmp_path / "run" / "results.txt").read_text()


def fit(folder: Path, *overrides: str) -> str:
    """Fits; returns the printed text."""
    warnings.simplefilter("ignore")
    return run_script(SCRIPT.with_name("fit_statistics.py"), *overrides, folder=folder)


def test_two_processes_fit_ahead_of_training_and_one_prints(tmp_path, small_data):
    cache = tmp_path / "cache"
    first, second = as_torchrun(fit, tmp_path, *small_data, OFDFT_NORM_CACHE=str(cache))
    (statistics,) = cache.glob("*.npz")
    assert first.endswith(f"statistics: {statistics}\n")
    assert second == ""
    assert list(tmp_path.iterdir()) == [cache]  # no run folder


# --- another application ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_another_applications_model_is_sized_by_the_data_and_predicts_with_the_command(
    small_data, tmp_path, monkeypatch, capsys
):
    path, model = tmp_path / "best.ckpt", "tests.lightning.conftest.TinyModel"
    own = ("~model", f"+model={{_target_: {model}, n_basis: '${{ofdft_norm.n_basis:data}}'}}")
    config = composed("train", *small_data, *own, f"data.statistics.dir={tmp_path}")
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=2, **off)
    trainer.fit(instantiate(config.model), datamodule=instantiate(config.data))
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["n_basis"] == len(checkpoint["state_dict"]["weights"]) == 477

    words = ["predict", f"ckpt_path={path}", f"output={tmp_path / 'out.csv'}", "data.predict_on=test"]
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):  # a class is not imported because a file names it
        main(words)
    assert "model._target_=" in capsys.readouterr().err
    main([*words, f"model._target_={model}", "range_tolerance=1e9"])
    assert "hydrazine" in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize(
    ("name", "message"), [("ASEFiles, paths: a.xyz", r"data\.source has no density basis"), ("None", r"data\.source")]
)
def test_resolvers_explain_a_missing_basis(name, message):
    composed("train")  # Hydra loads the plug-in that registers the resolvers
    keys = "{" + ", ".join(f"{n}: '${{ofdft_norm.{n}:data}}'" for n in ("n_basis", "irreps_per_atom", "atomic_numbers"))
    config: Any = OmegaConf.create(f"{keys}, data: {{source: {{_target_: ofdft_norm.config.{name}}}}}}}")
    with pytest.raises(InterpolationResolutionError, match=message):
        _ = config.n_basis
    config.data.source = {"_target_": "ofdft_norm.config.EmbeddedLabels"}
    assert len(config.irreps_per_atom) == len(config.atomic_numbers) == 5
