"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields the name to write a file or a folder under; it gets its real name when the block ends.

    Readers see the old content or the new one, never a part of it. After an exception nothing of the new content is
    left. A process that is killed leaves its unfinished file in the same folder, named ``.<name>.<8 hex digits>.part``.
    Permissions are those of any new file, as the umask says.

    Args:
        path: The file or folder. Its parent folder is made. An existing file is replaced; so is an empty folder.

    Yields:
        A path in the same folder, under which nothing exists yet.

    Raises:
        OSError: If it cannot be written or renamed; for instance, a folder that is not empty is not replaced.

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
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see `written_whole`."""
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


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
