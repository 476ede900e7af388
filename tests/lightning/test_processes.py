"""Several processes: DDP, a run that is resumed in a new process."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.strategies import DDPStrategy

from ofdft_norm.config import StatisticsConfig
from ofdft_norm.normalization.state import describe_difference, dump_normalizer
from ofdft_norm.statistics import fit_statistics
from tests.lightning.conftest import Setting, TinyModel
from tests.processes import as_torchrun, in_new_process


class Recorder(TinyModel):
    """Keeps the losses of each epoch's global batches, and what the ranks' samplers are."""

    def on_train_epoch_start(self) -> None:
        self.sampler = type(self.trainer.train_dataloader.sampler).__name__

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses[-1] = float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean"))
        return loss


def train_and_test(setting: Setting, batch_size: int, apply: str, devices: int) -> dict[str, Any]:
    """Trains, as one rank or alone, and returns this rank's normaliser and losses."""
    seed_everything(5, verbose=False)
    # ranks need not share a file system
    cache = setting.folder / f"cache_{devices}_{os.environ.get('RANK', 0)}"
    datamodule = setting.datamodule(
        batch_size=batch_size,
        apply=apply,
        dtype="float64",
        statistics=StatisticsConfig(dir=str(cache), progress=False),
    )
    model = Recorder()
    trainer = setting.trainer(
        max_epochs=2,
        devices=devices,
        strategy=DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto",
        precision="64-true",
        enable_checkpointing=True,
    )
    trainer.fit(model, datamodule=datamodule)
    best = trainer.checkpoint_callback.best_model_path
    return {
        "test": trainer.test(model, datamodule=datamodule, ckpt_path=best, verbose=False),
        "normalizer": dump_normalizer(datamodule.normalizer),
        "losses": model.losses,
        "sampler": model.sampler,
        "cached": sorted(p.name for p in cache.glob("*.npz")),
        "n_samples": len(datamodule.datasets["train"]),
    }


def test_two_ranks_train_as_one_process_does(setting: Any) -> None:
    one = in_new_process(train_and_test, setting, 4, "dataset", 1)
    first, second = as_torchrun(train_and_test, setting, 2, "batch", 2)
    assert one["n_samples"] % 2 == 1

    assert describe_difference(first["normalizer"], second["normalizer"]) == ""  # the same bits on both ranks
    for part in ("reference", "rescaling"):
        for name, value in one["normalizer"]["parts"][part]["values"].items():
            if torch.is_tensor(value):
                torch.testing.assert_close(
                    first["normalizer"]["parts"][part]["values"][name], value, rtol=1e-9, atol=1e-9
                )
    samplers = [result["sampler"] for result in (one, first, second)]
    assert samplers == ["EpochSampler", "DistributedSampler", "DistributedSampler"]
    assert [len(result["cached"]) for result in (one, first, second)] == [1, 1, 0]  # rank 0 alone writes

    # the last batch of an odd number of samples has one sample twice in DDP, so that it differs there
    assert first["losses"] == second["losses"]
    n_batches = -(-one["n_samples"] // 4)
    assert len(one["losses"]) == len(first["losses"]) == 2 * n_batches
    np.testing.assert_allclose(first["losses"][: n_batches - 1], one["losses"][: n_batches - 1], rtol=1e-9)
    assert first["test"] == second["test"]


def train_until(setting: Setting, epochs: int, path: Path, checkpoint: Path | None = None) -> tuple[list[float], float]:
    """Trains up to an epoch, from the start or from a checkpoint; returns losses and the validation's error."""
    seed_everything(11, verbose=False)
    datamodule, model = setting.datamodule(batch_size=4), TinyModel()
    trainer = setting.trainer(max_epochs=epochs)
    with pytest.MonkeyPatch.context() as patch:
        if checkpoint is not None:  # the checkpoint's normaliser, not another fit
            patch.delattr(fit_statistics, "fit_statistics")
        trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint)
    trainer.save_checkpoint(path)
    return model.losses, float(trainer.callback_metrics["val_mae"])


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(setting: Any, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.ckpt" for name in ("straight", "first", "second")}
    straight, val = in_new_process(train_until, setting, 4, paths["straight"])
    first, _ = in_new_process(train_until, setting, 2, paths["first"])
    second, val_of_second = in_new_process(train_until, setting, 4, paths["second"], paths["first"])
    assert straight == first + second
    assert val == val_of_second
    epoch = len(straight) // 4
    assert straight[:epoch] != straight[epoch : 2 * epoch]
    a, b = (torch.load(paths[name], weights_only=True) for name in ("straight", "second"))
    assert torch.equal(a["state_dict"]["weights"], b["state_dict"]["weights"])
