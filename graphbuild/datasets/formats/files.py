"""The files that --source names: paths, folders and globs, here or behind any URL that fsspec or pyarrow can open."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.datasets.base import SourceFile
from graphbuild.errors import OptionError, SourceError, one_line
from graphbuild.store.files import digest_stream

_SIGNS = "*?["


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL, with what the readers use of a `Path`."""

    url: str
    path: str
    filesystem: Any

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """Of the name, with its dot."""
        return PurePosixPath(self.path).suffix

    def open(self, mode: str = "r", **options: Any) -> Any:
        """A stream, as `Path.open` gives."""
        return self.filesystem.open(self.path, mode, **options)

    def is_file(self) -> bool:
        """Whether it is there."""
        return bool(self.filesystem.isfile(self.path))

    def __str__(self) -> str:
        return self.url


File = Path | RemoteFile


def is_url(source: str) -> bool:
    """Whether a source is a URL and no path."""
    return "://" in source


def find_files(sources: tuple[str, ...], *, dataset: str, suffixes: tuple[str, ...]) -> list[File]:
    """The files that the sources name: paths, URLs, folders (their files of these suffixes) and globs, each sorted by name.

    Raises:
        SourceError: If there is none, or one is missing; also if two files have one name, for ids are made of names.
    """
    if not sources:
        raise OptionError(f"--dataset {dataset} needs --source: a {suffixes[0]} file, a folder of such files, a glob, or a URL.")
    found = [path for source in sources for path in (_remote if is_url(source) else _local)(source, suffixes)]
    paths = list(dict.fromkeys(found))
    names: dict[str, File] = {}
    for path in paths:
        if (other := names.setdefault(path.name, path)) != path:
            raise SourceError(f"{path}: has the same file name as {other}. Sample ids and errors name files: rename one of them.")
    return paths


def _local(source: str, suffixes: tuple[str, ...]) -> list[File]:
    path = Path(source)
    if path.is_dir():
        return _of_suffix(source, list(path.iterdir()), suffixes)
    if path.is_file():
        return [path]
    if any(sign in source for sign in _SIGNS):
        # Path.glob takes no absolute patterns.
        return _matching(source, [Path(name) for name in glob.glob(source, recursive=True)])  # noqa: PTH207
    raise SourceError(f"{source}: no such file. Check --source.")


def _remote(source: str, suffixes: tuple[str, ...]) -> list[File]:
    filesystem, path = _open_filesystem(source)

    def files(paths: list[str]) -> list[File]:
        return [RemoteFile(filesystem.unstrip_protocol(name), name, filesystem) for name in paths]

    try:
        if any(sign in path for sign in _SIGNS):
            return _matching(source, files(filesystem.glob(path)))
        if filesystem.isdir(path):
            return _of_suffix(source, files(filesystem.ls(path, detail=False)), suffixes)
        if filesystem.isfile(path):
            return [RemoteFile(source, path, filesystem)]
    # A store's client may raise whatever its network and its authentication do.
    except Exception as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{source}: cannot be reached ({type(error).__name__}: {one_line(str(error))[:200]}).") from None
    raise SourceError(f"{source}: no such file. Check --source.")


def _open_filesystem(source: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it: fsspec's, else pyarrow's own (s3, gs, hdfs), which need no package."""
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    reason: Exception
    try:
        filesystem, path = fsspec.url_to_fs(source)
        return filesystem, str(path)
    except (ImportError, ValueError) as error:
        reason = error
    try:
        arrow, path = FileSystem.from_uri(source)
        return ArrowFSWrapper(arrow), path
    except (pa.ArrowException, OSError, ValueError):
        raise SourceError(
            f"{source}: no reader for this kind of URL ({one_line(str(reason))}). Install it, or copy the file."
        ) from None


def _of_suffix(source: str, entries: list[File] | list[Path], suffixes: tuple[str, ...]) -> list[File]:
    files = sorted((file for file in entries if file.suffix in suffixes and file.is_file()), key=str)
    if not files:
        raise SourceError(f"{source}: no {' or '.join(suffixes)} file in this folder. Name the files with --source.")
    return files


def _matching(source: str, entries: list[File] | list[Path]) -> list[File]:
    files = sorted((file for file in entries if file.is_file()), key=str)
    if not files:
        raise SourceError(f"{source}: no file matches this pattern. Quote it, and check the folder.")
    return files


def describe_files(paths: Sequence[File]) -> tuple[SourceFile, ...]:
    """Name, size and digest of input files; reads them once."""
    return tuple(_describe(path) for path in paths)


def _describe(path: File) -> SourceFile:
    with path.open("rb") as stream:
        digest = digest_stream(stream)
        return SourceFile(name=path.name, bytes=stream.tell(), digest=digest)


@contextmanager
def open_parquet(path: File) -> Iterator[pq.ParquetFile]:
    """A Parquet file, here or remote."""
    if isinstance(path, Path):
        with pq.ParquetFile(path) as file:
            yield file
        return
    with path.open("rb") as stream, pq.ParquetFile(stream) as file:
        yield file
