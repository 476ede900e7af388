"""scripts/fit_statistics.py, as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ofdft_norm import DatasetStatistics

SCRIPT = Path(__file__).parents[2] / "scripts" / "fit_statistics.py"


def run(folder: Path, cache: str, *launcher: str) -> tuple[str, DatasetStatistics]:
    overrides = [
        "data/source=label_files",
        f"data.source.paths={folder}",
        f"data.source.basis_info={folder}/basis_info.json",
        f"data.statistics.dir={folder}/{cache}",
        "data.statistics.progress=false",
    ]
    out = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    (written,) = (folder / cache).glob("*.zarr")
    assert out.stdout.splitlines()[-1] == f"statistics: {written}"
    return out.stdout, DatasetStatistics(written)


def test_alone_and_under_torchrun(labels: Any, assert_same_statistics: Any) -> None:
    for i, numbers in enumerate([(8, 1, 1), (6, 1, 1, 1, 1), (6, 8), (8, 8), (1, 1), (6, 6, 1, 1)] * 2):
        labels.write(f"molecule_{i}.zarr.zip", numbers, 3)
    (labels.folder / "basis_info.json").write_text(json.dumps(labels.basis_info.to_dict()))
    shown, alone = run(labels.folder, "alone")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    shown_together, together = run(labels.folder, "together", *torchrun)
    assert_same_statistics(together.to_arrays(), alone.to_arrays())
    table = shown.splitlines()[:-1]
    assert table == shown_together.splitlines()[:-1]  # once, from rank 0
    n_samples = int(alone.load_statistic("has_energy_label", "n_samples"))
    assert n_samples == 2 * int(alone.load_statistic("has_energy_label", "n_molecules"))
    assert f"has_energy_label {n_samples:>8}" in table[1]
    assert np.isfinite(alone.load_statistic("has_energy_label", "energy_minus_atom_ref/mae"))
    assert not (labels.folder / "outputs").exists()
