"""Files compared with their digests once a version: what was found right is remembered by size, times and inode.

A file whose size, time of change or inode is another is read again; the times are only ever a reason to read again, never
a proof. What was found lies among the records of the graph directory, or in the cache where that cannot be written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from graphbuild.errors import ArtifactError
from graphbuild.store.atomic import read_json, write_json
from graphbuild.store.cache import beside_or_cached
from graphbuild.store.files import RECORDS, Receipt, damage

VERIFY_VARIABLE = "GRAPHBUILD_VERIFY"
"""`0` (which `--no-verify` sets) leaves digests out, in this process and those that it starts."""
FILE = f"{RECORDS}/verified.json"
EMBED_AGAIN = "Run `graphbuild embed` again: it rebuilds it."
"""What to do about a file of the stages of `embed` that is missing or damaged."""
_SETTLED_SECONDS = 3.0
"""A file changed less than this ago may change again within one tick of its file system's clock: it is not remembered."""


def repair_by(command: str) -> str:
    """Return what to do about damage that a command finds, and mends."""
    return f"Run `graphbuild {command}` again with the same options: it rebuilds what is damaged."


def require_verified(
    graph_dir: Path, receipts: Iterable[Receipt], *, remedy: str, verify: bool | None = None, settled: float = _SETTLED_SECONDS
) -> None:
    """Compare files with their receipts: by size, and by digest unless this version of the file was found right before.

    Args:
        graph_dir: The graph directory.
        receipts: Of the files that are about to be read.
        remedy: The end of the message: what to do.
        verify: Whether to compare digests; None: unless `$GRAPHBUILD_VERIFY` is 0.
        settled: Seconds that a file must have lain unchanged before it is remembered.

    Raises:
        ArtifactError: Naming the first file that is missing or damaged, and the remedy.
    """
    receipts = list(receipts)
    for receipt in receipts:
        _require(graph_dir, receipt, remedy, digest=False)
    if not (os.environ.get(VERIFY_VARIABLE) != "0" if verify is None else verify):
        return
    known, found = _load(graph_dir), {}
    for receipt in receipts:
        version = _version(graph_dir / receipt.path)
        if known.get(receipt.path) == [receipt.digest, *version]:
            continue
        _require(graph_dir, receipt, remedy, digest=True)
        if time.time() - max(version[1:3]) / 1e9 >= settled:
            found[receipt.path] = [receipt.digest, *version]
    if found:
        _remember(graph_dir, found)


def _require(graph_dir: Path, receipt: Receipt, remedy: str, *, digest: bool) -> None:
    if problem := damage(graph_dir, receipt, digest=digest):
        raise ArtifactError(f"{graph_dir / receipt.path} {problem}. {remedy}")


def _version(path: Path) -> list[int]:
    """Size, times of change of its bytes and of its inode in nanoseconds, and inode of a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _load(graph_dir: Path) -> dict[str, Any]:
    """What was found right before, by path; empty where that cannot be read: then it is found out again."""
    try:
        known = read_json(beside_or_cached(graph_dir, RECORDS) / FILE)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(graph_dir: Path, found: dict[str, list[Any]]) -> None:
    # Two processes may each lose what the other one adds: it is found out again.
    with suppress(OSError):
        write_json(beside_or_cached(graph_dir, RECORDS) / FILE, {**_load(graph_dir), **found})
