"""Several processes: DDP, a run that is resumed in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ofdft_norm.normalization.normalizer_state import describe_difference

RUN = Path(__file__).parent / "_run.py"


def run(task: str, timeout: int = 400, **arguments: Any) -> None:
    hidden = ("PL_GLOBAL_SEED", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, str(RUN), task, json.dumps(arguments)]
    done = subprocess.run(
        command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_two_ranks_train_as_one_process_does(setting: Any) -> None:
    folder = str(setting.folder)
    run("ddp", folder=folder, devices=1, batch_size=4, apply="dataset")
    run("ddp", folder=folder, devices=2, batch_size=2, apply="batch")
    names = ["rank0_of_1", "rank0_of_2", "rank1_of_2"]
    results = [json.loads((setting.folder / f"{name}.json").read_text()) for name in names]
    states = [torch.load(setting.folder / f"{name}.pt", weights_only=True) for name in names]
    assert results[0]["n_samples"] % 2 == 1

    assert describe_difference(states[1], states[2]) == ""  # the same bits on both ranks
    for part in ("reference", "rescaling"):
        for name, value in states[0][part]["values"].items():
            if torch.is_tensor(value):
                torch.testing.assert_close(states[1][part]["values"][name], value, rtol=1e-9, atol=1e-9)
    assert [r["sampler"] for r in results] == ["EpochSampler", "DistributedSampler", "DistributedSampler"]
    assert [len(r["cached"]) for r in results] == [1, 1, 0]  # rank 0 alone writes

    # the last batch of an odd number of samples has one sample twice in DDP, so that it differs there
    one, two = results[0]["losses"], results[1]["losses"]
    assert two == results[2]["losses"]
    n_batches = -(-results[0]["n_samples"] // 4)
    assert len(one) == len(two) == 2 * n_batches
    np.testing.assert_allclose(two[: n_batches - 1], one[: n_batches - 1], rtol=1e-9)
    assert results[1]["test"] == results[2]["test"]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(setting: Any) -> None:
    folder = str(setting.folder)
    run("resume", folder=folder, runs=[["straight", 4, None], ["first", 2, None]])
    run("resume", folder=folder, runs=[["second", 4, str(setting.folder / "first.ckpt")]])
    straight, first, second = (
        json.loads((setting.folder / f"{name}.json").read_text()) for name in ("straight", "first", "second")
    )
    assert straight["losses"] == first["losses"] + second["losses"]
    assert straight["val"] == second["val"]
    epoch = len(straight["losses"]) // 4
    assert straight["losses"][:epoch] != straight["losses"][epoch : 2 * epoch]
    a, b = (torch.load(setting.folder / f"{name}.ckpt", weights_only=True) for name in ("straight", "second"))
    assert torch.equal(a["state_dict"]["weights"], b["state_dict"]["weights"])
