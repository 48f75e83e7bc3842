"""The objects of an array in a large JSON file, one after the other, in bounded memory, and whether each held invalid UTF-8."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import IO, Any

import ijson

from graphbuild.datasets.formats.files import File
from graphbuild.errors import SourceError, one_line, visible

_MARK = "\ufdd0"
"""Stands for invalid bytes while JSON is parsed: a code point that is none of a character, and that no text holds."""
_HANDLER = "xclr-mark"
_CHUNK = 1 << 16

codecs.register_error(_HANDLER, lambda error: (_MARK, error.end))  # type: ignore[attr-defined]


def stream_objects(file: File, key: str | None, *, expected: str) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the objects of the array under a key of the object in a file, or of the array that the file is.

    Args:
        file: The file.
        key: Where the array stands; None: the file is the array.
        expected: What the file should be, for messages.

    Yields:
        An object, invalid UTF-8 in it as U+FFFD, and whether there was any.

    Raises:
        SourceError: If it is no such file, or ends too early.
    """
    found = 0
    try:
        with file.text() as raw:
            stream = _Marked(raw)
            for element in ijson.items(stream, "item" if key is None else f"{key}.item", use_float=True):
                found += 1
                if not isinstance(element, dict):
                    raise SourceError(f"{file}: {key or 'the list'!r} holds {type(element).__name__}, not objects. {expected}")
                repaired = _repaired(element) if stream.marked else element
                yield repaired, repaired != element
        if not found and key is not None and key not in _arrays(file):
            raise SourceError(f"{file}: it has no list {key!r}. {expected}")
    except ijson.JSONError as error:
        raise SourceError(f"{file}: {_describe(error)}, after {found:,} objects. {expected}") from None


def first_array(file: File, *, expected: str) -> str | None:
    """Return the key of the first array in the object that a file holds; None where the file is an array itself.

    Raises:
        SourceError: If it is neither.
    """
    try:
        found = next(_arrays(file), None)
    except ijson.JSONError as error:
        raise SourceError(f"{file}: {_describe(error)}. {expected}") from None
    if found is None:
        raise SourceError(f"{file}: holds no list of objects. {expected}")
    return found or None


def _arrays(file: File) -> Iterator[str]:
    """Keys of the arrays in a file's object; empty for the file as an array."""
    with file.text() as raw:
        for prefix, event, _ in ijson.parse(_Marked(raw)):
            if event == "start_array" and "." not in prefix and prefix != "item":
                yield prefix


def _describe(error: ijson.JSONError) -> str:
    # The parser calls what ends too early and what is no JSON at all by one class of error.
    why = visible(one_line(str(error)))[:200]
    return "it ends too early" if "premature" in why or "ncomplete" in why else f"no JSON ({why})"


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_MARK, "\ufffd")
    if isinstance(value, list):
        return [_repaired(item) for item in value]
    return {key: _repaired(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Marked:
    """A stream of UTF-8 in which `_MARK` stands in the places of invalid bytes."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(raw, encoding="utf-8", errors=_HANDLER, newline="")
        self.marked = False
        """Whether there were any so far."""

    def read(self, size: int) -> bytes:
        """Return the next bytes; ijson first asks for none, to learn whether it is given bytes or text."""
        text = self._text.read(min(size, _CHUNK)) if size else ""
        self.marked = self.marked or _MARK in text
        return text.encode("utf-8")
