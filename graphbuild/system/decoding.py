"""Bytes of others as text: compression and encoding told by the first bytes, invalid UTF-8 repaired, JSON that cannot hurt.

What comes out is UTF-8 without a byte-order mark. Both packages read JSON and lists of ids through here.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

READ_ERRORS = (EOFError, OSError, zlib.error, pa.ArrowException)
"""What reading a damaged compressed file raises."""
_LOOKED_AT = 4096
_CHUNK = 1 << 18
_COUNTED = "xclr-count"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_TEXT = (
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)


class NotText(ValueError):
    """Bytes that are no text; what they are, in a few words."""


def mend(value: bytes | None) -> tuple[str | None, bool]:
    """Return the text of some bytes, each invalid sequence replaced by U+FFFD, and whether there was one."""
    if value is None:
        return None, False
    try:
        return value.decode("utf-8"), False
    except UnicodeDecodeError:
        return value.decode("utf-8", errors="replace"), True


def as_text(value: Any) -> str | None:
    """Return a text as it is, save that lone surrogates, which are no characters, become U+FFFD; other values as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if text.isascii() else text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: If it is no JSON, or is nested too deeply to be read.
    """
    if isinstance(text, bytes):
        text = mend(text)[0] or ""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises:
        ValueError: If it is none.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}")
    return value


def describe_form(raw: IO[bytes]) -> str | None:
    """Return how a stream of text is stored, where it is not plain UTF-8: compressed, or in UTF-16, with its errors counted."""
    stream, packed = _unpacked(raw)
    if not _peek(stream).startswith(_UTF16):
        return packed
    errors = 0

    def count(error: UnicodeError) -> tuple[str | bytes, int]:
        nonlocal errors
        errors += 1
        return "\ufffd", error.end  # type: ignore[attr-defined]

    codecs.register_error(_COUNTED, count)
    text = io.TextIOWrapper(stream, encoding="utf-16", errors=_COUNTED, newline="")
    while text.read(_CHUNK):
        pass
    return f"{packed + ', ' if packed else ''}UTF-16 by its byte-order mark, with {errors:,} encoding errors"


@contextmanager
def utf8_stream(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a stream of bytes as text in UTF-8 without its mark: unpacked if compressed, converted if it is marked as UTF-16.

    Raises:
        NotText: If it is no text.
    """
    stream, _ = _unpacked(raw)
    head = _peek(stream)
    if head.startswith(_UTF16):
        yield io.BufferedReader(_Converted(io.TextIOWrapper(stream, encoding="utf-16", errors="replace", newline="")))
        return
    for magic, what in _NOT_TEXT:
        if head.startswith(magic):
            raise NotText(f"{what}, not text")
    if head[257:262] == b"ustar":
        raise NotText("a tar archive, not text")
    if b"\0" in head:
        raise NotText("holds zero bytes, as no text does; if it is UTF-16 without a mark, save it as UTF-8")
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    yield stream


def read_text(path: Path) -> bytes:
    """Return the text of a small file, whole, as UTF-8.

    Raises:
        NotText: If it is no text.
    """
    with path.open("rb") as raw, utf8_stream(raw) as stream:
        return stream.read()


def _unpacked(raw: IO[bytes]) -> tuple[io.BufferedReader, str | None]:
    """What a stream holds, and how it is compressed."""
    stream = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(_Raw(raw))
    head = _peek(stream)
    unpacked: Any
    if head.startswith(b"\x1f\x8b"):
        unpacked, how = gzip.GzipFile(fileobj=stream), "gzip"
    elif head.startswith(b"BZh"):
        unpacked, how = bz2.BZ2File(stream), "bzip2"
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        unpacked, how = _Raw(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")), "zstd"
    else:
        return stream, None
    return io.BufferedReader(unpacked, _CHUNK), f"compressed ({how})"


def _peek(stream: io.BufferedReader) -> bytes:
    return stream.peek(_LOOKED_AT)[:_LOOKED_AT]


class _Raw(io.RawIOBase):
    """Any stream that has `read`, with the methods that `io` asks for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Converted(io.RawIOBase):
    """UTF-8 of a text stream."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._left = text, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._text.read(_CHUNK).encode("utf-8", errors="replace")
        data, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)
