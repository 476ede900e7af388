"""Fitted statistics are reused where nothing changed, refitted where anything did, and never half written."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from torch_geometric.transforms import BaseTransform, Compose

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    HasEnergyLabelSampleWeigher,
    OFDataset,
    OFDFTDataModule,
    ProjectGradient,
)
from ofdft_norm.config import LabelFiles, SplitConfig, StatisticsConfig
from ofdft_norm.data import file_states as states
from ofdft_norm.data import label_files
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics import cache
from ofdft_norm.statistics.cache import dataset_fingerprint, default_cache_dir
from tests.processes import Killed, context, in_new_process

ALL_TRAIN = SplitConfig(train=1, val=0, test=0)


class Scaled(BaseTransform):
    """Multiplies the coefficients."""

    works_on_batches = True

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def forward(self, data: Any) -> Any:
        data.coeffs = data.coeffs * self.factor
        return data


@pytest.fixture
def folder(labels: Any, tmp_path: Path) -> Path:
    """Three molecules, each of H, C and O."""
    labels.folder = tmp_path / "labels"
    labels.folder.mkdir()
    labels.write("formaldehyde.zarr.zip", (6, 8, 1, 1), 4)
    labels.write("methanol.zarr", (6, 8, 1, 1, 1, 1), 3)
    labels.write("ketene.zarr.zip", (6, 6, 8, 1, 1), 5)
    (tmp_path / "basis_info.json").write_text(json.dumps(labels.basis_info.to_dict()))
    return tmp_path


def datamodule(folder: Path, statistics: dict[str, Any] | None = None, **options: Any) -> OFDFTDataModule:
    source = LabelFiles(
        paths=str(folder / "labels"), basis_info=str(folder / "basis_info.json"), **options.pop("source", {})
    )
    keep = {"dir": str(folder / "cache"), "progress": False}
    defaults: dict[str, Any] = {"split": ALL_TRAIN, "statistics": StatisticsConfig(**{**keep, **(statistics or {})})}
    return OFDFTDataModule(source, **{**defaults, **options})


def reused(datamodule: OFDFTDataModule) -> bool:
    datamodule.setup("fit")
    fitted = datamodule._fitted
    assert fitted is not None
    return fitted.reused


def test_nothing_changed_is_reused(folder: Path) -> None:
    first = datamodule(folder)
    assert not reused(first)
    second = datamodule(folder, reference=None, rescaling=None, dtype="float64", apply="batch")
    assert reused(second)
    assert first.fingerprint == second.fingerprint
    assert first.statistics.keys_recursive() == second.statistics.keys_recursive()
    for key in first.statistics.keys_recursive():
        np.testing.assert_array_equal(
            first.statistics.load_statistic(*key.split("/", 1)), second.statistics.load_statistic(*key.split("/", 1))
        )
    assert [p.name for p in (folder / "cache").iterdir()] == [f"{str(first.fingerprint)[:32]}.zarr.zip"]


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "split": lambda folder: {"split": SplitConfig(train=0.67, val=0.33, test=0)},
    "excluded file": lambda folder: {"source": {"exclude": ["ketene.zarr.zip"]}},
    "target energy": lambda folder: {"source": {"energy_key": "e_tot"}},
    "target gradient": lambda folder: {"source": {"gradient_key": "grad_tot"}},
    "iterations": lambda folder: {"source": {"limit_scf_iterations": 2}},
    "initial guess": lambda folder: {"source": {"keep_initial_guess": False}},
    "no pre-transform": lambda folder: {"pre_transforms": []},
    "another pre-transform": lambda folder: {"pre_transforms": [ProjectGradient(), Scaled(2.0)]},
    "weigher": lambda folder: {
        "statistics": {"weighers": [HasEnergyLabelSampleWeigher(), ConstantSampleWeigher()]},
    },
    "initial guess weigher": lambda folder: {"statistics": {"initial_guess_weighers": [ConstantSampleWeigher()]}},
    "bias": lambda folder: {"statistics": {"with_bias": False}},
    "residuals": lambda folder: {"statistics": {"residuals": False}},
    "contents": lambda folder: {"statistics": {"fingerprint": "contents"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_settings_leads_to_a_new_fit(folder: Path, change: str) -> None:
    assert not reused(datamodule(folder))
    changed = datamodule(folder, **CHANGES[change](folder))
    assert not reused(changed)
    again = datamodule(folder, **CHANGES[change](folder))
    assert reused(again)
    assert again.fingerprint == changed.fingerprint
    assert reused(datamodule(folder))


def test_a_changed_parameter_of_a_pre_transform_leads_to_a_new_fit(folder: Path) -> None:
    def scaled(factor: float) -> OFDFTDataModule:
        return datamodule(folder, pre_transforms=[Compose([ProjectGradient(), Scaled(factor)])])

    assert not reused(scaled(2.0))
    assert not reused(scaled(3.0))
    assert reused(scaled(2.0))


def touched(path: Path) -> None:
    file = path / "of_labels/spatial/coeffs/0.0" if path.is_dir() else path
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("name", ["formaldehyde.zarr.zip", "methanol.zarr"])
def test_changed_label_files_lead_to_a_new_fit(folder: Path, name: str) -> None:
    by_contents = {"fingerprint": "contents"}
    assert not reused(datamodule(folder))
    assert not reused(datamodule(folder, by_contents))
    touched(folder / "labels" / name)
    assert not reused(datamodule(folder))
    assert reused(datamodule(folder, by_contents))  # only looked at from outside


def test_a_changed_basis_leads_to_a_new_fit(folder: Path, labels: Any) -> None:
    assert not reused(datamodule(folder))
    basis = labels.basis_info.to_dict()
    more = {"atomic_numbers": [*basis["atomic_numbers"], 9], "irreps_per_atom": [*basis["irreps_per_atom"], "1x0e"]}
    (folder / "basis_info.json").write_text(json.dumps(more))
    with pytest.warns(UserWarning, match="saw no atom"):
        assert not reused(datamodule(folder))


def test_a_transform_that_cannot_be_recognised_is_never_trusted_and_the_log_says_so_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        changed = datamodule(folder, pre_transforms=[ProjectGradient(), Scaled(threading.Lock())])
        with pytest.raises(TypeError):  # nothing can be multiplied by a lock: the fit was begun
            changed.setup("fit")
    assert not (folder / "cache").exists()
    said = [record.message for record in caplog.records if "statistics are fitted in every run" in record.message]
    assert len(said) == 1
    assert "transforms[1].factor is a lock" in said[0]


def doubled(data: Any, factor: float = 2.0) -> Any:
    data.coeffs = data.coeffs * factor
    return data


@pytest.mark.parametrize("transform", [doubled, functools.partial(doubled, factor=3.0), lambda data: doubled(data, 4)])
def test_functions_are_recognised(transform: Any, folder: Path) -> None:
    assert not reused(datamodule(folder, pre_transforms=[transform]))
    assert reused(datamodule(folder, pre_transforms=[transform]))


class OneName(ConstantSampleWeigher):
    """A weigher whose key does not tell its argument."""

    def summary_string(self) -> str:
        return "constant"


def test_a_weigher_of_another_argument_leads_to_a_new_fit_under_the_same_key(folder: Path) -> None:
    def weighed(weight: float) -> OFDFTDataModule:
        return datamodule(folder, {"weighers": [OneName(weight)], "weigher_key": "constant"})

    assert not reused(weighed(1.0))
    assert not reused(weighed(2.0))
    assert reused(weighed(1.0))


def test_a_value_changed_with_size_and_time_kept_is_seen_by_contents(folder: Path) -> None:
    by_contents = {"fingerprint": "contents"}
    assert not reused(datamodule(folder))
    assert not reused(datamodule(folder, by_contents))
    file = folder / "labels/methanol.zarr/of_labels/spatial/coeffs/1.0"
    before = file.stat()
    file.write_bytes(np.flip(np.frombuffer(file.read_bytes())).tobytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reused(datamodule(folder))
    assert not reused(datamodule(folder, by_contents))


def test_given_statistics_are_used_and_refused_where_they_do_not_fit(folder: Path, labels: Any) -> None:
    first = datamodule(folder)
    first.setup("fit")
    path = folder / "given.zarr"
    first.statistics.save_to(path)
    given = datamodule(folder, {"path": str(path)})
    assert reused(given)
    assert given.fingerprint is None

    with pytest.raises(StatisticsError, match=r"nowhere\.zarr.*config: data\.statistics\.path"):
        datamodule(folder, {"path": str(folder / "nowhere.zarr")}).setup("fit")
    with pytest.raises(StatisticsError, match=r"weigher 'constant'.*\['has_energy_label'\]"):
        datamodule(folder, {"path": str(path), "weigher_key": "constant"}).setup("fit")
    other = BasisInfo([1, 6, 8], ["2x0e", "3x0e+2x1o+1x2e", "2x0e+1x1o+1x2e"]).to_dict()
    (folder / "basis_info.json").write_text(json.dumps(other))
    with pytest.raises(StatisticsError, match=r"given\.zarr: made for the basis .* but the labels have"):
        datamodule(folder, {"path": str(path)}).setup("fit")
    (folder / "basis_info.json").write_text(json.dumps(labels.basis_info.to_dict()))

    for key in ("gradient_max_after_atom_ref", "coeffs/std", "atom_ref_atom_type_bias"):
        incomplete = folder / f"without_{key.replace('/', '_')}.zarr"
        first.statistics.save_to(incomplete)
        del zarr.open_group(str(incomplete), mode="a", zarr_format=2)[f"has_energy_label/{key}"]
        with pytest.raises(StatisticsError, match=rf"no statistic '{key}'"):
            datamodule(folder, {"path": str(incomplete)}).setup("fit")
    (folder / "foreign.zarr").mkdir()
    (folder / "foreign.zarr" / "notes.txt").write_text("nothing")
    with pytest.raises(StatisticsError, match="no dataset statistics"):
        datamodule(folder, {"path": str(folder / "foreign.zarr")}).setup("fit")


def test_a_damaged_entry_is_fitted_again_with_a_warning(folder: Path) -> None:
    first = datamodule(folder)
    first.setup("fit")
    [entry] = (folder / "cache").iterdir()
    entry.write_bytes(entry.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="cannot be read as dataset statistics.*fitting again"):
        assert not reused(datamodule(folder))
    assert reused(datamodule(folder))


# Changes of an entry, unpacked


def flipped(entry: Path) -> None:
    chunk = entry / "has_energy_label/coeffs/mean/0"
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)


def zeroed(entry: Path) -> None:
    chunk = entry / "has_energy_label/coeffs/std/0"
    chunk.write_bytes(bytes(chunk.stat().st_size))


def edited(entry: Path) -> None:
    attributes = json.loads((entry / ".zattrs").read_text())
    (entry / ".zattrs").write_text(json.dumps({**attributes, "residuals": "edited"}))


def without_checksum(entry: Path) -> None:
    attributes = json.loads((entry / ".zattrs").read_text())
    attributes.pop("checksum")
    (entry / ".zattrs").write_text(json.dumps(attributes))


def without_array(entry: Path) -> None:
    shutil.rmtree(entry / "has_energy_label/gradient_max_after_atom_ref")


def with_foreign_array(entry: Path) -> None:
    shutil.copytree(entry / "has_energy_label/coeffs/std", entry / "has_energy_label/coeffs/other")


@pytest.mark.parametrize("damage", [flipped, zeroed, edited, without_checksum, without_array, with_foreign_array])
def test_an_entry_that_does_not_match_its_checksum_is_fitted_again(
    damage: Callable[[Path], None], folder: Path
) -> None:
    first = datamodule(folder)
    assert not reused(first)
    [entry] = (folder / "cache").iterdir()
    shutil.unpack_archive(entry, folder / "unpacked")
    damage(folder / "unpacked")
    entry.unlink()
    shutil.make_archive(str(entry.with_suffix("")), "zip", folder / "unpacked")
    again = datamodule(folder)
    with pytest.warns(UserWarning, match=r"does not match its checksum.*\(config: data\.statistics\.dir\)"):
        assert not reused(again)
    assert again.statistics.equals(first.statistics)
    assert reused(datamodule(folder))


@pytest.mark.parametrize("place", [".", "*.zip"])
def test_an_entry_that_others_may_write_is_used_only_where_that_is_allowed(place: str, folder: Path) -> None:
    assert not reused(datamodule(folder))
    for path in (folder / "cache").glob(place) if place != "." else [folder / "cache"]:
        path.chmod(0o777)
    assert reused(datamodule(folder, {"trust_shared": True}))
    with pytest.warns(UserWarning, match=r"others may write it: it is not used.*data\.statistics\.trust_shared"):
        assert not reused(datamodule(folder))


# --- ranks that see different data ------------------------------------------------------------------------------------


class Threads:
    """Two ranks as threads: what `Ranks` does, without processes."""

    group = "threads"
    world_size = 2

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.values: list[Any] = [None, None]
        self.here = threading.local()

    @property
    def rank(self) -> int:
        return int(self.here.rank)

    def gathered(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def raise_together(self, error: Exception | None) -> None:
        errors = self.gathered(error)
        failed = next((e for e in errors if e is not None), None)
        if failed is not None:
            raise error or failed


def on_two_ranks(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], Any]) -> list[Any]:
    """Returns what each rank returns or raises."""
    ranks = Threads()
    monkeypatch.setattr(cache, "current_ranks", lambda: ranks)

    def run(rank: int) -> Any:
        ranks.here.rank = rank
        try:
            return action(rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def seen(folder: Path, changes: Callable[[list[Path]], list[Path]] = list, **options: Any) -> OFDataset:
    paths = changes(sorted((folder / "labels").iterdir()))
    return OFDataset(paths, BasisInfo.from_json(folder / "basis_info.json"), **options)


def copied(folder: Path, tmp_path: Path, keep_times: bool = True) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "node_1", copy_function=shutil.copy2 if keep_times else shutil.copy))
    assert len(list((copy / "labels").iterdir())) == 3
    return copy


def test_ranks_that_see_the_same_agree(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [folder, copied(folder, tmp_path / "other")]
    basis_info = BasisInfo.from_json(folder / "basis_info.json")
    found = on_two_ranks(monkeypatch, lambda rank: dataset_fingerprint(seen(places[rank]), basis_info, {"a": 1}))
    assert all(isinstance(fingerprint, str) for fingerprint in found)


DIFFERENCES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "a file less": (
        lambda copy: (copy / "labels/ketene.zarr.zip").unlink(),
        {},
        r"see 1 label files .*\n  ketene\.zarr\.zip: rank 0 has \[\d+, \d+\], rank 1 has no such file",
    ),
    "an older version": (
        lambda copy: touched(copy / "labels/ketene.zarr.zip"),
        {},
        r"\n  ketene\.zarr\.zip: rank 0 has",
    ),
    "a chunk of a folder": (
        lambda copy: touched(copy / "labels/methanol.zarr"),
        {},
        r"methanol\.zarr/of_labels/.*0\.0",
    ),
    "another target": (lambda copy: None, {"energy_key": "e_tot"}, r"different data or settings: \['energy_key'\]"),
    "a pre-transform": (lambda copy: None, {"transform": Scaled(2.0)}, r"different data or settings: \['settings'\]"),
    "an iteration less": (lambda copy: None, {"limit_scf_iterations": 2}, r"data or settings: \['samples'\]"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_ranks_that_see_different_data_stop_together(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, options, message = DIFFERENCES[case]
    places = [folder, copied(folder, tmp_path / "other")]
    change(places[1])
    basis_info = BasisInfo.from_json(folder / "basis_info.json")

    def action(rank: int) -> Any:
        return dataset_fingerprint(seen(places[rank], **(options if rank else {})), basis_info, {})

    for error in on_two_ranks(monkeypatch, action):
        assert isinstance(error, StatisticsError)
        assert re.search(message, str(error))
        assert "(config: data" in str(error)


def test_copies_that_differ_in_time_alone_agree_by_contents(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [folder, copied(folder, tmp_path / "other", keep_times=False)]
    basis_info = BasisInfo.from_json(folder / "basis_info.json")
    for contents in (False, True):
        found = on_two_ranks(
            monkeypatch,
            lambda rank, contents=contents: dataset_fingerprint(
                seen(places[rank]), basis_info, {}, contents, tmp_path / f"memory_{rank}"
            ),
        )
        assert [isinstance(f, str) for f in found] == [contents, contents]
    assert isinstance(found[0], str)


def test_a_rank_that_cannot_look_stops_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = seen(folder)

    class Unreadable(OFDataset):
        def state(self, *args: Any, **options: Any) -> dict[str, Any]:
            raise StatisticsError("rank 1 cannot look")

    other = Unreadable(dataset.paths, dataset.basis_info)
    found = on_two_ranks(
        monkeypatch, lambda rank: dataset_fingerprint(other if rank else dataset, dataset.basis_info, {})
    )
    assert [str(error) for error in found] == ["rank 1 cannot look"] * 2


def test_data_sets_of_different_length_stop_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in on_two_ranks(monkeypatch, lambda rank: dataset_fingerprint([0] * (60 + rank), None, {})):
        assert isinstance(error, StatisticsError)
        assert "different data or settings: ['length']" in str(error)


@pytest.mark.parametrize("kind", ["below a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_a_warning(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "below a file":
        (folder / "file").write_text("")
        cache = folder / "file" / "cache"
    else:
        cache = folder / "cache"

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied", str(cache))

        monkeypatch.setattr(DatasetStatistics, "save_to", refuse)  # root may write everywhere
    with pytest.warns(UserWarning, match=r"could not be written .*config: data\.statistics\.dir"):
        assert not reused(datamodule(folder, {"dir": str(cache)}))


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("OFDFT_NORM_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / "xdg" / "ofdft_norm" / "statistics"
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"


def test_counts_of_iterations_are_remembered_until_a_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = label_files.read_n_scf_iterations

    def counting(path: Any) -> int:
        opened.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(states, "read_n_scf_iterations", counting)
    paths = sorted((folder / "labels").iterdir())
    for _ in range(2):
        assert states.scf_iteration_counts(paths, folder / "index", remember_from=1) == [4, 5, 3]
    assert len(opened) == 3
    touched(paths[2])
    assert states.scf_iteration_counts(paths, folder / "index", remember_from=1) == [4, 5, 3]
    assert len(opened) == 6
    for damaged in (folder / "index").iterdir():
        damaged.write_bytes(damaged.read_bytes()[:20])
    assert states.scf_iteration_counts(paths, folder / "index", remember_from=1) == [4, 5, 3]
    assert states.scf_iteration_counts(paths, Path("/dev/null/index"), remember_from=1) == [4, 5, 3]
    assert states.scf_iteration_counts(paths, folder / "few") == [4, 5, 3]
    assert not (folder / "few").exists()


def kill_writes(folder: Path) -> dict[str, list[int]]:
    """Fits, kills processes at moments of their write into the cache, and at last writes.

    Returns:
        The exit status of each killed process, and the numbers of complete and of other entries that they left.
    """
    cache = folder / "cache"
    found: dict[str, list[int]] = {"statuses": [], "complete": [], "other": []}
    save_to = DatasetStatistics.save_to

    def kill_before_writing(self: DatasetStatistics, path: Path, overwrite: bool = False) -> None:
        killed = Killed(folder / "counted")
        save_to(self, folder / "counted" / path.name)
        n = killed.n_operations
        killed.folder = f"{cache}/"
        for operation in range(n):
            found["statuses"].append(killed.run(lambda: save_to(self, path, overwrite), operation))
            entries = list(cache.glob("*.zarr.zip"))
            complete = [DatasetStatistics(entry).equals(self) for entry in entries]
            found["complete"].append(sum(complete))
            found["other"].append(len(entries) - sum(complete))
            for entry in entries:
                entry.unlink()
        save_to(self, path, overwrite)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetStatistics, "save_to", kill_before_writing)
        assert not reused(datamodule(folder))
    return found


def test_killed_fits_leave_nothing_half_written(folder: Path) -> None:
    found = in_new_process(kill_writes, folder)
    assert len(found["statuses"]) >= 2
    assert set(found["statuses"]) == {-signal.SIGKILL}
    assert set(found["other"]) == {0}
    assert set(found["complete"]) == {0}  # the last operation gives it its name
    # whoever came next wrote the whole, and whoever comes then uses it
    assert [p.name for p in (folder / "cache").glob("*.zarr.zip")] == [p.name for p in (folder / "counted").iterdir()]
    assert reused(datamodule(folder))


def fit(folder: Path, out: str) -> None:
    fitted = datamodule(folder)
    fitted.setup("fit")
    fitted.statistics.save_to(folder / out)


def test_fits_at_once_all_succeed(folder: Path) -> None:
    outs = [f"{i}.zarr" for i in range(3)]
    processes = [context().Process(target=fit, args=(folder, out)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    [entry] = (folder / "cache").glob("*.zarr.zip")
    for out in outs:
        assert DatasetStatistics(folder / out).equals(DatasetStatistics(entry))
