"""The processes of tests are new, meet without a port, and say what went wrong."""

from __future__ import annotations

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
import torch.distributed as dist

from tests.processes import as_torchrun, in_new_process, on_ranks


def process_and_variable(name: str) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get(name)


def sum_of_ranks(offset: int) -> tuple[int, float]:
    rank = dist.get_rank()
    total = torch.tensor(float(rank + offset))
    dist.all_reduce(total)
    return rank, float(total)


def failing() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has no data")
    dist.barrier()


def dying() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def launched() -> tuple[str, int, int]:
    dist.init_process_group("gloo", init_method="env://")
    return os.environ["LOCAL_RANK"], dist.get_rank(), dist.get_world_size()


def test_a_new_process_has_this_ones_environment_and_nothing_of_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFDFT_NORM_TEST", "here")
    first = in_new_process(process_and_variable, "OFDFT_NORM_TEST")
    second = in_new_process(process_and_variable, "OTHER", OTHER="given")
    third = in_new_process(process_and_variable, "OTHER")
    assert len({os.getpid(), first[0], second[0], third[0]}) == 4
    assert (first[1], second[1], third[1]) == ("here", "given", None)


def test_ranks_form_a_group() -> None:
    assert on_ranks(sum_of_ranks, 3) == [(0, 7.0), (1, 7.0)]
    assert on_ranks(sum_of_ranks, 0, world_size=3) == [(0, 3.0), (1, 3.0), (2, 3.0)]
    assert as_torchrun(launched) == [("0", 0, 2), ("1", 1, 2)]


def test_what_a_process_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="rank 1 has no data"):
        on_ranks(failing)
    with pytest.raises(BrokenProcessPool):
        in_new_process(dying)
