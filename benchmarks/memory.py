"""This process's resident memory, now and at its peak, and files out of the page cache; Linux only."""

from __future__ import annotations

import os
from pathlib import Path


def reset_peak() -> int:
    """Forget the peak, and tell what is held now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(name: str) -> int:
    """Return `VmRSS`, what is held now, or `VmHWM`, the peak, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def drop_pages(path: Path) -> None:
    """Let the system forget what it holds of a file that nothing maps."""
    if not hasattr(os, "posix_fadvise"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
