"""Memory limits: what the user wrote, or half of what is free."""

from __future__ import annotations

import re
from pathlib import Path

from graphbuild.errors import OptionError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of `4GB`, `512MiB`, `1.5g` or `800000000`.

    Raises:
        OptionError: If it is none of these.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise OptionError(f"--memory-limit {text!r} is no size. Write it as 4GB, 512MiB or a number of bytes.")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def resolve_limit(text: str | None) -> int:
    """Return the limit in bytes: as given, else half of the memory that is free now, within this process's control group."""
    return parse_size(text) if text is not None else free_memory() // 2


def free_memory() -> int:
    """Return the bytes that this process may still take: what the machine has available, or what its control group leaves."""
    available = _meminfo_available()
    group_limit, group_used = _read_int("memory.max"), _read_int("memory.current")
    if group_limit is not None and group_used is not None:
        available = min(available, max(group_limit - group_used, 0))
    return available


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # No /proc here (macOS): a modest figure is safer than a guess at the whole machine.
    return 8 * 2**30


def _read_int(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        # Missing, or "max".
        return None
