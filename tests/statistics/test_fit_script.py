"""scripts/fit_statistics.py, as users start it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ofdft_norm import DatasetStatistics
from tests.processes import as_torchrun, in_new_process, run_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "fit_statistics.py"


def run(folder: Path, cache: str) -> tuple[str, list[str]]:
    """Runs the script; returns what it printed and the folders it wrote."""
    overrides = [
        "data/source=label_files",
        f"data.source.paths={folder}",
        f"data.source.basis_info={folder}/basis_info.json",
        f"data.statistics.dir={folder}/{cache}",
        "data.statistics.progress=false",
    ]
    printed = run_script(SCRIPT, *overrides, folder=folder)
    return printed, [str(path) for path in (folder / cache).glob("*.zarr.zip")]


def test_alone_and_under_torchrun(labels: Any, assert_same_statistics: Any) -> None:
    for i, numbers in enumerate([(8, 1, 1), (6, 1, 1, 1, 1), (6, 8), (8, 8), (1, 1), (6, 6, 1, 1)] * 2):
        labels.write(f"molecule_{i}.zarr.zip", numbers, 3)
    (labels.folder / "basis_info.json").write_text(json.dumps(labels.basis_info.to_dict()))
    shown, (written,) = in_new_process(run, labels.folder, "alone")
    (shown_together, (written_together,)), (shown_by_second, _) = as_torchrun(run, labels.folder, "together")
    alone, together = DatasetStatistics(written), DatasetStatistics(written_together)
    assert_same_statistics(together.to_arrays(), alone.to_arrays())
    *table, last = shown.splitlines()
    assert last == f"statistics: {written}"
    assert shown_together.splitlines() == [*table, f"statistics: {written_together}"]
    assert shown_by_second == ""
    n_samples = int(alone.load_statistic("has_energy_label", "n_samples"))
    assert n_samples == 2 * int(alone.load_statistic("has_energy_label", "n_molecules"))
    assert f"has_energy_label {n_samples:>8}" in table[1]
    assert np.isfinite(alone.load_statistic("has_energy_label", "energy_minus_atom_ref/mae"))
    assert not (labels.folder / "outputs").exists()
