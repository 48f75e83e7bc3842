"""Files that a command writes where the user says: marked as written by this program, and nothing else is replaced."""

from __future__ import annotations

from pathlib import Path

from graphbuild.errors import OptionError
from graphbuild.store.atomic import remove_stale_temporaries

MARK = "written by xclr-graph"
"""Stands in every such file: in the head of a page, in the metadata of Parquet, PNG, PDF and SVG, in the comment of an archive."""
PARQUET_METADATA = {"origin": MARK}
_LOOKED_THROUGH = 1 << 16


def require_replaceable(path: Path, *, overwrite: bool) -> None:
    """Check that a file may be written: it does not exist, or this program wrote it, or the user says so.

    What a process of ours left that was killed while it wrote this file is removed.

    Args:
        path: The file.
        overwrite: Whether anything may be replaced.

    Raises:
        OptionError: If it is somebody else's.
    """
    if path.is_file() and not overwrite and not _is_marked(path):
        raise OptionError(f"{path}: is there already, and no command of ours wrote it. Choose another name, or add --overwrite.")
    remove_stale_temporaries(path.parent, of=path.name)


def _is_marked(path: Path) -> bool:
    """Whether the beginning or the end of a file holds the mark."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        parts = []
        for start in (0, max(0, size - _LOOKED_THROUGH)):
            stream.seek(start)
            parts.append(stream.read(_LOOKED_THROUGH))
    return any(MARK.encode() in part for part in parts)
