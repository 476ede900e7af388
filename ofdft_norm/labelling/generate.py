"""Makes a set of labels: molecules in several processes or jobs, resumable, each checked before it is written.

A set is a folder with ``labels/<mol_id>.zarr.zip``, ``basis_info.json`` and ``provenance.yaml``.
"""

import contextlib
import datetime
import hashlib
import json
import multiprocessing
import operator
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic_core import to_jsonable_python
from tqdm import tqdm

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.files import read_plain, write_text
from ofdft_norm.data.label_file import write_label_file
from ofdft_norm.data.split import parse_shard
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
    other settings or geometries in the folder are refused. A molecule that fails has no file; the others are made.
    Several `workers` have one thread each. The `shard` ``"3/16"`` makes every 16th molecule from the third on: 16 jobs
    can share one folder. `command` is the command line, for the provenance.
    """
    settings = settings or LabelSettings()
    tolerances = tolerances or CheckTolerances.for_fit(settings.density_fit)
    check_functional(settings.kohn_sham.xc)
    if workers < 1:
        raise ConfigError(f"workers: got {workers}, expected at least 1 (option workers)")
    k, n = parse_shard(shard)
    files = [Path(path) for path in ([molecules] if isinstance(molecules, str | Path) else molecules)]
    geometries = read_geometries(files)[k - 1 :: n]
    folder = Path(output) / "labels"
    found = _read_set(folder, settings)
    result = GenerationResult(kept=[geometry.mol_id for geometry in geometries if geometry.mol_id in found])
    for geometry, (other, _) in ((g, found[g.mol_id]) for g in geometries if g.mol_id in found):
        same_atoms = np.array_equal(geometry.atomic_numbers, other.atomic_numbers)
        if not (same_atoms and np.allclose(geometry.positions, other.positions, atol=1e-9)):
            raise LabellingError(
                f"{folder / geometry.mol_id}{SUFFIX}: has another geometry of {geometry.mol_id!r}; give another output "
                "folder (option output), or delete the file"
            )
    # the largest first, so that no large molecule is the last
    missing = sorted((g for g in geometries if g.mol_id not in found), key=lambda g: -g.n_electrons)
    folder.mkdir(parents=True, exist_ok=True)  # fails before hours of calculations
    label = partial(_label_molecule, folder, settings, tolerances)
    with (
        tqdm(total=len(geometries), initial=len(result.kept), desc="labels", disable=not progress) as bar,
        _make_map(workers) as map_molecules,
    ):
        for geometry, outcome in zip(missing, map_molecules(label, missing), strict=True):
            if isinstance(outcome, CheckReport):
                result.made[geometry.mol_id] = outcome
            else:
                result.failures[geometry.mol_id] = outcome
            bar.update()
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    run = {"command": command, "geometries": digests, "made": len(result.made)}
    n_described = 0
    # read again: other jobs may write labels, and may describe the set before or after this one
    while len(present := _read_set(folder, settings)) > n_described:
        _describe_set(folder.parent, present, settings, tolerances, None if n_described else run)
        n_described = len(present)
    return result


def _label_molecule(
    folder: Path, settings: LabelSettings, tolerances: CheckTolerances, geometry: Geometry
) -> CheckReport | str:
    """Makes, checks and writes the labels of a molecule; returns their report, or the reason of a failure."""
    try:
        labels = make_labels(geometry, settings)
        report = check_labels(labels, tolerances)
        attributes = {"settings": asdict(settings), "check": asdict(report)}
        write_label_file(folder / f"{geometry.mol_id}{SUFFIX}", replace(labels, attributes=attributes))
    except (OFDFTNormError, np.linalg.LinAlgError) as error:
        return f"{type(error).__name__}: {error}"
    return report


@contextlib.contextmanager
def _make_map(workers: int) -> Iterator[Callable[..., Iterator[CheckReport | str]]]:
    """Yields `map`, in several processes of one thread each if `workers` is above 1."""
    if workers == 1:
        yield map
        return
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        # spawned, not forked: linear algebra reads the number of threads when it is imported
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool.map
    finally:
        os.environ.clear()
        os.environ.update(before)


def _read_set(folder: Path, settings: LabelSettings) -> dict[str, tuple[Geometry, CheckReport]]:
    """Reads all label files of a set, by molecule; raises LabellingError for files of other settings."""
    found, expected = {}, _flatten(to_jsonable_python(settings))
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        mol_id = path.name.removesuffix(SUFFIX)
        try:
            with ZarrGroup(path) as group:
                attributes = group.attributes()
                geometry = Geometry(mol_id, group.read("geometry/atomic_numbers"), group.read("geometry/atom_pos"))
            made_with, report = _flatten(attributes["settings"]), CheckReport(**attributes["check"])
        except (OFDFTNormError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise LabellingError(f"{path}: not a label file of `ofdft-norm labels` ({what}); delete it") from error
        differing = [
            f"{name}: {made_with.get(name)!r}, expected {expected.get(name)!r}"
            for name in sorted(expected.keys() | made_with.keys())
            if made_with.get(name) != expected.get(name)
        ]
        if differing:
            raise LabellingError(
                f"{path}: was made with other settings ({'; '.join(differing)}), but all labels of a set have "
                "the same settings; give another output folder (option output), or delete the file"
            )
        found[mol_id] = geometry, report
    return found


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by dotted names."""
    inner = {f"kohn_sham.{name}": value for name, value in settings["kohn_sham"].items()}
    return inner | {name: value for name, value in settings.items() if name != "kohn_sham"}


def _describe_set(
    folder: Path,
    molecules: Mapping[str, tuple[Geometry, CheckReport]],
    settings: LabelSettings,
    tolerances: CheckTolerances,
    run: Mapping[str, Any] | None,
) -> None:
    """Writes the basis and the provenance of all labels in the folder; `run` is added to the records of runs."""
    geometries, reports = zip(*molecules.values(), strict=True)
    elements = np.unique(np.concatenate([geometry.atomic_numbers for geometry in geometries])).tolist()
    basis = settings.kohn_sham.basis, settings.beta
    basis_info = BasisInfo.from_atomic_numbers_with_even_tempered_basis(elements, *basis)
    write_text(folder / "basis_info.json", json.dumps(basis_info.to_dict(), indent=1) + "\n")
    path = folder / "provenance.yaml"
    try:
        earlier = read_plain(path)["runs"] if path.is_file() else []
    except (ValueError, KeyError, TypeError) as error:
        raise LabellingError(f"{path}: not a provenance file of `ofdft-norm labels` ({error!r}); delete it") from error

    def find_extreme(choose: Callable[..., CheckReport], name: str) -> dict[str, Any]:
        report = choose(reports, key=operator.attrgetter(name))
        return {"mol_id": report.mol_id, "value": getattr(report, name)}

    software = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # a checkout that was not installed
            software[package] = version(package)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content = {
        "n_molecules": len(reports),
        "n_labelled": sum(report.n_labelled for report in reports),
        "units": {"energies": "hartree", "positions": "bohr", "gradients": "hartree"},
        "settings": to_jsonable_python(settings),
        "tolerances": asdict(tolerances),
        "largest": {name: find_extreme(max, name) for name in ("electrons", "fit_residual", "finite_difference")},
        # T_of - T_KS of the converged densities, hartree
        "kinetic_shift": {
            "mean": sum(report.kinetic_shift for report in reports) / len(reports),
            "lowest": find_extreme(min, "kinetic_shift"),
            "highest": find_extreme(max, "kinetic_shift"),
        },
        "runs": [*earlier, *([] if run is None else [{"date": now, **run, "software": software}])],
    }
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
