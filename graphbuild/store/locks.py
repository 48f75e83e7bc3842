"""Only one process at a time: a lock file that ends with its process, and a note of who holds it.

Where the file system has no locks (some mounts of Lustre, NFS and FUSE), the lock file itself stands for one; `filelock` removes
it where the process that it names is gone from this machine, and this is said in a line.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from graphbuild.errors import UserError
from graphbuild.store.atomic import read_json

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
SOFT = ".soft"
"""What follows the name of a lock file where the file system has no locks."""


class LockedError(UserError):
    """Another process is at work in a folder."""


@contextmanager
def exclusive(path: Path, *, where: Path, advice: str = "", wait: bool = False) -> Iterator[None]:
    """Hold a lock file until the block ends; its folder is made.

    Args:
        path: The lock file.
        where: What it protects, for messages.
        advice: What to do if another process holds it, and this one does not wait.
        wait: Wait for the other process, which is said, instead of raising.

    Raises:
        LockedError: If another process holds it: command, process, machine and time are named.
    """
    note = path.with_name(f"{path.name}.holder")
    lock = take(path, where)
    if lock is None and not wait:
        raise LockedError(f"{where}: {_holder(note)} is at work here. {advice}")
    if lock is None:
        click.echo(f"{where}: waiting for {_holder(note)}", err=True)
        lock = take(path, where, wait=True)
    assert lock is not None, "waited without a limit"
    try:
        note.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


@contextmanager
def attempt(path: Path, *, where: Path) -> Iterator[bool]:
    """Hold a lock file until the block ends, and return True; return False if another process holds it.

    Args:
        path: The lock file; its folder is made.
        where: What it protects, for messages.
    """
    lock = take(path, where)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def take(path: Path, where: Path, *, wait: bool = False) -> BaseFileLock | None:
    """Return a lock, held until it is released or its process ends; None if another process holds it.

    Args:
        path: The lock file; its folder is made.
        where: What it protects, for messages.
        wait: Wait for the other process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    soft = not _has_locks(path)
    lock: BaseFileLock = SoftFileLock(path.with_name(f"{path.name}{SOFT}")) if soft else FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return None
    if soft:
        click.echo(
            f"{where}: this file system has no locks; {lock.lock_file} stands for one while this command runs. "
            "Should it be left by another machine, remove it.",
            err=True,
        )
    return lock


def _has_locks(path: Path) -> bool:
    """Whether the file system has locks; asked by giving back one that is not held."""
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_UN)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
    return True


def _this_process() -> dict[str, str | int]:
    # Only the name of the command: its options may hold addresses with passwords.
    words = [Path(sys.argv[0]).name, *(word for word in sys.argv[1:2] if word.isidentifier())]
    command = " ".join(words if words[0] not in ("", "-c") else words[1:]) or "python"
    return {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _holder(note: Path) -> str:
    """Who holds a lock, as far as it says."""
    try:
        told = read_json(note)
        return f"`{told['command']}` (process {told['pid']} on {told['host']}, since {told['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
