"""Files and folders that are written whole or not at all, plain JSON and YAML, and the package's own folders."""

import contextlib
import functools
import hashlib
import importlib
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

EMBEDDED = Path(__file__).parent / "embedded"
NOT_INSTALLED = "(not installed)"


@functools.cache
def find_package_version(package: str = "ofdft-norm") -> str:
    """Returns the installed version of a package, or `NOT_INSTALLED`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


__version__ = find_package_version()


def hash_file(file: str | Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def import_optional(name: str, extra: str) -> Any:
    """Imports a module of an optional package; the ImportError names the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"cannot import {name} ({error}): pip install 'ofdft-norm[{extra}]'") from error


@contextlib.contextmanager
def write_whole(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary name for a file or folder; renames it to `path` at the end of the block, without an error.

    Replaces a file or an empty folder, and with `replace` any folder. A killed process leaves ``.<name>.<hex>.part``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}.{uuid.uuid4().hex[:8]}"
    unfinished, old = path.with_name(f"{name}.part"), path.with_name(f"{name}.old")
    try:
        yield unfinished
        if replace and unfinished.is_dir() and path.exists():
            os.rename(path, old)
            os.rename(unfinished, path)
            _remove(old)
        else:
            os.replace(unfinished, path)
    except BaseException:
        _remove(unfinished)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the first error is the one to report
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with write_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_zip(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Writes a zip file of named contents, whole or not at all; equal contents make equal bytes."""
    content = io.BytesIO()  # one write: file systems take longer over many
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            if name.rpartition("/")[2].startswith(".z"):
                entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name], compresslevel=9)
    with write_whole(path) as unfinished:
        unfinished.write_bytes(content.getvalue())


def read_plain(path: str | Path) -> Any:
    """Reads plain values from a JSON file, or else a YAML file; raises OSError, or ValueError, also for NaN."""
    parse: Callable[[str], Any] = json.loads if Path(path).suffix == ".json" else yaml.safe_load
    try:
        value = parse(Path(path).read_text(encoding="utf-8"))
        json.dumps(value, skipkeys=True, default=str, allow_nan=False)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a list as a key
        raise ValueError(" ".join(str(error).split())) from error  # PyYAML writes several lines
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:
        raise ValueError("has NaN or infinity" if "JSON compliant" in str(error) else error) from error
    return value
