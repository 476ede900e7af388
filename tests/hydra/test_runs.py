"""A run leaves a record of what it was made of, and needs no other configuration when it is distributed."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from ofdft_norm import BasisInfo
from ofdft_norm.commands.pack_labels import pre_transforms as named_pre_transforms
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from ofdft_norm.example.run_record import CHECKPOINT_KEY, RunRecord
from ofdft_norm.version import package_version
from tests.hydra.conftest import SPLIT
from tests.processes import as_torchrun, in_new_process, run_script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train.py"


def run(folder: Path, *overrides: str) -> str:
    """Trains; returns what is printed."""
    warnings.simplefilter("ignore")
    return run_script(SCRIPT, *overrides, folder=folder)


def train(folder: Path, *overrides: str) -> int:
    """Trains; returns the number of processes that did."""
    run(folder, *overrides)
    return dist.get_world_size()


def test_two_torchrun_processes_make_one_run_with_a_full_record(tmp_path: Path, small_run: tuple[str, ...]) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    overrides = (
        *(*small_run, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1"),
        *("data.rescaling.s_grad=0.07", f"hydra.run.dir={folder}"),
    )
    assert as_torchrun(train, tmp_path, *overrides, OFDFT_NORM_CACHE=str(cache)) == [2, 2]

    written = yaml.safe_load((folder / "run.yaml").read_text())
    assert written["package_version"] == package_version() != "(not installed)"
    (statistics,) = cache.glob("*.zarr.zip")
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
    RunRecord({}, tmp_path / "run").on_train_start(SimpleNamespace(is_global_zero=False), Any)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pre_transforms", ["project", "local_frames_natrep"])
def test_packed_labels_are_trained_and_tested_on_below_the_folder_of_the_start(
    pre_transforms: str, tmp_path: Path, small_run: tuple[str, ...]
) -> None:
    overrides = [override for override in small_run if not override.startswith(("data.source.", "data/source"))]
    paths = [EMBEDDED_DATA / "labels" / name for names in SPLIT.values() for name in (f"{n}.zarr.zip" for n in names)]
    basis_info = BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")
    applied = [] if pre_transforms == "project" else named_pre_transforms([pre_transforms])
    pack_labels(PackingPlan(paths, basis_info, pre_transforms=applied), tmp_path / "packed", progress=False)
    packed = ("data/source=packed", "data.source.paths=packed", f"data/pre_transforms={pre_transforms}")
    printed = in_new_process(
        run, tmp_path, *overrides, *packed, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert f"run folder: {tmp_path / 'run'}" in printed
    assert (tmp_path / "run" / "results.csv").exists()
