"""The files that --source names: paths, folders and patterns, here or behind any URL that fsspec or pyarrow can open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.datasets.base import SourceFile
from graphbuild.errors import OptionError, SourceError, one_line, redact
from graphbuild.store.digests import digest_stream
from graphbuild.system.decoding import READ_ERRORS, NotText, describe_form, utf8_stream
from graphbuild.system.inputs import file_names, is_hidden, is_pattern, list_files, suffix_of
from graphbuild.system.progress import say


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL."""

    url: str
    path: str
    filesystem: Any

    def open(self, mode: str) -> Any:
        """Return a stream, as `Path.open` gives."""
        return self.filesystem.open(self.path, mode)

    def __str__(self) -> str:
        return redact(self.url)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a source."""

    place: Path | RemoteFile
    name: str
    """What ids and messages call it: its name, or its path below the source where two files have one name."""

    @property
    def suffix(self) -> str:
        """In lower case, with its dot; of a compressed file, the one before."""
        return suffix_of(self.name)

    def open(self) -> IO[bytes]:
        """Open the file, here or at its address, as bytes."""
        stream: IO[bytes] = self.place.open("rb")
        return stream

    @contextmanager
    def text(self) -> Iterator[IO[bytes]]:
        """Open its text as UTF-8: unpacked if it is compressed, converted if it is marked as UTF-16.

        Raises:
            SourceError: If it is no text, or is damaged.
        """
        try:
            with self.open() as raw, utf8_stream(raw) as stream:
                yield stream
        except NotText as error:
            raise SourceError(f"{self}: {error}. Choose another --dataset or --source.") from None
        except READ_ERRORS as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
            raise SourceError(f"{self}: damaged or cut short ({one_line(str(error))}). Fetch it again.") from None

    def __str__(self) -> str:
        return str(self.place)


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a source."""

    files: list[File]
    hidden: int
    """Files whose names begin with a dot, which were left out."""


def local_file(path: Path) -> File:
    """Return a file here, by its name."""
    return File(path, path.name)


def is_url(source: str) -> bool:
    """Return whether a source is a URL and no path."""
    return "://" in source


def find_files(sources: tuple[str, ...], *, dataset: str, suffixes: tuple[str, ...]) -> Found:
    """Return the files that sources name: paths, URLs, folders (files of these suffixes) and patterns, each sorted by name.

    Raises:
        OptionError: If no source is given.
        SourceError: If one is missing, or a folder has no such files.
    """
    if not sources:
        raise OptionError(f"--dataset {dataset} needs --source: a {suffixes[0]} file, a folder of such files, a glob, or a URL.")
    hidden = 0
    places: dict[str, Path | RemoteFile] = {}
    for source in sources:
        found, left_out = _remote(source, suffixes) if is_url(source) else _local(source, suffixes)
        if not found:
            raise SourceError(f"{redact(source)}: no {' or '.join(suffixes)} file in this folder. Name the files with --source.")
        hidden += left_out
        places |= {path_of(place): place for place in found}
    names = file_names(list(places))
    return Found([File(place, name) for place, name in zip(places.values(), names, strict=True)], hidden)


def path_of(place: Path | RemoteFile) -> str:
    """Return what tells a file from all others: its whole path, of which names are made."""
    if isinstance(place, Path):
        return str(place.absolute())
    # What follows a question mark may be a signature, and is no part of the name.
    return urlsplit(place.path).path if "://" in place.path else place.path


def _local(source: str, suffixes: tuple[str, ...]) -> tuple[list[Path], int]:
    listing = list_files(source, suffixes)
    return list(listing.paths), listing.hidden


def _remote(source: str, suffixes: tuple[str, ...]) -> tuple[list[RemoteFile], int]:
    filesystem, path = _open_filesystem(source)

    def files(paths: Sequence[str]) -> list[RemoteFile]:
        return [RemoteFile(filesystem.unstrip_protocol(name), name, filesystem) for name in sorted(paths)]

    try:
        # In a URL a question mark begins the query.
        if is_pattern(path.replace("?", "") if "://" in path else path):
            if found := files([name for name in filesystem.glob(path) if filesystem.isfile(name)]):
                return found, 0
            raise SourceError(f"{redact(source)}: no file matches this pattern. Quote it, and check the folder.")
        if filesystem.isfile(path):
            return [RemoteFile(source, path, filesystem)], 0
        if filesystem.isdir(path):
            names = [name for name in filesystem.ls(path, detail=False) or () if filesystem.isfile(name)]
            names = names if any(suffix_of(name) in suffixes for name in names) else filesystem.find(path)
            of_kind = [name for name in names if suffix_of(name) in suffixes]
            shown = [name for name in of_kind if not is_hidden(PurePosixPath(name).name)]
            return files(shown), len(of_kind) - len(shown)
    # A store's client may raise whatever its network and its authentication do.
    except Exception as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{redact(source)}: cannot be reached ({type(error).__name__}: {one_line(str(error))[:200]}).") from None
    raise SourceError(f"{redact(source)}: no such file. Check --source.")


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
            f"{redact(source)}: no reader for this kind of URL ({one_line(str(reason))}). Install it, or copy the file."
        ) from None


def describe_files(files: Sequence[File]) -> tuple[SourceFile, ...]:
    """Return name, size and digest of each input file, which is read once."""
    return tuple(_describe(file) for file in files)


def _describe(file: File) -> SourceFile:
    with file.open() as stream:
        digest = digest_stream(stream)
        return SourceFile(name=file.name, bytes=stream.tell(), digest=digest)


def tell_forms(files: Sequence[File]) -> None:
    """Say which text files are compressed, or in another encoding than UTF-8."""
    forms: dict[str, list[File]] = {}
    for file in files:
        try:
            with file.open() as stream:
                if (form := describe_form(stream)) is not None:
                    forms.setdefault(form, []).append(file)
        except READ_ERRORS as error:
            raise SourceError(f"{file}: damaged or cut short ({one_line(str(error))}). Fetch it again.") from None
    for form, some in forms.items():
        more = f" and {len(some) - 1:,} more" if len(some) > 1 else ""
        say(f"{some[0]}{more}: {form}; read as the text that it holds")


@contextmanager
def open_parquet(file: File, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, here or remote.

    Raises:
        SourceError: If it is none, or is damaged.
    """
    try:
        if isinstance(file.place, Path):
            with pq.ParquetFile(file.place, **options) as opened:
                yield opened
        else:
            with file.open() as stream, pq.ParquetFile(stream, **options) as opened:
                yield opened
    except pa.ArrowException as error:
        raise SourceError(f"{file}: not a Parquet file, or a truncated one ({one_line(str(error))}). Fetch it again.") from error
