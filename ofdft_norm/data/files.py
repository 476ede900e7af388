"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import io
import os
import shutil
import stat
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | Path, replace: bool = False, beside: Path | None = None) -> Iterator[Path]:
    """Yields the name to write a file or a folder under; it gets its real name when the block ends.

    Readers see the old content or the new one, never a part of it. After an exception nothing of the new content is
    left. A process that is killed leaves its unfinished file in the same folder, named ``.<name>.<8 hex digits>.part``.
    Permissions are those of any new file, as the umask says.

    Args:
        path: The file or folder. Its parent folder is made. An existing file is replaced; so is an empty folder.
        replace: Whether a folder that is not empty is replaced, too.
        beside: The unfinished file stands beside this one, and is named after it; by default beside `path`.

    Yields:
        A path under which nothing exists yet.

    Raises:
        OSError: If it cannot be written or renamed; for instance, a folder that is not empty is not replaced unless
            that is asked for.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_whole(Path(folder) / "new" / "energies.txt") as unfinished:
        ...         _ = unfinished.write_text("-76.4")
        ...     [file.name for file in (Path(folder) / "new").iterdir()]
        ['energies.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _aside(beside or path, "part")
    try:
        yield unfinished
        if replace and unfinished.is_dir() and path.exists():
            _replace_folder(unfinished, path)
        else:
            os.replace(unfinished, path)
    except BaseException:
        _remove(unfinished)  # the first error is the one to report
        raise


def _aside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{ending}")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Puts a complete folder in another's place, in one step where the system can do that.

    Where it cannot, the old folder is called ``.<name>.<8 hex digits>.old`` for a moment; `set_aside` finds it.
    """
    if _exchanged(new, path):
        _remove(new)
        return
    old = _aside(path, "old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    _remove(old)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchanges two names in one step; False, and nothing has happened, where the system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # Linux
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange)
    return done == 0


def set_aside(path: Path) -> Path | None:
    """Returns the old content of a folder whose replacement was interrupted between two renames, if there is any.

    Args:
        path: The folder's name, under which nothing is.
    """
    return next(iter(_left_of(path, "old")), None)


def remove_left_overs(path: Path, after_seconds: float = 24 * 3600.0) -> None:
    """Removes what processes that were killed in `written_whole` left beside a path, and nothing else.

    Args:
        path: What they were writing.
        after_seconds: Younger ones may still be being written.
    """
    for left in _left_of(path, "part"):
        with contextlib.suppress(OSError):  # another process may be quicker
            if time.time() - left.stat().st_mtime > after_seconds:
                _remove(left)


def _left_of(path: Path, ending: str) -> list[Path]:
    return list(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.{ending}"))


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see `written_whole`.

    Args:
        path: Where to; what was there is replaced.
        text: Content.
    """
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_zip(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Writes a zip file of files by name, whole or not at all; equal files make equal bytes, whenever they are written.

    The metadata of zarr are compressed, everything else is stored as it is.

    Args:
        path: Where to; what was there is replaced.
        files: Content by name inside of the archive.
    """
    content = io.BytesIO()  # one write: file systems take longer over many
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            if name.rpartition("/")[2].startswith(".z"):
                entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name], compresslevel=9)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content.getvalue())


def writable_by_others(path: str | Path) -> bool:
    """Returns whether another user may have written a file or folder, or may replace it in its folder.

    It must belong to this user or to root; neither it nor its folder may be open for writing to all, or to a group
    other than the user's own private one (the group of the same name, as many systems make it). In a folder whose
    sticky bit is set, others cannot replace what is not theirs. False where nothing is there, and on systems without
    owners.

    Args:
        path: What is about to be read.
    """
    if os.name != "posix":
        return False
    path = Path(path)
    try:
        own, folder = path.stat(), path.absolute().parent.stat()
    except OSError:
        return False
    if own.st_uid not in (os.getuid(), 0) or _open_to_others(own):
        return True
    return _open_to_others(folder) and not folder.st_mode & stat.S_ISVTX


def _open_to_others(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and status.st_gid != 0 and not _is_private_group(status.st_gid)


def _is_private_group(group: int) -> bool:
    import grp  # there is none outside POSIX
    import pwd

    try:
        return grp.getgrgid(group).gr_name == pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        return group == os.getgid()
