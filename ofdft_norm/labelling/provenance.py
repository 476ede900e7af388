"""What belongs to a label set besides its labels: the basis, where it came from, and checksums."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.files import write_text
from ofdft_norm.labelling.errors import LabellingError

BASIS_FILE = "basis_info.json"
PROVENANCE_FILE = "provenance.yaml"
CHECKSUM_FILE = "SHA256SUMS"
_PACKAGES = ("ofdft-norm", "pyscf", "numpy", "scipy", "zarr", "numcodecs")


def sha256(path: Path) -> str:
    """Returns the hex digest of a file.

    Args:
        path: Any file.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def merge_irreps(per_molecule: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """Merges the shells of the molecules' elements, sorted by atomic number.

    Args:
        per_molecule: Shells by atomic number, of each molecule.

    Raises:
        LabellingError: If an element has different shells in two molecules (labels of different settings
            mixed).
    """
    merged: dict[int, str] = {}
    for irreps in per_molecule:
        for number, shells in irreps.items():
            if merged.setdefault(number, shells) != shells:
                raise LabellingError(
                    f"element {number} has the shells {merged[number]} in one molecule and {shells} in "
                    "another; expected one basis for the whole set (options basis, beta)"
                )
    return dict(sorted(merged.items()))


def write_basis_info(folder: Path, basis_info: BasisInfo) -> None:
    """Writes `basis_info.json`: the elements, their shells and exponents, and the order within p shells.

    Args:
        folder: Folder of the label set.
        basis_info: The density basis.
    """
    write_text(folder / BASIS_FILE, json.dumps(basis_info.to_dict(), indent=1) + "\n")


def write_provenance(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    tolerances: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    geometry_files: Sequence[Path],
    command: str,
) -> None:
    """Writes `provenance.yaml`; commands and geometry files of earlier runs that it names stay in it.

    Args:
        folder: Root of the label set.
        settings: Everything that decides the numbers.
        tolerances: Of the checks.
        checks: The check numbers of every molecule.
        geometry_files: Files the geometries were read from.
        command: How the set was made.
    """
    geometries = [{"file": path.name, "sha256": sha256(path)} for path in geometry_files]
    earlier = _earlier(folder)
    commands = [*earlier.get("earlier_commands", []), earlier.get("command")]
    worst = {key: max(checks, key=lambda c: c[key]) for key in ("electrons", "fit_residual", "finite_difference")}
    shifts = sorted(checks, key=lambda c: c["kinetic_shift"])
    content = {
        "command": command,
        "earlier_commands": [c for c in commands if c not in (None, command)],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "geometries": [*(g for g in earlier.get("geometries", []) if g not in geometries), *geometries],
        "n_molecules": len(checks),
        "n_labelled": {
            "total": sum(c["n_labelled"] for c in checks),
            "min": min(c["n_labelled"] for c in checks),
            "max": max(c["n_labelled"] for c in checks),
        },
        "units": {"energies": "hartree", "positions": "bohr", "gradients": "hartree"},
        "settings": dict(settings),
        "tolerances": dict(tolerances),
        "worst": {key: {"mol_id": check["mol_id"], "value": check[key]} for key, check in worst.items()},
        # T_of - T_KS of the converged densities, hartree
        "kinetic_shift": {
            "mean": math.fsum(c["kinetic_shift"] for c in checks) / len(checks),
            "lowest": {"mol_id": shifts[0]["mol_id"], "value": shifts[0]["kinetic_shift"]},
            "highest": {"mol_id": shifts[-1]["mol_id"], "value": shifts[-1]["kinetic_shift"]},
        },
        "software": _versions(),
    }
    write_text(folder / PROVENANCE_FILE, OmegaConf.to_yaml(OmegaConf.create(content)))


def _earlier(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE_FILE
    found = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def write_checksums(folder: Path) -> None:
    """Writes `SHA256SUMS` over all files of the set, in the format of `sha256sum`.

    Args:
        folder: Folder of the label set.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUM_FILE and _is_data(p, folder))
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / CHECKSUM_FILE, "".join(lines))


def verify_checksums(folder: Path) -> None:
    """Compares the files of a label set with its `SHA256SUMS`.

    Args:
        folder: Folder of the label set.

    Raises:
        LabellingError: If the list is missing, or a file is missing or differs.
    """
    try:
        lines = (folder / CHECKSUM_FILE).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LabellingError(f"{folder}: no {CHECKSUM_FILE} to compare with: {error}") from error
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise LabellingError(f"{path}: listed in {CHECKSUM_FILE}, but missing")
        if sha256(path) != digest:
            raise LabellingError(f"{path}: sha256 is {sha256(path)}, expected {digest} ({CHECKSUM_FILE})")


def _is_data(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return not any(part.startswith(".") or part == "__pycache__" for part in parts) and path.suffix != ".py"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        # a source checkout that was never installed has no version to tell
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
