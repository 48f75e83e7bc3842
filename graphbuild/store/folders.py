"""Folders of results: written beside their name and renamed, recognised as ours, and emptied of nothing that is not ours.

A folder is complete or not there: it is prepared under a temporary name, and one rename gives it its own. What stood there
before is set aside first and removed last, so that a process killed in between loses nothing: `recover_folders` puts it back.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from graphbuild.store.atomic import TEMPORARY, flush_folder, remove_stale_temporaries, temporary_name

_ASIDE = ".aside.tmp"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Prepare a folder under a temporary name beside `path`; it takes its place when the block ends well.

    The writer flushes the files; the names are flushed here.
    """
    temporary, aside = temporary_name(path), path.with_name(f".{path.name}{_ASIDE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folders(path.parent)
    temporary.mkdir()
    try:
        yield temporary
        flush_folder(temporary)
        if path.exists():
            path.rename(aside)
        temporary.rename(path)
        flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def recover_folders(parent: Path) -> None:
    """Rename back a folder that a killed process had set aside, or remove it where another has taken its place."""
    for aside in parent.glob(f".*{_ASIDE}"):
        path = parent / aside.name.removeprefix(".").removesuffix(_ASIDE)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(path)


def is_temporary(name: str, of: Collection[str] = ()) -> bool:
    """Tell whether a file or folder is one that a killed process of ours left.

    Args:
        name: Its name.
        of: Names of our files, whose temporaries may also be called `.<name>.tmp`, as earlier versions did.
    """
    return bool(TEMPORARY.fullmatch(name)) or name in {f".{known}.tmp" for known in of}


def remove_temporaries(folder: Path, of: Collection[str] = ()) -> None:
    """Remove what killed processes of ours left in a folder; `of` as in `is_temporary`."""
    remove_stale_temporaries(folder)
    for name in of:
        remove(folder / f".{name}.tmp")


def remove(path: Path) -> None:
    """Remove a file, a folder with all it holds, or a link, but never what a link points to; nothing where it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
