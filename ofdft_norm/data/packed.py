"""Packed labels: a label data set as a few large arrays in one folder, read through the page cache.

Beside ``meta.json`` (see `PackedSet.meta`) a set has these uncompressed NumPy arrays, one file each, with M molecules
and, counted over all of them, A atoms, F basis functions, S samples and V = sum of samples x functions::

    names, mol_ids                uint8    UTF-8, one after the other: name of the label file, name of the molecule
    name_offsets, mol_id_offsets  (M + 1,) where those of each molecule begin
    atom_offsets, function_offsets, sample_offsets, value_offsets  (M + 1,)
    pos (A, 3) bohr; atomic_numbers (A,)
    dual_basis_integrals, ground_state_coeffs (F,)      the same for all SCF iterations: stored once
    has_energy_label (S,); e_* (S,) hartree, float64
    coeffs, grad_* (V,)                                 float64 or float32

Why not zarr v3, with shards: a random row of 1,180 numbers takes 3,600 us from a shard, 2 us from a memory map; and a
memory map holds no file open, is shared by all workers of a machine, and is one line of NumPy.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import BasisError, LabelFileError

FORMAT, VERSION = "ofdft_norm packed labels", 1
META = "meta.json"
# what the arrays mean, and thus part of the checksum
_MEANING = ("version", "basis_info", "targets", "pre_transforms", "coordinates", "arrays")

Array = npt.NDArray[Any]


# What there are offsets of.
OFFSETS = ("name", "mol_id", "atom", "function", "sample", "value")


class ArraySpec(NamedTuple):
    """One array of a set.

    Attributes:
        counts: What it has one entry for.
        dtype: NumPy's code.
        entry_shape: Shape of an entry.
    """

    counts: str
    dtype: str
    entry_shape: tuple[int, ...] = ()

    @property
    def entry_bytes(self) -> int:
        """Size of an entry."""
        return np.dtype(self.dtype).itemsize * math.prod(self.entry_shape)


def array_specs(targets: Sequence[str], dtype: str) -> dict[str, ArraySpec]:
    """Returns what the arrays of a set are, by name.

    Args:
        targets: Such as ``kin``: the energy ``e_kin`` with the gradient ``grad_kin``.
        dtype: ``float64`` or ``float32``, of coefficients and gradients.
    """
    floats = np.dtype(dtype).str
    return {
        **{f"{axis}_offsets": ArraySpec("molecule", "<i8") for axis in OFFSETS},
        "names": ArraySpec("name", "|u1"),
        "mol_ids": ArraySpec("mol_id", "|u1"),
        "pos": ArraySpec("atom", "<f8", (3,)),
        "atomic_numbers": ArraySpec("atom", "|u1"),
        "dual_basis_integrals": ArraySpec("function", "<f8"),
        "ground_state_coeffs": ArraySpec("function", floats),
        "has_energy_label": ArraySpec("sample", "|b1"),
        **{f"e_{target}": ArraySpec("sample", "<f8") for target in targets},
        "coeffs": ArraySpec("value", floats),
        **{f"grad_{target}": ArraySpec("value", floats) for target in targets},
    }


def meta_checksum(meta: Mapping[str, Any]) -> str:
    """Returns the digest that stands for a set: of its arrays' digests, and of what the arrays mean.

    Args:
        meta: Content of ``meta.json``.
    """
    return hashlib.sha256(json.dumps([meta[name] for name in _MEANING], sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, as ``sha256sum`` does.

    Args:
        path: Any file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PackedSet:
    """Read access to one packed set; opening takes milliseconds, whatever its size.

    Args:
        folder: The set's folder.
        verify: Read all arrays and compare their digests.

    Attributes:
        meta: What the set is: `format`, `version`, `created_by`, `created_at`, `sources`, `basis_info`, `targets`,
            `pre_transforms`, `dtype`, `n_molecules`, `n_samples`, `arrays` (shape, dtype and SHA-256 of each) and
            `checksum`, which stands for all of these that decide numbers.
        arrays: The arrays by name, memory-mapped, read-only.

    Raises:
        LabelFileError: If it is none, or an array is missing, short or foreign, or (`verify`) damaged.
    """

    def __init__(self, folder: str | Path, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        self.arrays = {name: self._open(name, described) for name, described in self.meta["arrays"].items()}
        if verify:
            self.verify()
        self._check_offsets()

    def _open(self, name: str, described: Mapping[str, Any]) -> Array:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise LabelFileError(f"{path}: {what}: {_AGAIN}") from error
        found, expected = (array.dtype.str, list(array.shape)), (described["dtype"], described["shape"])
        if found != expected:
            raise LabelFileError(
                f"{path}: has dtype {found[0]} and shape {found[1]}, but {META} says {expected[0]} and {expected[1]}: "
                f"the array belongs to another set: {_AGAIN}"
            )
        return np.asarray(array)  # memory-mapped still; slices of np.memmap itself cost ten times as much

    def _check_offsets(self) -> None:
        specs = array_specs(self.meta["targets"], self.meta["dtype"])
        shape_of = {spec.counts: self.arrays[name].shape[0] for name, spec in specs.items()}
        for name in OFFSETS:
            offsets = self.arrays[f"{name}_offsets"]
            if len(offsets) != self.meta["n_molecules"] + 1 or offsets[0] != 0 or offsets[-1] != shape_of[name]:
                raise LabelFileError(
                    f"{self.folder}: {name}_offsets.npy ends at {offsets[-1:].tolist()} after {len(offsets) - 1} "
                    f"molecules, expected [{shape_of[name]}] after {self.meta['n_molecules']}: {_AGAIN}"
                )

    def verify(self) -> None:
        """Reads all arrays and compares their digests.

        Raises:
            LabelFileError: Naming the array that changed since it was packed.
        """
        for name, described in self.meta["arrays"].items():
            digest = file_digest(self.folder / f"{name}.npy")
            if digest != described["sha256"]:
                raise LabelFileError(
                    f"{self.folder / name}.npy: its SHA-256 is {digest}, but {META} says {described['sha256']}: its "
                    f"content has changed: {_AGAIN}"
                )

    @property
    def basis_info(self) -> BasisInfo:
        """The density basis of the labels."""
        return BasisInfo(**self.meta["basis_info"])

    def names(self) -> list[str]:
        """Returns the names of the molecules' label files, in the set's order."""
        offsets, names = self.arrays["name_offsets"].tolist(), self.arrays["names"].tobytes()
        return [names[a:b].decode() for a, b in itertools.pairwise(offsets)]

    def name(self, molecule: int) -> str:
        """Returns the name of one molecule's label file.

        Args:
            molecule: Which, in the set's order.
        """
        start, stop = self.arrays["name_offsets"][molecule : molecule + 2].tolist()
        return self.arrays["names"][start:stop].tobytes().decode()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the path alone."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]


_AGAIN = "copy the set again, or pack it anew with ofdft-norm pack (config: data.source.paths)"


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads and checks ``meta.json``.

    Args:
        folder: A packed set.

    Raises:
        LabelFileError: If the folder is no packed set, of a later version, or ``meta.json`` was changed.
    """
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabelFileError(
            f"{path}: cannot be read ({error}): {folder} is no packed set; make one with ofdft-norm pack "
            "(config: data.source.paths)"
        ) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        found = (meta.get("format"), meta.get("version")) if isinstance(meta, dict) else type(meta).__name__
        raise LabelFileError(f"{path}: describes {found}, expected {(FORMAT, VERSION)} (config: data.source.paths)")
    try:
        expected = array_specs(meta["targets"], meta["dtype"])
        consistent = (
            meta["checksum"] == meta_checksum(meta)
            and {name: described["dtype"] for name, described in meta["arrays"].items()}
            == {name: spec.dtype for name, spec in expected.items()}
        )  # fmt: skip
        BasisInfo(**meta["basis_info"])
    except (KeyError, TypeError, AttributeError, BasisError) as error:
        raise LabelFileError(f"{path}: lacks something or is malformed ({error!r}): {_AGAIN}") from error
    if not consistent:
        raise LabelFileError(f"{path}: does not agree with its own checksum: it was changed by hand: {_AGAIN}")
    return meta
