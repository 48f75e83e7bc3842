"""Which files are data, and of what kind: what a path, a folder or a pattern stands for, and what its files are called.

Both packages list folders and shards by these rules, so that what one of them reads the other finds. Names that begin with
a dot (of editors, notebooks and macOS) are no data.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from graphbuild.errors import SourceError

PICTURE_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
"""What is opened as a picture, as Pillow calls it, and how such files are called."""
PICTURES = tuple(suffix for suffixes in PICTURE_FORMATS.values() for suffix in suffixes)
PARQUET = (".parquet", ".pq")
SHARDS = (".tar",)
COMPRESSED = (".gz", ".zst", ".bz2")
"""What may follow the suffix of a text file."""
_SIGNS = "*?["
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_OTHER_FOLDERS = ("__MACOSX",)
_GRAPH = "graph.json"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a path, a folder or a pattern stands for."""

    paths: tuple[Path, ...]
    hidden: int = 0
    """Files of the kind that is asked for which were left out, because their names begin with a dot."""


def is_hidden(name: str) -> bool:
    """Return whether a file's name, or one of the folders in it, says that it is no data."""
    return any((part.startswith(".") and part not in (".", "..")) or part in _OTHER_FOLDERS for part in name.split("/"))


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, with its dot; that of a compressed file is the one before."""
    parts = PurePosixPath(name.lower()).suffixes
    return "" if not parts else parts[-2] if len(parts) > 1 and parts[-1] in COMPRESSED else parts[-1]


def is_pattern(source: str) -> bool:
    """Return whether a source holds signs of a pattern."""
    return any(sign in source for sign in _SIGNS) or _BRACES.search(source) is not None


def expand_braces(source: str) -> list[str]:
    """Return `{000..012}` and `{a,b}` as all the names that they stand for."""
    match = _BRACES.search(source)
    if match is None:
        return [source]
    bounds = _RANGE.fullmatch(match[1])
    if bounds:
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        parts = [f"{number:0{width}d}" for number in range(int(bounds[1]), int(bounds[2]) + 1)]
    else:
        parts = match[1].split(",")
    return [name for part in parts for name in expand_braces(source[: match.start()] + part + source[match.end() :])]


def list_files(source: str, suffixes: Sequence[str]) -> Listing:
    """Return the files that a path here stands for, sorted: of a folder, those of some suffixes; of a pattern, all that match it.

    A folder without such files of its own is searched through all levels.

    Raises:
        SourceError: If nothing is there; a folder without such files gives an empty listing.
    """
    path = Path(source)
    if path.is_dir():
        return _of_folder(path, suffixes)
    if path.is_file():
        return Listing((path,))
    if path.exists():
        raise SourceError(f"{source}: is a pipe or a device, and sources are read twice or more. Save its content as a file.")
    if not is_pattern(source):
        raise SourceError(f"{source}: no such file. Check the name.")
    found = sorted({Path(name) for one in expand_braces(source) for name in _matching(one)}, key=str)
    if not found:
        raise SourceError(f"{source}: no file matches this pattern. Quote it, and check the folder.")
    return Listing(tuple(found))


def _matching(pattern: str) -> list[str]:
    """Files that match a pattern, in which a folder that is there is meant as it stands, whatever signs its name holds."""
    if Path(pattern).is_file():
        return [pattern]
    folder, rest = Path(pattern).parent, Path(pattern).name
    while not folder.is_dir() and folder != folder.parent:
        folder, rest = folder.parent, f"{folder.name}/{rest}"
    # Path.glob knows no absolute patterns.
    found = glob.glob(f"{glob.escape(str(folder))}/{rest}", recursive=True)  # noqa: PTH207
    plain = folder == Path() and not pattern.startswith("./")
    return [name.removeprefix("./") if plain else name for name in found if Path(name).is_file()]


def _of_folder(folder: Path, suffixes: Sequence[str]) -> Listing:
    names = [entry.name for entry in os.scandir(folder) if entry.is_file() and suffix_of(entry.name) in suffixes]
    found = sorted(folder / name for name in names if not is_hidden(name))
    hidden = len(names) - len(found)
    if not found:
        for directory, folders, files in os.walk(folder):
            # Those of Spark and Delta hold logs and work in progress; a graph's own Parquet files are no source.
            folders[:] = sorted(
                name
                for name in folders
                if not is_hidden(name) and not name.startswith("_") and not (Path(directory) / name / _GRAPH).is_file()
            )
            of_kind = [name for name in sorted(files) if suffix_of(name) in suffixes]
            if Path(directory) != folder:
                hidden += sum(map(is_hidden, of_kind))
            found += [Path(directory) / name for name in of_kind if not is_hidden(name)]
    return Listing(tuple(found), hidden)


def file_names(paths: Sequence[str]) -> list[str]:
    """Return what sample ids and messages call files: their names; where two are equal, all paths below their folder.

    Raises:
        SourceError: If a name is no UTF-8, and so can be no part of an id.
    """
    names = [PurePosixPath(path).name for path in paths]
    if len(set(names)) < len(names):
        root = os.path.commonpath([str(PurePosixPath(path).parent) for path in paths])
        names = [PurePosixPath(path).relative_to(root).as_posix() for path in paths]
    for name in names:
        if not _is_text(name):
            raise SourceError(f"the file name {name!r} is not UTF-8, and cannot be part of an id. Rename it.")
    return names


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(slots=True)
class LeftOut:
    """Files of folders of pictures that are none."""

    hidden: int = 0
    other: int = 0


def walk_pictures(root: Path, below: str = "", left_out: LeftOut | None = None) -> Iterator[str]:
    """Return the paths of the pictures below a folder, relative to `root`, in a fixed order; hidden names are left out and counted.

    Raises:
        SourceError: If a name is no UTF-8.
    """
    left_out = left_out if left_out is not None else LeftOut()
    # os.walk: it takes ten times fewer calls than Path.rglob on a folder of a million files.
    for directory, folders, files in os.walk(root / below, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        relative = Path(directory).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for name in sorted(files):
            if is_hidden(name):
                left_out.hidden += 1
            elif suffix_of(name) not in PICTURES:
                left_out.other += 1
            elif _is_text(prefix + name):
                yield prefix + name
            else:
                raise SourceError(f"{root}: the file name {prefix + name!r} is not UTF-8, and cannot be an id. Rename it.")
