"""What every data source offers: options in, batches of samples with their captions out.

A source is a module of this package with one constant, `SOURCE`. `prepare` may write pictures into the graph
directory; `open` looks at the files, checks the options and reads nothing but headers; the `read` that it returns
streams, in bounded memory. Captions are handed on as they stand: the text policy is applied later.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from graphbuild.errors import OptionError, SourceError
from graphbuild.shards import digest_file

BATCH_ROWS = 8_192
"""Samples a batch; bounds the memory of reading."""
USUAL_CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentence", "title", "class_name", "label_name", "name")
"""Looked for, in this order of search but never of preference, where no --caption-column is given."""

Captions = list[str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """How a data set is described to users."""

    name: str
    what: str
    size: str
    licence: str
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What the user said about the data set."""

    sources: tuple[str, ...] = ()
    """Files, folders or globs, as given."""
    caption_column: str | None = None
    """None: the only usual name among the columns."""
    id_column: str | None = None
    """None: the source's own ids, or `<file>:<row>`."""
    keep_columns: tuple[str, ...] = ()
    """Copied into samples."""


@dataclass(frozen=True, slots=True)
class CaptionBatch:
    """Some consecutive samples of one file."""

    file: str
    """As in `OpenSource.files`."""
    first_row: int
    """Row of the first sample in its file, counted from 0."""
    sample_ids: list[str]
    captions: list[Captions]
    """For each sample its captions, as they stand in the source: None where there is none."""
    kept: pa.Table
    """The kept columns, one row a sample; without columns where none is kept."""
    invalid_rows: tuple[int, ...] = ()
    """Rows (in the file) that held invalid UTF-8, mended with U+FFFD."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One input file, for the manifest."""

    name: str
    bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenSource:
    """A data set that was found and whose options fit."""

    files: tuple[SourceFile, ...]
    read: Callable[[], Iterator[CaptionBatch]]
    """Streams the samples, the same ones in the same order at every call."""
    caption_column: str | None = None
    """As resolved; recorded."""
    id_column: str | None = None
    """As resolved; None where ids are the source's own."""
    keep_schema: pa.Schema
    """Names and types of the kept columns."""
    class_names: bool = False
    """Captions are class names: they go through the default template unless others are given."""
    class_column: str | None = None
    """The kept column that tells classes apart: two classes of one name are found by it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was counted while looking at the files."""
    images: dict[str, Any] | None = None
    """Where the pictures are, for `train run`: kind (`parquet`, `imagefolder`, `cifar10`, ...), path (a path or glob;
    relative to the graph directory if inside it, else absolute), image_column, id_column, label_column, val."""


class Source(Protocol):
    """One kind of data set."""

    info: SourceInfo

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write what the graph directory must hold before reading (drawn pictures); most sources write nothing."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Find the files and check the options.

        Raises:
            SourceError: If a file, folder or column is missing, or there is nothing in it.
            OptionError: If an option does not apply to this source.
        """


def find_files(sources: tuple[str, ...], *, dataset: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that the sources name: paths, folders (their files of these suffixes) and globs, each sorted by name.

    Raises:
        SourceError: If there is none, or one is missing; also if two files have one name, for ids are made of names.
    """
    if not sources:
        raise OptionError(f"--dataset {dataset} needs --source: a {suffixes[0]} file, a folder of such files, or a glob.")
    found = [path for source in sources for path in _expand(source, suffixes)]
    paths = list(dict.fromkeys(found))
    names: dict[str, Path] = {}
    for path in paths:
        if (other := names.setdefault(path.name, path)) != path:
            raise SourceError(f"{path}: has the same file name as {other}. Sample ids and errors name files: rename one of them.")
    return paths


def _expand(source: str, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
        if not files:
            raise SourceError(f"{source}: no {' or '.join(suffixes)} file in this folder. Name the files with --source.")
        return files
    if path.is_file():
        return [path]
    if any(sign in source for sign in "*?["):
        # Path.glob takes no absolute patterns.
        files = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not files:
            raise SourceError(f"{source}: no file matches this pattern. Quote it, and check the folder.")
        return files
    raise SourceError(f"{source}: no such file. Check --source.")


def describe_files(paths: list[Path]) -> tuple[SourceFile, ...]:
    """Name, size and digest of input files; reads them once."""
    return tuple(SourceFile(name=path.name, bytes=path.stat().st_size, digest=digest_file(path)) for path in paths)


def choose_caption_column(where: str, columns: list[str], wanted: str | None) -> str:
    """The caption column: the one asked for, else the only usual name there is.

    Raises:
        SourceError: Listing the columns that exist.
    """
    if wanted is not None:
        require_columns(where, columns, (wanted,))
        return wanted
    usual = [name for name in columns if name.lower() in USUAL_CAPTION_COLUMNS]
    if len(usual) == 1:
        return usual[0]
    why = f"several columns may hold the captions ({', '.join(usual)})" if usual else "no column has a usual caption name"
    raise SourceError(f"{where}: {why}. Choose one with --caption-column; the columns are: {', '.join(columns)}.")


def require_columns(where: str, columns: list[str], wanted: tuple[str, ...]) -> None:
    """Check that columns exist.

    Raises:
        SourceError: Naming the missing one and those that exist.
    """
    for name in wanted:
        if name not in columns:
            raise SourceError(f"{where}: no column {name!r}; the columns are: {', '.join(columns)}.")


def image_path(path: str | Path, graph_dir: Path) -> str:
    """A path or glob as the manifest records it: relative if inside the graph directory, else absolute."""
    absolute = Path(path).absolute()
    root = graph_dir.absolute()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def nothing_kept(rows: int) -> pa.Table:
    """A table of no columns and so many rows."""
    return pa.table({"_": pa.nulls(rows)}).drop_columns(["_"])


def mend(value: bytes | None) -> tuple[str | None, bool]:
    """Text of some bytes, each invalid sequence replaced by U+FFFD, and whether there was one."""
    if value is None:
        return None, False
    try:
        return value.decode("utf-8"), False
    except UnicodeDecodeError:
        return value.decode("utf-8", errors="replace"), True
