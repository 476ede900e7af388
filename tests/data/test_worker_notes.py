"""The death of a loader's worker, and what somebody else's code raises, tell what was worked on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import Subset, _utils, dataloader

from ofdft_norm import OFDataset
from ofdft_norm.data import worker_notes
from ofdft_norm.data.packed_dataset import PackedDataset
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels
from ofdft_norm.data.transformed_dataset import CopyThen, JoinSamples, TransformedDataset
from ofdft_norm.data.worker_notes import NamingDataLoader, at_work_on, name_work_of_dead_workers
from ofdft_norm.errors import LabelFileError
from tests import processes

METHANE_ROW = 2
RAISED = f"molecule 'methane', SCF iteration {METHANE_ROW} (config: data.pre_transforms)"


class FailsAt:
    """Raises at one SCF iteration of methane, or kills its process there."""

    def __init__(self, kill: bool, works_on_batches: bool = False) -> None:
        self.kill = kill
        self.works_on_batches = works_on_batches

    def __call__(self, sample: Any) -> Any:
        names = sample.mol_id if isinstance(sample.mol_id, list) else [sample.mol_id]
        if any(n == "methane" and i == METHANE_ROW for n, i in zip(names, sample.scf_iteration.tolist(), strict=True)):
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("division by zero")
        return sample


def unchanged(sample: Any) -> Any:
    return sample


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch look for dead workers, and wait for living ones to end, every half a second instead of five."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    """Water, methane and formaldehyde, with 4, 3 and 5 SCF iterations."""
    return labels.write_several()


def loader(dataset: Any, transform: Any = unchanged, batch_size: int = 6, **options: Any) -> NamingDataLoader:
    return NamingDataLoader(
        TransformedDataset(dataset, transform), batch_size, collate_fn=JoinSamples(["coeffs"]), **options
    )


def message_of(batches: Any) -> str:
    with pytest.raises((RuntimeError, ZeroDivisionError)) as raised:
        list(batches)
    return "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])


# a server's processes get what spawned ones get, pickled
@pytest.mark.parametrize(("context", "persistent"), [("fork", False), ("forkserver", True)])
def test_a_killed_worker_tells_the_sample(context: str, persistent: bool, paths: Any, basis_info: Any) -> None:
    processes.context()
    dataset = OFDataset(paths, basis_info, transform=FailsAt(kill=True))
    options = {"num_workers": 2, "multiprocessing_context": context, "persistent_workers": persistent}
    message = message_of(loader(dataset, **options))  # the other worker has samples of formaldehyde alone
    assert re.search(r"killed by signal: Killed|exited unexpectedly", message)
    assert f"was at work on {RAISED}, or had been last; " in message
    assert "config: data.loader.num_workers" in message


@pytest.mark.parametrize("place", ["packed", "files", "batch", "memory", "subset"])
def test_every_data_set_names_its_samples(place: str, paths: Any, basis_info: Any, tmp_path: Path) -> None:
    files, together = OFDataset(paths, basis_info), place == "batch"
    dataset: Any = files
    names = [*[str(paths[0])] * 4, *[str(paths[1])] * 3, *[str(paths[2])] * 5]
    if place == "packed":
        folder = pack_labels(PackingPlan(paths, basis_info), tmp_path / "packed", progress=False)
        dataset, names = PackedDataset([folder]), [f"{folder}: {Path(name).name}" for name in names]
    elif place in ("memory", "subset"):
        dataset = list(files) if place == "memory" else Subset(files, [11, 0, 6, 4, 5, 9])
        names = [f"sample {i}" for i in range(12)]
    expected = names[2 if place == "subset" else 6]
    if together:  # one transform for the joined batch, whose first ten samples are named
        expected = f"{', '.join(map(str, paths))}, and 2 more samples"
    found = loader(dataset, CopyThen(FailsAt(True, together)), 12, num_workers=1)
    assert f"was at work on {expected}, or had been last; " in message_of(found)
    assert TransformedDataset(found.dataset, unchanged).names([2, 5]) == [names[2], names[5]]


def test_a_file_that_kills_its_reader_is_told(paths: Any, basis_info: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGBUS)

    dataset = OFDataset(paths, basis_info)
    monkeypatch.setattr("ofdft_norm.data.of_dataset.read_molecule", read)
    message = message_of(loader(dataset, CopyThen(FailsAt(True, True)), 12, num_workers=1))
    assert f"was at work on {paths[0]}, or had been last; " in message


class FailsLater(FailsAt):
    """Kills its process when it sees a sample for the second time."""

    def __init__(self) -> None:
        super().__init__(kill=True)
        self.seen = 0

    def __call__(self, sample: Any) -> Any:
        self.seen += 1
        return super().__call__(sample) if self.seen > 12 else sample


def test_persistent_workers_are_known_in_later_epochs(paths: Any, basis_info: Any) -> None:
    dataset = OFDataset(paths, basis_info, transform=FailsLater())
    found = loader(dataset, batch_size=12, num_workers=1, persistent_workers=True)
    assert len(list(found)) == len(found) == 1
    assert f"was at work on {RAISED}, or had been last; " in message_of(found)


def test_a_connection_that_a_dying_worker_closes_is_told_as_its_death(
    paths: Any, basis_info: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = loader(OFDataset(paths, basis_info), num_workers=1, persistent_workers=True)
    assert len(list(found)) == 2
    pid = bytes(found.notes()[0]).split()[0].decode()

    def lost() -> Iterator[None]:
        yield from ()
        raise ConnectionResetError(104, "Connection reset by peer")

    def hears_of_the_death(_: float) -> None:
        raise RuntimeError(f"DataLoader worker (pid {pid}) is killed by signal: Killed.")

    monkeypatch.setattr(worker_notes, "time", SimpleNamespace(sleep=hears_of_the_death))
    assert f"worker {pid} was at work on " in message_of(worker_notes._naming(lost()))
    monkeypatch.setattr(worker_notes, "time", SimpleNamespace(sleep=lambda _: None))
    with pytest.raises(ConnectionResetError) as raised:  # somebody else's connection
        list(worker_notes._naming(lost()))
    assert not hasattr(raised.value, "__notes__")


def test_the_loaders_own_worker_init_fn_is_called(paths: Any, basis_info: Any, tmp_path: Path) -> None:
    found = loader(OFDataset(paths, basis_info), num_workers=2, worker_init_fn=lambda i: (tmp_path / f"{i}").touch())
    theirs = found.worker_init_fn
    assert len(list(found)) == 2
    assert {path.name for path in tmp_path.glob("?")} == {"0", "1"}
    assert found.worker_init_fn is theirs


@pytest.mark.parametrize("n_workers", [0, 1])
def test_errors_of_somebody_elses_transform_tell_the_sample(n_workers: int, paths: Any, basis_info: Any) -> None:
    raw, fails = OFDataset(paths, basis_info), FailsAt(kill=False)
    before = loader(OFDataset(paths, basis_info, transform=fails), num_workers=n_workers)
    message = message_of(before)
    assert f"while at work on {RAISED}" in message
    assert message.count("while at work on") == 1
    assert f"while at work on {paths[1]}" in message_of(loader(raw, CopyThen(fails), num_workers=n_workers))


def test_other_errors_stay_as_they_are() -> None:
    for error in (RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."), RuntimeError("other")):
        name_work_of_dead_workers(error)
        assert not hasattr(error, "__notes__")
    with pytest.raises(LabelFileError) as raised, at_work_on(lambda: "a sample"):
        raise LabelFileError("names the file itself")
    assert not hasattr(raised.value, "__notes__")
