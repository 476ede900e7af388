"""Makes a set of labels: molecules in several processes or jobs, resumable, each checked before it is written.

A set is a folder with ``labels/<mol_id>.zarr.zip``, ``basis_info.json`` and ``provenance.yaml``.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import multiprocessing
import operator
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from tqdm import tqdm

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import read_yaml, write_text
from ofdft_norm.data.label_file import write_label_file
from ofdft_norm.data.zarr_v2 import ZarrGroup
from ofdft_norm.errors import ConfigError, OFDFTNormError
from ofdft_norm.labelling.checks import CheckReport, CheckTolerances, check_labels
from ofdft_norm.labelling.geometries import Geometry, LabellingError, read_geometries
from ofdft_norm.labelling.kohn_sham import check_functional
from ofdft_norm.labelling.labels import LabelSettings, make_labels

SUFFIX = ".zarr.zip"
_PACKAGES = ("ofdft-norm", "pyscf", "numpy", "scipy", "numcodecs")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass
class GenerationResult:
    """Outcome of a run: reports of new labels, ids of molecules that had labels, and reasons of failures, by id."""

    made: dict[str, CheckReport] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Existing:
    """What a label file holds besides its labels."""

    path: Path
    settings: dict[str, Any]
    report: CheckReport
    atomic_numbers: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float64]


def generate_labels(
    molecules: str | Path | Sequence[str | Path],
    output: str | Path,
    settings: LabelSettings | None = None,
    tolerances: CheckTolerances | None = None,
    workers: int = 1,
    shard: str = "1/1",
    command: str = "",
    progress: bool = True,
) -> GenerationResult:
    """Makes the labels of all molecules of some geometry files, or adds them to a set.

    Molecules with labels of the same geometry and settings are kept, so that an interrupted run continues. Labels of
    other settings in the folder are refused. A molecule that fails has no file; the others are made all the same.

    Args:
        molecules: Files for `read_geometries`.
        output: Folder of the set.
        settings: How labels are made.
        tolerances: Limits of the checks; None: `CheckTolerances.for_fit` of the settings.
        workers: Number of processes; several have one thread each.
        shard: ``"3/16"`` makes every 16th molecule from the third on: 16 jobs share nothing but the folder.
        command: Command line, for the provenance.
        progress: Whether to show a progress bar.

    Raises:
        LabellingError: If geometries cannot be read, labels cannot be made with the functional, or the folder holds
            labels of other settings or of another geometry of a molecule.
        ConfigError: If `workers` or `shard` is out of range.
    """
    settings = settings or LabelSettings()
    tolerances = tolerances or CheckTolerances.for_fit(settings.density_fit)
    check_functional(settings.kohn_sham.xc)
    if workers < 1:
        raise ConfigError(f"workers: got {workers}, expected at least 1 (option workers)")
    files = [Path(path) for path in ([molecules] if isinstance(molecules, str | Path) else molecules)]
    geometries = _select_shard(read_geometries(files), shard)
    folder = Path(output) / "labels"
    found = _read_set(folder, settings)
    for geometry in geometries:
        _check_geometry(geometry, found.get(geometry.mol_id))
    result = GenerationResult(kept=[geometry.mol_id for geometry in geometries if geometry.mol_id in found])
    # the largest first: no worker is left with a large one at the end
    missing = sorted((g for g in geometries if g.mol_id not in found), key=lambda g: -g.n_electrons)
    folder.mkdir(parents=True, exist_ok=True)  # fails before hours of calculations
    jobs = [(geometry, folder / f"{geometry.mol_id}{SUFFIX}", settings, tolerances) for geometry in missing]
    with tqdm(total=len(geometries), initial=len(result.kept), desc="labels", disable=not progress) as bar:
        for mol_id, outcome in _label_all(jobs, workers):
            if isinstance(outcome, CheckReport):
                result.made[mol_id] = outcome
            else:
                result.failures[mol_id] = f"{type(outcome).__name__}: {outcome}"
            bar.update()
    run = {"command": command, "geometries": {path.name: _sha256(path) for path in files}, "made": len(result.made)}
    # read again: other jobs may have written labels in the meantime
    _describe_set(folder.parent, list(_read_set(folder, settings).values()), tolerances, run)
    return result


def label_molecule(geometry: Geometry, path: Path, settings: LabelSettings, tolerances: CheckTolerances) -> CheckReport:
    """Makes, checks and writes the labels of a molecule; nothing is written where they are refused."""
    labels = make_labels(geometry, settings)
    report = check_labels(labels, tolerances)
    attributes = {"settings": _to_plain(settings), "check": asdict(report)}
    write_label_file(path, replace(labels, attributes=attributes))
    return report


def _label_all(
    jobs: Sequence[tuple[Geometry, Path, LabelSettings, CheckTolerances]], workers: int
) -> Iterator[tuple[str, CheckReport | Exception]]:
    """Yields the id of each molecule with its report, or with the error of its labels; other errors are raised."""
    of_one_molecule = (OFDFTNormError, np.linalg.LinAlgError)
    if workers == 1:
        for job in jobs:
            try:
                yield job[0].mol_id, label_molecule(*job)
            except of_one_molecule as error:
                yield job[0].mol_id, error
    elif jobs:
        # Spawned, not forked: linear algebra reads the number of threads when it is imported.
        context = multiprocessing.get_context("spawn")
        with _one_thread_each(), ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            futures = {pool.submit(label_molecule, *job): job[0].mol_id for job in jobs}
            for future in as_completed(futures):
                failure = future.exception()
                if failure is not None and not isinstance(failure, of_one_molecule):
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise failure
                yield futures[future], future.result() if failure is None else failure


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _select_shard(geometries: list[Geometry], shard: str) -> list[Geometry]:
    """Returns the molecules of ``"3/16"``: every 16th from the third on."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"shard: got {shard!r}, expected K/N with K in 1 ... N, such as 3/16 (option shard)")
    return geometries[int(match[1]) - 1 :: int(match[2])]


def _read_set(folder: Path, settings: LabelSettings) -> dict[str, _Existing]:
    """Reads all label files of a set, by molecule; raises LabellingError for those of other settings."""
    found = {path.name.removesuffix(SUFFIX): _read_existing(path) for path in sorted(folder.glob(f"*{SUFFIX}"))}
    expected = _flatten(_to_plain(settings))
    for existing in found.values():
        made_with = _flatten(existing.settings)
        differing = [
            f"{name}: {made_with.get(name)!r}, expected {expected.get(name)!r}"
            for name in sorted(expected.keys() | made_with.keys())
            if made_with.get(name) != expected.get(name)
        ]
        if differing:
            raise LabellingError(
                f"{existing.path}: was made with other settings ({'; '.join(differing)}), and a set has one kind; "
                "give another output folder (option output), or delete the file"
            )
    return found


def _read_existing(path: Path) -> _Existing:
    try:
        with ZarrGroup(path) as group:
            attributes = group.attributes()
            numbers, positions = group.read("geometry/atomic_numbers"), group.read("geometry/atom_pos")
        report = CheckReport(**attributes["check"])
        return _Existing(path, dict(attributes["settings"]), report, numbers.astype(np.int64), positions)
    except (OFDFTNormError, OSError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise LabellingError(f"{path}: not a label file of `ofdft-norm labels` ({what}); delete it") from error


def _check_geometry(geometry: Geometry, existing: _Existing | None) -> None:
    if existing is not None and not (
        np.array_equal(existing.atomic_numbers, geometry.atomic_numbers)
        and np.allclose(existing.positions, geometry.positions, atol=1e-9)
    ):
        raise LabellingError(
            f"{existing.path}: has another geometry of {geometry.mol_id!r}; give another output folder (option "
            "output), or delete the file"
        )


def _to_plain(settings: LabelSettings) -> dict[str, Any]:
    """Returns settings as a label file returns them."""
    return dict(json.loads(json.dumps(asdict(settings))))


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _describe_set(
    folder: Path, molecules: Sequence[_Existing], tolerances: CheckTolerances, run: Mapping[str, Any]
) -> None:
    """Writes the basis and the provenance of all labels in the folder; records of earlier runs are kept."""
    if not molecules:
        return
    settings = molecules[0].settings
    elements = np.unique(np.concatenate([molecule.atomic_numbers for molecule in molecules])).tolist()
    basis, beta = settings["kohn_sham"]["basis"], settings["beta"]
    basis_info = BasisInfo.from_atomic_numbers_with_even_tempered_basis(elements, basis, beta)
    write_text(folder / "basis_info.json", json.dumps(basis_info.to_dict(), indent=1) + "\n")
    path = folder / "provenance.yaml"
    try:
        earlier = read_yaml(path)["runs"] if path.is_file() else []
    except (ValueError, KeyError, TypeError) as error:
        raise LabellingError(f"{path}: not a provenance file of `ofdft-norm labels` ({error!r}); delete it") from error
    reports = [molecule.report for molecule in molecules]
    shifts = sorted(reports, key=lambda report: report.kinetic_shift)
    content = {
        "n_molecules": len(reports),
        "n_labelled": sum(report.n_labelled for report in reports),
        "units": {"energies": "hartree", "positions": "bohr", "gradients": "hartree"},
        "settings": settings,
        "tolerances": asdict(tolerances),
        "largest": {
            name: _name_value(max(reports, key=operator.attrgetter(name)), name)
            for name in ("electrons", "fit_residual", "finite_difference")
        },
        # T_of - T_KS of the converged densities, hartree
        "kinetic_shift": {
            "mean": sum(report.kinetic_shift for report in reports) / len(reports),
            "lowest": _name_value(shifts[0], "kinetic_shift"),
            "highest": _name_value(shifts[-1], "kinetic_shift"),
        },
        "runs": [
            *earlier,
            {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}", **run, "software": _versions()},
        ],
    }
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _name_value(report: CheckReport, name: str) -> dict[str, Any]:
    return {"mol_id": report.mol_id, "value": getattr(report, name)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # a checkout that was not installed
            versions[package] = version(package)
    return versions
