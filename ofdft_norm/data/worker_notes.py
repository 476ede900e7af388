"""What a process is at work on: errors of somebody else's code, and the death of a loader's worker, tell it.

A worker that is killed, as systems do that run out of memory, cannot say where it was. Each worker notes what it is at
work on in memory that it shares with the loader's process.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from ofdft_norm.errors import OFDFTNormError

# Of a batch, so many samples are named.
TOLD = 10
# Bytes of a worker's note; a longer one is cut.
_LENGTH = 4096
# A killed worker's sockets close before the system tells of its death, which torch then raises wherever its process is:
# within so many seconds.
_DEATH = 1.0
# How torch says that workers are gone.
_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")

_loaders: WeakSet[NamingDataLoader] = WeakSet()
_note: npt.NDArray[np.uint8] | None = None  # this worker's, which the loader's process reads
_current = ""


@contextmanager
def at_work_on(describe: Callable[[], str]) -> Iterator[None]:
    """Lets errors that are not the package's own, and the death of a worker, tell what was worked on; may be nested.

    Args:
        describe: Says what it is; called when it is needed, and at once in a worker.
    """
    global _current
    outer, _current = _current, describe() if _note is not None else ""
    _write(_current)
    try:
        yield
    except OFDFTNormError:  # says so itself
        raise
    except Exception as error:
        if not any(note.startswith("while at work on ") for note in getattr(error, "__notes__", ())):
            error.add_note(f"while at work on {describe()}")
        raise
    finally:
        _current = outer
        _write(outer)


def first_of(names: Sequence[str], n_samples: int) -> str:
    """Returns the names of a batch's first samples, each once, and how many samples follow.

    Args:
        names: Of at most `TOLD` samples.
        n_samples: Samples of the batch.

    Example:
        >>> first_of(["water", "water", "methane"], 5)
        'water, methane, and 2 more samples'
    """
    told = ", ".join(dict.fromkeys(names))
    return told if len(names) == n_samples else f"{told}, and {n_samples - len(names)} more samples"


def _write(text: str) -> None:
    if _note is not None and text:  # an idle worker's note stays: its last batch may wait in memory to be fetched
        content = f"{os.getpid()} {text}".encode()[: _LENGTH - 1]
        _note[: len(content) + 1] = list(content + b"\0")


def name_work_of_dead_workers(error: BaseException) -> None:
    """Adds to torch's error about dead workers what they were at work on; any other error stays as it is.

    Args:
        error: What was raised in the process of the loader.
    """
    gone = _GONE.search(str(error)) if isinstance(error, RuntimeError) else None
    for pid in re.findall(r"\d+", gone[1]) if gone else ():
        notes = [bytes(row).split(b"\0")[0].decode(errors="replace") for loader in _loaders for row in loader.notes()]
        for text in {note.removeprefix(f"{pid} ") for note in notes if note.startswith(f"{pid} ")}:
            told = (
                f"worker {pid} was at work on {text}, or had been last; where the system kills processes because "
                "memory runs out, use fewer workers, smaller batches, or fewer of them ahead (config: "
                "data.loader.num_workers, data.loader.batch_size, data.loader.prefetch_factor)"
            )
            if told not in getattr(error, "__notes__", ()):
                error.add_note(told)


class NamingDataLoader(DataLoader[Any]):
    """torch's loader, whose errors about dead workers say what those were at work on.

    Takes the arguments of torch's. Where the main process is busy with something else when it hears of the death, the
    error comes from there: `OFDFTDataModule.on_exception` then adds what is known.
    """

    _notes: torch.Tensor | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Starts the workers, and returns the batches."""
        if self.num_workers == 0:
            return super().__iter__()
        if self._notes is None:  # persistent workers keep theirs
            self._notes = torch.zeros(self.num_workers, _LENGTH, dtype=torch.uint8).share_memory_()
            _loaders.add(self)
        # only now: Lightning sets or copies what users give
        theirs = self.worker_init_fn
        self.worker_init_fn = partial(_begin, self._notes, theirs)
        try:
            return _naming(super().__iter__())
        finally:
            self.worker_init_fn = theirs

    def notes(self) -> npt.NDArray[np.uint8]:
        """Returns (n_workers, bytes) what the workers have written, as text that ends in a zero."""
        return np.empty((0, _LENGTH), dtype=np.uint8) if self._notes is None else self._notes.numpy()


def _naming(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except RuntimeError as error:
        name_work_of_dead_workers(error)
        raise
    except (ConnectionError, EOFError) as error:
        try:
            time.sleep(_DEATH)
        except RuntimeError as death:
            name_work_of_dead_workers(death)
            raise death from error
        raise


def _begin(notes: torch.Tensor, theirs: Any, worker: int) -> None:
    """Starts a worker: it knows its note, then does what the loader's own `worker_init_fn` does."""
    global _note, _current
    _note, _current = notes[worker].numpy(), ""
    if theirs is not None:
        theirs(worker)
