"""The elements of an array in a large JSON object, one after the other, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()


def stream_array(stream: IO[str], key: str) -> Iterator[Any]:
    """Elements of the array under `key` of the object that a stream holds; what comes before it is skipped.

    Held in memory: one element, or one value of another key that is no array.

    Raises:
        ValueError: If the stream is not such an object, or ends too early.
    """
    cursor = _Cursor(stream)
    cursor.take("{")
    while True:
        name = cursor.value()
        cursor.take(":")
        if cursor.peek() == "[":
            for element in cursor.elements():
                if name == key:
                    yield element
            if name == key:
                return
        else:
            cursor.value()
        if cursor.peek() == "}":
            raise ValueError(f"it has no list {key!r}")
        cursor.take(",")


class _Cursor:
    """A place in a stream of JSON."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._buffer = stream.read(_CHUNK).removeprefix("\ufeff")
        self._position = 0

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._grow():
                return ""

    def take(self, sign: str) -> None:
        """Step over a sign that must come."""
        if (found := self.peek()) != sign:
            raise ValueError(f"{sign!r} expected, {found!r} found" if found else "it ends too early")
        self._position += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
                # A number at the end of the buffer may go on behind it.
                if end < len(self._buffer) or not self._grow():
                    self._position = end
                    return value
            except json.JSONDecodeError as error:
                if not self._grow():
                    raise ValueError(f"it ends too early, or is broken ({error.msg})") from None

    def elements(self) -> Iterator[Any]:
        """Elements of the array that begins here."""
        self.take("[")
        if self.peek() != "]":
            yield self.value()
            while self.peek() == ",":
                self.take(",")
                yield self.value()
        self.take("]")

    def _grow(self) -> bool:
        """Read on, and forget what was passed; False at the end."""
        more = self._stream.read(_CHUNK)
        self._buffer, self._position = self._buffer[self._position :] + more, 0
        return bool(more)
