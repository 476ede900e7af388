"""A run leaves a record of what it was made of, and needs no other configuration when it is distributed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from ofdft_norm.example.run_record import CHECKPOINT_KEY, RunRecord
from ofdft_norm.version import package_version

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "train.py")


def test_two_torchrun_processes_make_one_run_with_a_full_record(tmp_path: Path, small_run: tuple[str, ...]) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    command = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(SCRIPT, *small_run, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1"),
        *("data.rescaling.s_grad=0.07", f"hydra.run.dir={folder}"),
    )
    inherited = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "PYTHONPATH")}
    environment = {**inherited, "OFDFT_NORM_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, text=True, capture_output=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Starting with 2 processes" in done.stderr

    written = yaml.safe_load((folder / "run.yaml").read_text())
    assert written["package_version"] == package_version() != "(not installed)"
    (statistics,) = cache.glob("*.zarr")
    assert statistics.name.startswith(written["statistics_fingerprint"][:32])
    assert written["config"]["data"]["rescaling"]["s_grad"] == 0.07
    assert yaml.safe_load((folder / "config.yaml").read_text()) == written["config"]
    assert "${" not in (folder / "config.yaml").read_text()
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert checkpoint[CHECKPOINT_KEY] == written
        assert checkpoint["OFDFTDataModule"]["fingerprint"] == written["statistics_fingerprint"]


def test_a_resumed_run_records_the_fingerprint_of_its_checkpoint(tmp_path: Path) -> None:
    def trainer(fingerprint: str | None) -> Any:
        return SimpleNamespace(datamodule=SimpleNamespace(fingerprint=fingerprint), is_global_zero=True)

    checkpoint: dict[str, Any] = {}
    RunRecord({"seed": 1}, tmp_path).on_save_checkpoint(trainer("abc"), Any, checkpoint)
    resumed = RunRecord({"seed": 2}, tmp_path)
    resumed.on_load_checkpoint(trainer(None), Any, checkpoint)
    resumed.on_train_start(trainer(None), Any)
    written = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert (written["statistics_fingerprint"], written["config"]) == ("abc", {"seed": 2})
    # a checkpoint of somebody else's has no record
    other = RunRecord({}, tmp_path)
    other.on_load_checkpoint(trainer(None), Any, {})
    assert other.record(trainer(None))["statistics_fingerprint"] is None


def test_only_rank_0_writes(tmp_path: Path) -> None:
    RunRecord({}, tmp_path / "run").on_train_start(SimpleNamespace(is_global_zero=False), Any)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
