"""Downloads a large public file: with progress, on from where an earlier attempt stopped, checked against what the server says.

The bytes go to `<file>.part`; beside it lies `<file>.part.json`, the version (ETag) that they belong to. What was checked
stays in `<file>.json`, so that a second run needs no network. Of several processes that want a file one fetches it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google_crc32c import extend as crc32c

from graphbuild.errors import ArtifactError, SourceError, redact
from graphbuild.store.atomic import read_json, write_json
from graphbuild.store.locks import exclusive
from graphbuild.system.progress import progress, say

_CHUNK = 1 << 20
_MB = 1_000_000
_ATTEMPTS = 5
"""Failures in a row, none of which brought the download forward."""
_TIMEOUT_SECONDS = 60
_LEAST_RATE = 1_000
"""Bytes a second, over `_TIMEOUT_SECONDS`; a connection that is slower counts as broken."""
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_PASSING = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, http.HTTPStatus.TOO_MANY_REQUESTS)
"""Refusals that another attempt may not meet."""
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """What was fetched, as the server stated it; all of it was checked."""

    url: str
    bytes: int
    etag: str | None = None
    md5: str | None = None
    crc32c: str | None = None

    @classmethod
    def stated(cls, url: str, headers: Mapping[str, str], size: int) -> Download:
        """Return the checksum that a response states: Google's storage gives `x-goog-hash`, others `Content-MD5`, in base64."""
        hashes = dict(part.strip().partition("=")[::2] for part in (headers.get("x-goog-hash") or "").split(","))
        return cls(
            url=url,
            bytes=size,
            etag=headers.get("ETag"),
            md5=_hexadecimal(hashes.get("md5") or headers.get("Content-MD5")),
            crc32c=_hexadecimal(hashes.get("crc32c")),
        )


def fetch(url: str, path: Path, *, sha256: str | None = None, pause: Callable[[float], None] = time.sleep) -> Download:
    """Download a file, or go on with it; a file that is there already, checked, is left alone.

    Args:
        url: Where it is.
        path: Where it goes.
        sha256: Of the file as it was published; None: nobody states it.
        pause: Waits between attempts.

    Returns:
        What the server stated, and what was checked.

    Raises:
        SourceError: If it cannot be reached, or stops again and again; what was fetched is kept.
        ArtifactError: If the bytes are not those that the server stated, and are removed, or not those that were published.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_name(f".{path.name}.lock"), where=path, wait=True):
        known = _read(path.with_name(path.name + ".json"))
        if known is not None and path.is_file() and path.stat().st_size == known.bytes:
            return known
        return _fetch(url, path, sha256, pause)


def _fetch(url: str, path: Path, sha256: str | None, pause: Callable[[float], None]) -> Download:
    part = path.with_name(path.name + ".part")
    stated = _persist(url, path, part, pause)
    _check(part, stated)
    if sha256 is not None:
        _require_published(part, sha256)
    part.replace(path)
    write_json(path.with_name(path.name + ".json"), asdict(stated))
    part.with_name(part.name + ".json").unlink(missing_ok=True)
    return stated


def _persist(url: str, path: Path, part: Path, pause: Callable[[float], None]) -> Download:
    """Receive all of it, however often the connection breaks, as long as attempts bring it forward."""
    failures, most = 0, _size(part)
    while True:
        try:
            return _receive(url, part)
        except _NETWORK_ERRORS as error:
            failures = 0 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in _PASSING
            if refused or failures == _ATTEMPTS:
                why = f"{type(error).__name__}: {error}"
                raise SourceError(
                    f"{redact(url)}: could not be downloaded ({why}); {_size(part) / 1e6:,.0f} MB are here. "
                    f"Run the command again to go on, or fetch it elsewhere and give --source {path.name}."
                ) from None
            seconds = min(2.0**failures, 30.0)
            say(f"{redact(url)}: {error}; trying again in {seconds:.0f} s")
            pause(seconds)


def _receive(url: str, part: Path) -> Download:
    """One attempt: the rest of the file, or all of it where the server has another version by now."""
    note = part.with_name(part.name + ".json")
    begun = _read(note)
    etag = begun.etag if begun is not None and begun.url == redact(url) and _size(part) <= begun.bytes else None
    start = _size(part) if etag else 0
    if begun is not None and start == begun.bytes:
        return begun
    # Packed bytes would have other sizes and hashes than the file.
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if start and etag:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", etag)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _drop(part)
        raise
    with response:
        start = _start(response, part, start, begun)
        length = response.headers.get("Content-Length")
        if length is None or response.headers.get("Content-Encoding", "identity") != "identity":
            raise SourceError(f"{redact(url)}: the server does not say how large the file is. Fetch it by hand, and give --source.")
        stated = Download.stated(redact(url), response.headers, start + int(length))
        write_json(note, asdict(stated))
        _store(response, part, start, stated.bytes)
    return stated


def _start(response: Any, part: Path, offset: int, begun: Download | None) -> int:
    """The byte at which an answer begins.

    Raises:
        http.client.HTTPException: If it is a part that was not asked for, or of another version; what was fetched is dropped.
    """
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
    etag = response.headers.get("ETag")
    if begun is None or found is None or (int(found[1]), int(found[2])) != (offset, begun.bytes) or etag not in (None, begun.etag):
        _drop(part)
        raise http.client.HTTPException("the server sent another part, or one of another version, than was asked for")
    return offset


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _store(response: Any, part: Path, start: int, size: int) -> None:
    with part.open("r+b" if start else "wb") as stream, progress("downloading", size // _MB, unit="MB") as meter:
        done = stream.seek(start)
        meter.advance(done // _MB)
        pace = _Pace(done)
        # As it comes: a read of a whole chunk would wait for a slow server however slow it is.
        while chunk := response.read1(_CHUNK):
            pace.check(done)
            stream.write(chunk)
            meter.advance((done + len(chunk)) // _MB - done // _MB)
            done += len(chunk)
        if done < size:
            # Without this, a connection that is closed early looks like the end.
            raise http.client.IncompleteRead(b"", size - done)


class _Pace:
    """Notices a connection that gives next to nothing."""

    def __init__(self, done: int) -> None:
        self._since, self._done = time.monotonic(), done

    def check(self, done: int) -> None:
        """Compare what came since the last time with the least rate.

        Raises:
            TimeoutError: If it is less.
        """
        seconds = time.monotonic() - self._since
        if seconds < _TIMEOUT_SECONDS:
            return
        if done - self._done < _LEAST_RATE * seconds:
            raise TimeoutError(f"{(done - self._done) / seconds:,.0f} bytes a second, fewer than {_LEAST_RATE:,}")
        self._since, self._done = time.monotonic(), done


def _check(part: Path, stated: Download) -> None:
    md5, crc = hashlib.md5(usedforsecurity=False), 0
    with part.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            if stated.md5:
                md5.update(chunk)
            elif stated.crc32c:
                crc = crc32c(crc, chunk)
    found = {"bytes": _size(part), "md5": md5.hexdigest() if stated.md5 else None, "crc32c": None if stated.md5 else f"{crc:08x}"}
    for name, value in found.items():
        expected = getattr(stated, name)
        if expected is not None and value is not None and value != expected:
            _drop(part)
            raise ArtifactError(
                f"{part}: {name} {value} was received, but {stated.url} states {expected}. It was removed: run the command again."
            )


def _require_published(part: Path, sha256: str) -> None:
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ArtifactError(
            f"{part}: was received whole, but it is another file than the one that was published: its sha256 is {found}, not "
            f"{sha256}. Find out why; to take it as it is, move it and give --source."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read(path: Path) -> Download | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Download(**read_json(path))
    return None


def _hexadecimal(value: str | None) -> str | None:
    with contextlib.suppress(ValueError):
        return base64.b64decode(value, validate=True).hex() if value else None
    return None
