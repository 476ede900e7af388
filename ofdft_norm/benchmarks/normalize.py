"""Normalising batches: its share of a training step, and its bandwidth on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch_geometric.data import Batch

from ofdft_norm import (
    BasisInfo,
    DatasetStatistics,
    HasEnergyLabelSampleWeigher,
    OFDFTDataModule,
)
from ofdft_norm.benchmarks.comparison import Row, compare
from ofdft_norm.benchmarks.random_labels import BASIS, samples_in_memory
from ofdft_norm.config import AtomRefConfig, RescalingConfig, StatisticsConfig
from ofdft_norm.example import DensityModule
from ofdft_norm.normalization.build import build_normalizer
from ofdft_norm.normalization.transforms import NormalizeTransform


def measure(repeats: int) -> list[Row]:
    """Measures the share of a training step, and the bandwidth where there is a GPU.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    warnings.simplefilter("ignore", UserWarning)  # the random molecules have no F
    torch.set_num_threads(1)  # as configs/train.yaml
    rows = step_rows(repeats)
    if torch.cuda.is_available():
        return rows + bandwidth_rows(repeats)
    print("no GPU: the bandwidth of normalising on one is not measured")
    return rows


def step_rows(repeats: int) -> list[Row]:
    """Normalising an epoch's batches, as `apply=batch` does, over the worked example's training steps on them.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    datamodule = OFDFTDataModule(statistics=StatisticsConfig(progress=False), apply="batch")
    raw = list(datamodule.train_dataloader())
    normalize = NormalizeTransform(datamodule.normalizer, torch.float32, check_values=False)
    batches = [normalize(batch) for batch in raw]
    model = DensityModule()
    model.model_normalizer.copy_of(datamodule.normalizer)
    model.build(cast(BasisInfo, datamodule.basis_info))
    optimizer = torch.optim.AdamW(model.parameters())

    def steps() -> None:
        for batch in batches:
            optimizer.zero_grad()
            model.loss(batch, *model(batch))["loss"].backward()
            optimizer.step()

    times = compare(lambda: [normalize(batch) for batch in raw], steps, repeats)
    return [Row(f"normalise {len(raw)} batches of 32 embedded samples / training steps", *times, "< 0.02")]


def bandwidth_rows(repeats: int) -> list[Row]:
    """Compiled normalisation on a GPU over a copy of as many bytes: about 1.2e6 coefficients.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    samples = samples_in_memory(8, 8)
    statistics = DatasetStatistics.from_dataset(None, samples, BASIS, [HasEnergyLabelSampleWeigher()], progress=False)
    normalizer = build_normalizer(statistics, BASIS, AtomRefConfig(), RescalingConfig()).cuda()
    raw = Batch.from_data_list(samples * 16, follow_batch=["coeffs"]).cuda()
    fields, n = normalizer.fields_of(raw), len(raw.energy_label)
    compiled = torch.compile(normalizer.normalize_fields, fullgraph=True)
    read = sum(value.nbytes for value in fields.values())
    written = sum(value.nbytes for value in compiled(fields, n).values())
    source = torch.empty((read + written) // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def timed(action: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(20):
                action()
            torch.cuda.synchronize()

        return run

    times = compare(timed(lambda: compiled(fields, n)), timed(lambda: target.copy_(source)), repeats)
    normalising, copying = (20e-9 * (read + written) / time for time in times[:2])
    print(f"{normalising:.0f} GB/s normalising, {copying:.0f} GB/s copying")
    return [Row("normalise on the GPU / copy of as many bytes, 20 times", *times, "<= 2")]
