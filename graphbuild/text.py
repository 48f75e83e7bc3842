"""From captions to unique texts: the text policy, prompts and tokens.

A text is unique by the token sequence that the encoder reads. Text ids run from 0 in order of first appearance.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from graphbuild.errors import OptionError, SourceError

DEFAULT_TEMPLATE = "a photo of a {}"
_CACHED_TEXTS = 100_000

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    """What the text stage needs of an encoder."""

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """Token ids of each text, cut to the encoder's length, and whether it was cut."""


@dataclass(frozen=True, slots=True)
class TextPolicy:
    """What is done to a caption before anything else."""

    replacements: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, replacements: Sequence[str]) -> TextPolicy:
        """From `OLD=NEW` options.

        Raises:
            OptionError: If one has no `=` or nothing before it.
        """
        pairs = []
        for entry in replacements:
            old, sign, new = entry.partition("=")
            if not sign or not old:
                raise OptionError(f"--replace {entry!r} is not OLD=NEW. Write, for example, --replace '<person>=someone'.")
            pairs.append((unicodedata.normalize("NFC", old), unicodedata.normalize("NFC", new)))
        return cls(tuple(pairs))

    def clean(self, text: str) -> str:
        """Unicode NFC, replacements, white space folded and trimmed."""
        text = unicodedata.normalize("NFC", text)
        for old, new in self.replacements:
            text = text.replace(old, new)
        return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Prompts:
    """How a caption, or a class name, becomes what the encoder reads."""

    templates: tuple[str, ...] = ()

    @classmethod
    def parse(cls, templates: Sequence[str]) -> Prompts:
        """From `--template` options; none means that captions are read as they are.

        Raises:
            OptionError: If one does not hold `{}` exactly once, or is given twice.
        """
        for template in templates:
            if template.count("{}") != 1:
                raise OptionError(f"--template {template!r} must hold {{}} exactly once: the place of the class name.")
        if len(set(templates)) < len(templates):
            raise OptionError("--template: one template is given twice. Give each once.")
        # Only the blanks at the ends go: those beside {} are part of the prompt.
        return cls(tuple(unicodedata.normalize("NFC", template).strip() for template in templates))

    def all_of(self, name: str) -> list[str]:
        """Every prompt of a class name; the first one is its text."""
        return [template.replace("{}", name) for template in self.templates] or [name]

    def name_of(self, text: str) -> str:
        """The class name in a text."""
        if not self.templates:
            return text
        before, after = self.templates[0].split("{}")
        return text[len(before) : len(text) - len(after)]


def hash_tokens(prompts: Sequence[Tokens]) -> tuple[int, int]:
    """`text_hash` of a text (xxh3_64 of its int32 tokens, all prompts joined by -1), and an independent second hash.

    Two texts are taken for one only if both agree; the first alone would err once in 2e5 data sets of 12 M texts.
    """
    joined = b"\xff\xff\xff\xff".join(tokens.astype("<i4").tobytes() for tokens in prompts)
    return xxhash.xxh3_64_intdigest(joined), xxhash.xxh64_intdigest(joined)


def hash_sample_id(sample_id: str) -> int:
    """`sample_hash`: xxh3_64 of the id's UTF-8 bytes."""
    return xxhash.xxh3_64_intdigest(sample_id.encode())


class TextTable:
    """Unique texts by token sequence: name -> text id."""

    def __init__(self, tokenizer: Tokenizer, prompts: Prompts) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._ids: dict[int, int] = {}
        self._checks = _Growing(np.uint64)
        self._counts = _Growing(np.int64)
        self._truncated: list[int] = []
        self._cache: dict[str, int] = {}
        self._new: list[tuple[int, str, int]] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Text ids of clean captions or class names; new texts get the next ids, in order of first appearance."""
        known = {name: self._cache[name] for name in set(names) & self._cache.keys()}
        unknown = list(dict.fromkeys(name for name in names if name not in known))
        for name, (prompts, truncated) in zip(unknown, self._tokenize(unknown), strict=True):
            known[name] = self._enter(name, prompts, truncated)
            if len(self._cache) < _CACHED_TEXTS:
                self._cache[name] = known[name]
        text_ids = np.fromiter((known[name] for name in names), dtype=np.int32, count=len(names))
        self._counts.resize(len(self))
        np.add.at(self._counts.values, text_ids, 1)
        return text_ids

    def _tokenize(self, names: Sequence[str]) -> Iterator[tuple[list[Tokens], bool]]:
        prompts = [prompt for name in names for prompt in self._prompts.all_of(name)]
        tokens, cut = self._tokenizer.tokenize(prompts) if prompts else ([], [])
        width = max(1, len(self._prompts.templates))
        for start in range(0, len(prompts), width):
            yield tokens[start : start + width], any(cut[start : start + width])

    def _enter(self, name: str, prompts: list[Tokens], truncated: bool) -> int:
        text_hash, check = hash_tokens(prompts)
        found = self._ids.get(text_hash)
        if found is not None:
            if int(self._checks.values[found]) != check:
                raise SourceError(
                    f"the caption {name[:80]!r} has the 64-bit hash of another text (id {found:,}), by chance. "
                    "Leave it out, or change it with --replace."
                )
            return found
        text_id = len(self._ids)
        self._ids[text_hash] = text_id
        self._checks.append(check)
        self._new.append((text_id, self._prompts.all_of(name)[0], text_hash))
        if truncated:
            self._truncated.append(text_id)
        return text_id

    def take_new(self) -> list[tuple[int, str, int]]:
        """(text id, text, hash) of the texts that came since the last call."""
        new, self._new = self._new, []
        return new

    def counts(self) -> NDArray[np.int32]:
        """Captions of each text; shape (N,)."""
        return self._counts.values[: len(self)].astype(np.int32)

    def truncated_ids(self) -> list[int]:
        """Texts that are longer than the encoder reads."""
        return self._truncated

    def truncated_captions(self) -> int:
        """Captions whose text is longer than the encoder reads."""
        return int(self._counts.values[self._truncated].sum()) if self._truncated else 0


class _Growing:
    """A NumPy array that grows by doubling."""

    def __init__(self, dtype: Any) -> None:
        self._size = 0
        self.values: NDArray[Any] = np.zeros(1024, dtype)

    def resize(self, size: int) -> None:
        if size > len(self.values):
            self.values = np.concatenate([self.values, np.zeros(max(size, len(self.values)), self.values.dtype)])
        self._size = max(self._size, size)

    def append(self, value: int) -> None:
        self.resize(self._size + 1)
        self.values[self._size - 1] = value
