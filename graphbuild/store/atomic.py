"""Writing so that a crash leaves nothing half-done: to a temporary name, flushed, then renamed.

A temporary name says which process has it, so that what killed writers leave behind is told from what is being written.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
"""Names of `atomic_path`, `scratch_name` and `atomic_folder`; no other file is taken for a temporary one."""
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What CIFS, FUSE and others answer where folders cannot be flushed; renaming is then as safe as they make it."""


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that no other process takes; it says that what has it is unfinished."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; the file is flushed and renamed when the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk, where its file system can do that."""
    try:
        flush(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def remove_stale_temporaries(folder: Path, of: str = "*") -> None:
    """Remove what killed writers left behind, known by its name; that of processes which are at work stays.

    Args:
        folder: Where it lies.
        of: Name of the one file whose writers are meant; all by default.
    """
    for path in folder.glob(f".{of if of == '*' else escape(of)}.*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match is None or _at_work(int(match["pid"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _at_work(pid: int) -> bool:
    """Whether another process of this number is there, on this machine."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # It is there, and somebody else's.
        pass
    return True


@contextmanager
def scratch_name(folder: Path, label: str) -> Iterator[Path]:
    """Yield a name for a file that is removed when the block ends; the next run removes what a killed one leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    path = temporary_name(folder / label)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
