"""Makes a whole label set: molecules in parallel, resumable, every one checked before it is written."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.coordinates import RAW
from ofdft_norm.data.label_writer import write_label_file
from ofdft_norm.data.zarr_v2 import ZarrReader
from ofdft_norm.errors import OFDFTNormError
from ofdft_norm.labelling.checks import CheckReport, CheckTolerances, check_labels
from ofdft_norm.labelling.errors import LabellingError
from ofdft_norm.labelling.geometries import Geometry
from ofdft_norm.labelling.kohn_sham import check_functional
from ofdft_norm.labelling.labels import LabelSettings, make_labels
from ofdft_norm.labelling.provenance import merge_irreps, write_basis_info, write_checksums, write_provenance

LABEL_FOLDER = "labels"
SUFFIX = ".zarr.zip"
# More threads per worker than one would only fight over the cores that the pool already fills.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass
class GenerationResult:
    """Outcome of a run.

    Attributes:
        reports: Check numbers of every molecule whose labels are on disk, by molecule id.
        failures: Why the others have none, by molecule id.
        skipped: Ids of the molecules that were complete before the run.
    """

    reports: dict[str, CheckReport] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def label_molecule(geometry: Geometry, path: Path, settings: LabelSettings, tolerances: CheckTolerances) -> None:
    """Makes, checks and writes the labels of one molecule.

    Args:
        geometry: The molecule.
        path: Label file to be written.
        settings: Basis sets, functional and fit.
        tolerances: What the checks let pass.

    Raises:
        LabellingError: If the calculation fails or the labels are refused; nothing is written then.
    """
    labels = make_labels(geometry, settings)
    report = check_labels(labels, tolerances)
    irreps = {str(number): shells for number, shells in labels.irreps_per_atom.items()}
    write_label_file(
        path,
        mol_id=geometry.mol_id,
        atomic_numbers=geometry.atomic_numbers,
        positions=geometry.positions,
        coeffs=labels.coeffs,
        gradients=labels.gradients,
        dual_basis_integrals=labels.dual_basis_integrals,
        energies=labels.energies,
        ks_energies=labels.ks_energies,
        has_energy_label=labels.has_energy_label,
        attributes={
            "settings": _plain(asdict(settings)),
            "check": report.to_dict(),
            "irreps_per_atom": irreps,
            "coordinates": "natural_symmetric" if settings.natural_reparametrization else RAW,
        },
        density_basis=f"even_tempered_{settings.beta:g}",
        orbital_basis=settings.kohn_sham.basis,
    )


def generate(
    geometries: Sequence[Geometry],
    output: str | Path,
    *,
    settings: LabelSettings | None = None,
    tolerances: CheckTolerances | None = None,
    workers: int = 1,
    geometry_files: Sequence[str | Path] = (),
    command: str = "ofdft_norm.labelling.generate",
    progress: bool = True,
    shard: str = "1/1",
) -> GenerationResult:
    """Makes the label set of several molecules, or adds them to one.

    Molecules whose file is there and complete, with the same geometry and settings, are skipped, so that an
    interrupted run continues where it was. A molecule that fails costs nothing but itself. Other molecules that the
    folder holds, of the same settings, stay part of the set.

    Args:
        geometries: The molecules.
        output: Folder of the set; gets ``labels/<mol_id>.zarr.zip``, ``basis_info.json``, ``provenance.yaml``
            and ``SHA256SUMS``.
        settings: How labels are made; the defaults otherwise.
        tolerances: What they must fulfil; the defaults of the settings' density fit otherwise.
        workers: Processes, one thread each.
        geometry_files: Files the geometries came from, for the provenance.
        command: Command line, for the provenance.
        progress: Whether to show a progress bar.
        shard: ``"3/16"`` makes every 16th molecule from the third on, and label files only: 16 jobs share a folder. A
            last run over all finds their labels and writes the files beside them.

    Returns:
        Reports and failures, of other molecules in the folder, too, unless this is a shard. With failures the set is
        complete but for the failed molecules.

    Raises:
        LabellingError: If `workers` is not positive, `shard` is no share, the functional is none that labels can be
            made with, or the folder holds a file of other settings.
    """
    if workers < 1:
        raise LabellingError(f"workers: got {workers}, expected at least 1")
    geometries, n_shards = _shard(geometries, shard)
    settings, folder = settings or LabelSettings(), Path(output)
    tolerances = tolerances or CheckTolerances.of(settings.density_fit)
    check_functional(settings.kohn_sham.xc)
    paths = {geometry.mol_id: folder / LABEL_FOLDER / f"{geometry.mol_id}{SUFFIX}" for geometry in geometries}
    others = _others(folder, paths, settings) if n_shards == 1 else {}
    complete = {g.mol_id for g in geometries if _is_complete(paths[g.mol_id], g, settings)}
    paths |= others
    result = GenerationResult(skipped=[mol_id for mol_id in paths if mol_id in complete or mol_id in others])
    missing = [g for g in geometries if g.mol_id not in complete]
    # The largest first, so that no worker is left with one at the end.
    missing.sort(key=lambda g: -g.n_electrons)
    with tqdm(total=len(geometries), initial=len(complete), desc="labels", disable=not progress) as bar:
        for mol_id, failure in _label_all(missing, paths, settings, tolerances, workers):
            if failure:
                result.failures[mol_id] = failure
            bar.update()
    irreps = _read_reports(paths, result)
    if result.reports and n_shards == 1:
        elements = list(merge_irreps(irreps))
        basis = settings.kohn_sham.basis
        made = BasisInfo.from_atomic_numbers_with_even_tempered_basis(elements, basis, settings.beta, p_order="yzx")
        write_basis_info(folder, made)
        write_provenance(
            folder,
            settings=_plain(asdict(settings)),
            tolerances=asdict(tolerances),
            checks=[report.to_dict() for report in result.reports.values()],
            geometry_files=[Path(p) for p in geometry_files],
            command=command,
        )
        write_checksums(folder)
    return result


def _shard(geometries: Sequence[Geometry], shard: str) -> tuple[Sequence[Geometry], int]:
    """Returns the molecules of ``"3/16"``, every 16th from the third on, and the number of shards."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise LabellingError(f"shard: got {shard!r}, expected K/N with K in 1 ... N, such as 3/16 (option shard)")
    return geometries[int(match[1]) - 1 :: int(match[2])], int(match[2])


def _label_all(
    geometries: Sequence[Geometry],
    paths: Mapping[str, Path],
    settings: LabelSettings,
    tolerances: CheckTolerances,
    workers: int,
) -> Iterator[tuple[str, str]]:
    """Labels molecules in a pool; yields each id with its failure (empty if there is none)."""
    if not geometries:
        return
    # Spawned, not forked: the thread limits are read when the workers import their linear algebra.
    context = multiprocessing.get_context("spawn")
    with _single_threaded(), ProcessPoolExecutor(min(workers, len(geometries)), mp_context=context) as pool:
        futures = {pool.submit(label_molecule, g, paths[g.mol_id], settings, tolerances): g.mol_id for g in geometries}
        for future in as_completed(futures):
            error = future.exception()
            # Bad labels are one molecule's affair; anything else (no PySCF, no memory) would hit all of them.
            if error is not None and not isinstance(error, OFDFTNormError | np.linalg.LinAlgError):
                pool.shutdown(wait=False, cancel_futures=True)
                raise error
            yield futures[future], "" if error is None else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_complete(path: Path, geometry: Geometry, settings: LabelSettings) -> bool:
    """Whether the labels of a molecule are there: files appear whole, so the right one existing is enough."""
    if not path.exists():
        return False
    attributes, numbers, positions = _read(path)
    _check_settings(path, attributes, settings)
    if positions.shape != geometry.positions.shape or not (
        np.array_equal(numbers, geometry.atomic_numbers) and np.allclose(positions, geometry.positions, atol=1e-9)
    ):
        raise LabellingError(
            f"{path}: holds another geometry of {geometry.mol_id!r}; give another --output, or delete the file"
        )
    return True


def _others(folder: Path, paths: Mapping[str, Path], settings: LabelSettings) -> dict[str, Path]:
    """Returns the label files of the folder that are none of the given molecules', checked for their settings."""
    found = {path.name.removesuffix(SUFFIX): path for path in sorted((folder / LABEL_FOLDER).glob(f"*{SUFFIX}"))}
    others = {mol_id: path for mol_id, path in found.items() if mol_id not in paths}
    for path in others.values():
        _check_settings(path, _read(path)[0], settings)
    return others


def _check_settings(path: Path, attributes: Mapping[str, Any], settings: LabelSettings) -> None:
    expected, found = _flat(_plain(asdict(settings))), _flat(attributes.get("settings") or {})
    differing = [
        f"{name}: {found.get(name)!r}, expected {expected.get(name)!r}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise LabellingError(
            f"{path}: was made with other settings ({'; '.join(differing)}), and a label set has one kind; give "
            "another --output, or delete the file"
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _read_reports(paths: Mapping[str, Path], result: GenerationResult) -> list[dict[int, str]]:
    """Adds what the label files themselves say of their checks to the result; returns the shells of their elements."""
    irreps = []
    for mol_id, path in paths.items():
        if mol_id not in result.failures:
            attributes, _, _ = _read(path)
            result.reports[mol_id] = CheckReport(**attributes["check"])
            irreps.append({int(number): shells for number, shells in attributes["irreps_per_atom"].items()})
    return irreps


def _read(path: Path) -> tuple[dict[str, Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns attributes, atomic numbers and positions of a label file."""
    try:
        with ZarrReader(path) as reader:
            return reader.attributes(), reader.read("geometry/atomic_numbers"), reader.read("geometry/atom_pos")
    except Exception as error:
        raise LabellingError(f"{path}: not a label file ({error}); delete it to have it made again") from error


def _plain(value: Any) -> Any:
    """Turns tuples into lists, as they come back from JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
