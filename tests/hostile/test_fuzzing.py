"""Mutated label files and configurations: the result is that of the unmutated one, or the package says what is wrong.

A mutation may make another valid file: a matrix in the other order, a number of another type. There the result must be
what the zarr library reads from the mutated file; a raw error, or numbers that the file does not say, fail the test.
"""

from __future__ import annotations

import copy
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ofdft_norm.data.label_files import read_molecule
from ofdft_norm.errors import OFDFTNormError

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ARRAYS = {
    "coeffs": "of_labels/spatial/coeffs",
    "gradient": "of_labels/spatial/grad_kin",
    "dual_basis_integrals": "of_labels/spatial/dual_basis_integrals",
    "energy": "of_labels/energies/e_kin",
    "has_energy_label": "ks_labels/energies/has_energy_label",
    "pos": "geometry/atom_pos",
    "atomic_numbers": "geometry/atomic_numbers",
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.sampled_from([10**12, 1e300, -1.5]) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
DTYPES = ["<f8", ">f8", "<f4", "<i8", "<u8", "|u1", "|b1", "|i1", "<U5", "|S4", "<c16", "|O", "<m8[s]"]
METADATA = {
    "shape": st.lists(st.integers(0, 40), max_size=3) | JSON,
    "chunks": st.lists(st.integers(0, 40), max_size=3) | JSON,
    "dtype": st.sampled_from(DTYPES) | JSON,
    "compressor": st.sampled_from([None, *({"id": name} for name in ("zlib", "blosc", "lz4", "pickle"))]) | JSON,
    "filters": st.sampled_from([None, [], [{"id": "shuffle"}], [{"id": "crc32"}], [{"id": "pickle"}]]) | JSON,
    "order": st.sampled_from(["C", "F", "K"]) | JSON,
    "fill_value": st.sampled_from([0, 1.0, "NaN", None]) | JSON,
    "dimension_separator": st.sampled_from([".", "/"]) | JSON,
    "zarr_format": st.sampled_from([2, 3]) | JSON,
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: Any, basis_info: Any, write_arrays: Any, make_label_arrays: Any) -> dict[str, bytes]:
    """The files of a whole label folder, some compressed."""
    folder = tmp_path_factory.mktemp("whole") / "water.zarr"
    arrays = make_label_arrays(basis_info, np.random.default_rng(0))
    write_arrays(folder, arrays, compressor=numcodecs.Zlib(), write_empty_chunks=True, plain=tuple(arrays)[::2])
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="session")
def place(tmp_path_factory: Any) -> Path:
    """Where mutated files are written, one after the other."""
    return tmp_path_factory.mktemp("fuzzing") / "water.zarr.zip"


def read(path: Path) -> dict[str, Any]:
    molecule = read_molecule(path, "e_kin", "grad_kin")
    return {name: getattr(molecule, name) for name in ("mol_id", *ARRAYS)}


def written(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def of_the_library(path: Path) -> dict[str, Any]:
    """What the zarr library reads from a file that names no codec but harmless ones."""
    with zarr.storage.ZipStore(path, mode="r") as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = zarr.open_group(store, mode="r", zarr_format=2, use_consolidated=False)
        found: dict[str, Any] = {name: np.asarray(root[key][...]) for name, key in ARRAYS.items()}
        found["mol_id"] = str(np.asarray(root["geometry/mol_id"][...]).item())
    return found


def compare(path: Path, whole: dict[str, Any], may_differ: bool = True) -> None:
    """Reads a mutated file; `may_differ` where the mutation may make another valid file."""
    message = ""
    found = whole
    try:
        found = read(path)
    except OFDFTNormError as error:  # anything else fails the test
        message = str(error)
    assert not message or str(path) in message
    assert same(found, whole) or (may_differ and same(found, of_the_library(path)))


@st.composite
def bytes_changed(draw: st.DrawFn, whole: bytes) -> bytes:
    """Flips, cuts out, repeats or appends bytes anywhere in a zip file."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(1, 60)))
        new = draw(st.binary(max_size=60) | st.just(b"\0" * (end - start)) | st.just(bytes(data[start:end]) * 2))
        data[start:end] = new
    return bytes(data)


def check_bytes(data: st.DataObject, files: dict[str, bytes], place: Path) -> None:
    compression = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    whole = read(written(place, files, compression))
    place.write_bytes(data.draw(bytes_changed(place.read_bytes())))
    compare(place, whole, may_differ=False)


def check_metadata(data: st.DataObject, files: dict[str, bytes], place: Path) -> None:
    whole = read(written(place, files))
    mutated = dict(files)
    for _ in range(data.draw(st.integers(1, 2))):
        name = f"{data.draw(st.sampled_from(['geometry/mol_id', *ARRAYS.values()]))}/.zarray"
        content = json.loads(mutated[name])
        key = data.draw(st.sampled_from(sorted(METADATA)))
        if data.draw(st.integers(0, 9)) == 0:
            content.pop(key, None)
        else:
            content[key] = data.draw(METADATA[key])
        mutated[name] = json.dumps(content).encode()
    compare(written(place, mutated), whole)


def check_arrays(data: st.DataObject, files: dict[str, bytes], place: Path) -> None:
    """Chunks that are lost, swapped, emptied or changed, and files that are missing."""
    whole = read(written(place, files))
    mutated = dict(files)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(mutated)))
        action = data.draw(st.sampled_from(["lose", "empty", "cut", "double", "noise"]))
        content = mutated.pop(name)
        if action != "lose":
            noise = data.draw(st.binary(min_size=len(content), max_size=len(content))) if action == "noise" else b""
            changed = {"empty": b"", "cut": content[: len(content) // 2], "double": content * 2, "noise": noise}
            mutated[name] = changed[action]
    compare(written(place, mutated), whole)


CHECKS: list[Callable[..., None]] = [check_bytes, check_metadata, check_arrays]


@pytest.mark.parametrize("check", CHECKS)
@FEW
@given(data=st.data())
def test_mutated_label_files(check: Any, data: st.DataObject, files: dict[str, bytes], place: Path) -> None:
    check(data, files, place)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@MANY
@given(data=st.data())
def test_many_mutated_label_files(check: Any, data: st.DataObject, files: dict[str, bytes], place: Path) -> None:
    check(data, files, place)


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    """The composed configuration of the data module."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(Path(__file__).parents[2] / "configs"), version_base="1.3"):
        found = OmegaConf.to_container(compose("train", overrides=["data=ofdft_norm"]).data, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def instantiated(config: dict[str, Any]) -> str:
    from hydra.utils import instantiate

    datamodule = instantiate(config, _convert_="all")
    return repr(sorted((key, repr(value)) for key, value in vars(datamodule).items() if "config" in key))


def places_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all entries but those that name what is built: another name builds something else."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [p for key, value in items if key != "_target_" for p in [(*path, key), *places_of(value, (*path, key))]]


def check_config(data: st.DataObject, config: dict[str, Any]) -> None:
    mutated = copy.deepcopy(config)
    *way, last = data.draw(st.sampled_from(places_of(config)))
    node: Any = mutated
    for key in way:
        node = node[key]
    value = data.draw(JSON.filter(lambda v: v != node[last]))
    before = node[last]
    node[last] = value
    try:
        instantiated(mutated)
    except Exception as error:  # hydra wraps what a constructor raises
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        assert any(isinstance(cause, OFDFTNormError) for cause in causes), (way, last, before, value, causes)


@FEW
@given(data=st.data())
def test_mutated_configurations(data: st.DataObject, config: dict[str, Any]) -> None:
    check_config(data, config)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_mutated_configurations(data: st.DataObject, config: dict[str, Any]) -> None:
    check_config(data, config)
