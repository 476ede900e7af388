"""New processes for tests, without new imports.

A server process imports torch and everything else once for a session. Each process that a test asks for is forked from
it within milliseconds, knows nothing of the tests that ran before, and may be killed. Ranks meet at a file: no port is
needed.
"""

import contextlib
import io
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

IMPORTED = "pytest hypothesis scipy.linalg zarr lightning hydra torch_geometric.loader pyscf.dft ofdft_norm"


@lru_cache
def context() -> ForkServerContext:
    """Returns multiprocessing's context 'forkserver': the server forks its processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED.split())
    return context


def in_new_process(function: Callable[..., Any], *args: Any, **environment: str) -> Any:
    """Calls a function in a new process, with this process's environment and these variables; raises its errors."""
    return _on_processes(1, _call, {**os.environ, **environment}, function, *args)[0]


def on_ranks(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    """Calls a function in new processes that form a gloo group; returns results by rank, raises the first error."""
    return _on_ranks(world_size, {}, True, function, *args)


def as_torchrun(function: Callable[..., Any], *args: Any, world_size: int = 2, **environment: str) -> list[Any]:
    """Calls a function in new processes that look as torchrun starts them: it makes the process group itself."""
    return _on_ranks(world_size, environment, False, function, *args)


def _on_ranks(world_size: int, environment: Mapping[str, str], join: bool, *call: Any) -> list[Any]:
    variables = {**os.environ, **environment, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    variables |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "MASTER_ADDR": "none", "MASTER_PORT": "0"}
    with tempfile.TemporaryDirectory() as folder:
        return _on_processes(world_size, _as_rank, f"file://{folder}/meeting", variables, join, *call)


def _on_processes(n: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Calls `function(i, *args)` for i < n, each in a process of its own, at the same time."""
    with ProcessPoolExecutor(n, mp_context=context()) as pool:
        futures = [pool.submit(function, i, *args) for i in range(n)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:  # raise the first: a rank that waits for another fails because of it
        raise min(errors, key=lambda error: getattr(error, "seconds", 0.0))
    return [future.result() for future in futures]


def _call(_: int, variables: Mapping[str, str], function: Callable[..., Any], *args: Any) -> Any:
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    return function(*args)


def _as_rank(rank: int, meeting: str, variables: Mapping[str, str], join: bool, *call: Any) -> Any:
    init_process_group, world_size = dist.init_process_group, int(variables["WORLD_SIZE"])

    def meet(backend: str | None = None, **_: Any) -> None:
        init_process_group(backend, init_method=meeting, rank=rank, world_size=world_size)

    vars(dist)["init_process_group"] = meet  # whatever port the environment names: nobody listens there
    try:
        if join:
            meet("gloo")
        return _call(rank, {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}, *call)
    except Exception as error:
        error.seconds = time.monotonic()  # type: ignore[attr-defined]
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_script(script: Path, *arguments: str, folder: Path) -> str:
    """Runs a script in a folder, in the process that calls this; returns what it printed."""
    os.chdir(folder)
    sys.argv = [str(script), *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()
