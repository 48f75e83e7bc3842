"""Where derived data go that cannot lie beside what they are made of.

A folder that is given (`$GRAPHBUILD_CACHE_DIR`, set by `--cache-dir`), else the user's cache (`$XDG_CACHE_HOME`, or
`~/.cache`), else a private folder under the system's temporary one: there is always one, without HOME and without an
entry among the users, too. Nothing is made before it is needed. Nothing here loads numpy.
"""

from __future__ import annotations

import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path

from graphbuild.errors import ResourceError

CACHE_VARIABLE = "GRAPHBUILD_CACHE_DIR"
_NAME = "xclr-graph"


def cache_folder(kind: str) -> Path:
    """Return a folder for derived data of one kind, made if it is missing.

    Raises:
        ResourceError: If the folder that the user names cannot be written, or the temporary one is somebody else's.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        folder = Path(given) / kind
        if not _make(folder):
            raise ResourceError(f"{folder}: cannot be written. Name another folder with --cache-dir.")
        return folder
    home = _user_cache()
    if home is not None and _make(home / _NAME / kind):
        return home / _NAME / kind
    folder = _private_temporary() / kind
    folder.mkdir(exist_ok=True)
    return folder


def writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder that is there."""
    return os.access(folder, os.W_OK | os.X_OK)


def beside_or_cached(folder: Path, kind: str) -> Path:
    """Return where data derived from a folder go: the folder itself where it can be written, else one of the cache.

    Args:
        folder: What the data are made of.
        kind: Name of the folder of the cache, and of the folder's own subfolder if the data lie in one.
    """
    if writable(folder) and (not (folder / kind).exists() or writable(folder / kind)):
        return folder
    place = cache_folder(kind) / sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    place.mkdir(exist_ok=True)
    return place


def _user_cache() -> Path | None:
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        # Neither HOME nor an entry among the users, as in `docker run --user 12345`.
        return None


def _make(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return writable(folder)


def _private_temporary() -> Path:
    """A folder of this user's under the temporary one; one that others could have prepared is refused."""
    folder = Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ResourceError(f"{folder}: is not a private folder of this user. Remove it, or name a folder with --cache-dir.")
    return folder
