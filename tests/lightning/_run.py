"""Runs in processes of its own: `python _run.py <task> <JSON of arguments>`; results go to JSON files."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from conftest import Setting, TinyModel  # noqa: E402
from lightning import seed_everything  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402

from ofdft_norm.config import Statistics  # noqa: E402
from ofdft_norm.normalization.normalizer_state import normalizer_to_state  # noqa: E402
from ofdft_norm.statistics import fit as statistics_fit  # noqa: E402


def existing(folder: str) -> Setting:
    setting = Setting.__new__(Setting)
    setting.folder, setting.labels = Path(folder), Path(folder) / "labels"
    setting.basis_info = str(Path(folder) / "basis_info.json")
    return setting


class Recorder(TinyModel):
    """Keeps the losses of each epoch's global batches, and what the ranks' samplers are."""

    def on_train_epoch_start(self) -> None:
        self.samplers = type(self.trainer.train_dataloader.sampler).__name__

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        mean = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
        self.losses[-1] = float(mean)
        return loss


def ddp(folder: str, devices: int, batch_size: int, apply: str) -> None:
    """Trains on one or more processes; each rank writes its normaliser and its losses."""
    setting = existing(folder)
    seed_everything(5, verbose=False)
    strategy = DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    cache = Path(folder) / f"cache_{devices}_{os.environ.get('LOCAL_RANK', 0)}"  # ranks need not share a file system
    datamodule = setting.datamodule(
        batch_size=batch_size,
        apply=apply,
        dtype="float64",
        statistics=Statistics(dir=str(cache), progress=False),
    )
    model = Recorder()
    trainer = setting.trainer(
        max_epochs=2, devices=devices, strategy=strategy, precision="64-true", enable_checkpointing=True
    )
    trainer.fit(model, datamodule=datamodule)
    test = trainer.test(
        model, datamodule=datamodule, ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False
    )
    out = Path(folder) / f"rank{trainer.global_rank}_of_{devices}"
    torch.save(normalizer_to_state(datamodule.normalizer), out.with_suffix(".pt"))
    written = sorted(p.name for p in cache.glob("*.zarr"))
    result = {"losses": model.losses, "sampler": model.samplers, "test": test, "cached": written}
    result["n_samples"] = len(datamodule.datasets["train"])
    out.with_suffix(".json").write_text(json.dumps(result))


def resume(folder: str, runs: list[tuple[str, int, str | None]]) -> None:
    """Trains up to an epoch, from the start or from a checkpoint, and writes losses and checkpoint."""
    for name, epochs, checkpoint in runs:
        train_until(existing(folder), name, epochs, checkpoint)


def train_until(setting: Setting, name: str, epochs: int, checkpoint: str | None) -> None:
    seed_everything(11, verbose=False)
    if checkpoint is not None:  # the checkpoint's normaliser, not another fit

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("fitted again")

        statistics_fit.fit_statistics = refuse  # type: ignore[assignment]
    datamodule, model = setting.datamodule(batch_size=4), TinyModel()
    trainer = setting.trainer(max_epochs=epochs)
    trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint)
    trainer.save_checkpoint(setting.folder / f"{name}.ckpt")
    result = {"losses": model.losses, "val": float(trainer.callback_metrics["val_mae"])}
    (setting.folder / f"{name}.json").write_text(json.dumps(result))


def fit_statistics(folder: str) -> None:
    """Fits through the cache; says when the fit starts, and what came of it."""
    setting = existing(folder)
    datamodule = setting.datamodule()
    print("ready", flush=True)
    datamodule.setup("fit")
    print("reused" if datamodule._fitted.reused else "fitted", flush=True)
    torch.save(normalizer_to_state(datamodule.normalizer), Path(folder) / f"normalizer_{os.getpid()}.pt")


if __name__ == "__main__":
    {"ddp": ddp, "resume": resume, "fit_statistics": fit_statistics}[sys.argv[1]](**json.loads(sys.argv[2]))
