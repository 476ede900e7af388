"""The fit of linear element references."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ofdft_norm.benchmarks.comparison import Row, compare
from ofdft_norm.normalization.fit_linear_references import fit_linear_references


def measure(repeats: int) -> list[Row]:
    """Fit of linear references over bare iteration of a PyG loader: molecules of 20 atoms in memory.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    rng = np.random.default_rng(0)
    numbers = rng.choice([1, 6, 7, 8, 9], (20_000, 20), p=[0.5, 0.3, 0.1, 0.08, 0.02])
    data = [
        Data(atomic_numbers=torch.tensor(z), pos=torch.rand(len(z), 3), energy=torch.tensor([-5.0 * z.sum()]).double())
        for z in numbers
    ]
    loader = DataLoader(data, batch_size=32, shuffle=True)

    def iterate() -> None:
        for _ in loader:
            pass

    rows = []
    for log_metrics in (True, False):
        fit = partial(fit_linear_references, ["energy"], data, 32, log_metrics=log_metrics)
        times = compare(fit, iterate, repeats)
        rows.append(Row(f"fit_linear_references(log_metrics={log_metrics}) / bare loader", *times, "<= 1.3"))
        print(f"log_metrics={log_metrics}: {len(data) / times[0]:.0f} molecules/s, bare {len(data) / times[1]:.0f}")
    return rows
