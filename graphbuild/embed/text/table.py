"""From captions to unique texts: the text policy, prompts and tokens.

A text is unique by the token sequence that the encoder reads. Text ids run from 0 in order of first appearance.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from graphbuild.embed.text.append import ExistingTexts
from graphbuild.embed.text.keys import Growing, Keys, KeyTable
from graphbuild.errors import ArtifactMismatch, OptionError
from graphbuild.store import schemas

DEFAULT_TEMPLATE = "a photo of a {}"
_CACHED_TEXTS = 100_000
_RESTORED_TEXTS = 8_192
_TOKENIZED_CHARACTERS = 1 << 22

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    """What the text stage needs of an encoder."""

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """Return token ids of each text, cut to the encoder's length, and whether it was cut."""

    @property
    def unknown_token(self) -> int | None:
        """The token that stands for what the vocabulary does not have; None where it has everything."""

    @property
    def special_tokens(self) -> frozenset[int]:
        """Tokens that stand for no part of a text."""


@dataclass(frozen=True, slots=True)
class TextPolicy:
    """What is done to a caption before anything else."""

    replacements: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, replacements: Sequence[str], *, defaults: Sequence[str] = ()) -> TextPolicy:
        """Read `OLD=NEW` options; a default holds unless an option has the same OLD.

        Raises:
            OptionError: If one has no `=` or nothing before it.
        """
        pairs: dict[str, str] = {}
        for entry in (*replacements, *defaults):
            old, sign, new = entry.partition("=")
            if not sign or not old:
                raise OptionError(f"--replace {entry!r} is not OLD=NEW. Write, for example, --replace '<person>=someone'.")
            pairs.setdefault(unicodedata.normalize("NFC", old), unicodedata.normalize("NFC", new))
        return cls(tuple(pairs.items()))

    def clean(self, text: str) -> str:
        """Return a text in Unicode NFC, with replacements made, and white space folded and trimmed."""
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
        """Read `--template` options; none means that captions are read as they are.

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
        """Return every prompt of a class name; the first one is its text."""
        return [template.replace("{}", name) for template in self.templates] or [name]

    def name_of(self, text: str) -> str:
        """Return the class name in a text."""
        if not self.templates:
            return text
        before, after = self.templates[0].split("{}")
        return text[len(before) : len(text) - len(after)]


def hash_tokens(prompts: Sequence[Tokens]) -> tuple[int, int]:
    """Return `text_hash` of a text (xxh3_64 of its int32 tokens, all prompts joined by -1), and an independent second hash.

    Two texts are taken for one only if both agree; the first alone would err once in 2e5 data sets of 12 M texts. Where it
    does, the texts stay two, of one `text_hash`.
    """
    joined = b"\xff\xff\xff\xff".join(tokens.astype("<i4").tobytes() for tokens in prompts)
    return xxhash.xxh3_64_intdigest(joined), xxhash.xxh64_intdigest(joined)


def _by_length(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Names in runs of so many characters that a tokenizer's memory stays bounded, whatever single names are like."""
    start, length = 0, 0
    for at, name in enumerate(names):
        length += len(name)
        if length > _TOKENIZED_CHARACTERS:
            yield names[start : at + 1]
            start, length = at + 1, 0
    if start < len(names):
        yield names[start:]


class NewText(NamedTuple):
    """A row of the texts table."""

    text_id: int
    text: str
    text_hash: int


class TextTable:
    """Unique texts by token sequence: name -> text id. Some forty bytes a text, whatever its length."""

    def __init__(self, tokenizer: Tokenizer, prompts: Prompts) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._ids = KeyTable()
        self._counts = Growing(np.int32)
        self._truncated = Growing(np.bool_)
        self._unknown = Growing(np.bool_)
        self._special = np.array(sorted(tokenizer.special_tokens), np.int32)
        self._cache: dict[str, int] = {}
        self._new: list[NewText] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Return the text ids of clean captions or class names; new texts get the next ids, in order of first appearance."""
        known = {name: self._cache[name] for name in set(names) & self._cache.keys()}
        unknown = list(dict.fromkeys(name for name in names if name not in known))
        for name, text_id in zip(unknown, self._enter(unknown).tolist(), strict=True):
            known[name] = text_id
            if len(self._cache) < _CACHED_TEXTS:
                self._cache[name] = text_id
        text_ids = np.fromiter((known[name] for name in names), dtype=np.int32, count=len(names))
        np.add.at(self._counts.values, text_ids, 1)
        return text_ids

    def restore(self, held: ExistingTexts) -> None:
        """Take in the texts of a graph that is appended to, and their counts.

        Raises:
            ArtifactMismatch: If the tokenizer makes another sequence of a text than its stored hash is of; file and row are named.
        """
        for path, table in held.tables(schemas.TEXTS, [schemas.TEXT, schemas.TEXT_HASH]):
            for row in range(0, table.num_rows, _RESTORED_TEXTS):
                part = table.slice(row, _RESTORED_TEXTS)
                hashes_n, first = part[schemas.TEXT_HASH].to_numpy(), len(self)
                keys_n2, cut_n, unknown_n = self._keys([self._prompts.name_of(text) for text in part[schemas.TEXT].to_pylist()])
                ids_n = self._ids.number(keys_n2)
                differ = np.flatnonzero((keys_n2[:, 0] != hashes_n) | (ids_n != np.arange(first, first + len(ids_n))))
                if len(differ):
                    at = int(differ[0])
                    raise ArtifactMismatch(
                        f"{path}: row {row + at} (text_id {first + at}) is not the text that its hash is of. "
                        "The tokenizer changed, or the file. Run `graphbuild embed --overwrite` with all sources."
                    )
                self._reserve()
                self._truncated.values[ids_n] = cut_n
                self._unknown.values[ids_n] = unknown_n
        for _, table in held.tables(schemas.SAMPLES, [schemas.TEXT_ID]):
            np.add.at(self._counts.values, table[schemas.TEXT_ID].to_numpy(), 1)

    def _reserve(self) -> None:
        self._counts.reserve(len(self))
        self._truncated.reserve(len(self))
        self._unknown.reserve(len(self))

    def _enter(self, names: list[str]) -> NDArray[np.int32]:
        """Text ids of distinct names; texts that are new wait for `take_new`."""
        known = len(self)
        keys_n2, cut_n, unknown_n = self._keys(names)
        text_ids = self._ids.number(keys_n2)
        self._reserve()
        fresh, firsts = np.unique(text_ids, return_index=True)
        for text_id, row in zip(fresh.tolist(), firsts.tolist(), strict=True):
            if text_id >= known:
                self._new.append(NewText(text_id, self._prompts.all_of(names[row])[0], int(keys_n2[row, 0])))
                self._truncated.values[text_id] = cut_n[row]
                self._unknown.values[text_id] = unknown_n[row]
        return text_ids

    def _keys(self, names: Sequence[str]) -> tuple[Keys, NDArray[np.bool_], NDArray[np.bool_]]:
        """Both hashes of each name's prompts, whether one of them was cut, and whether the encoder knows less than half of it."""
        parts = [self._keys_of(part) for part in _by_length(names)]
        if not parts:
            return np.empty((0, 2), np.uint64), np.empty(0, np.bool_), np.empty(0, np.bool_)
        keys, cut, unknown = zip(*parts, strict=True)
        return np.concatenate(keys), np.concatenate(cut), np.concatenate(unknown)

    def _keys_of(self, names: Sequence[str]) -> tuple[Keys, NDArray[np.bool_], NDArray[np.bool_]]:
        width = max(1, len(self._prompts.templates))
        tokens, cut = self._tokenizer.tokenize([prompt for name in names for prompt in self._prompts.all_of(name)])
        hashes = [hash_tokens(tokens[at : at + width]) for at in range(0, len(tokens), width)]
        cut_n: NDArray[np.bool_] = np.array(cut, np.bool_).reshape(-1, width).max(axis=1, initial=False)
        unknown_n = np.fromiter((self._is_unknown(tokens[at]) for at in range(0, len(tokens), width)), np.bool_, len(hashes))
        return np.array(hashes, np.uint64).reshape(-1, 2), cut_n, unknown_n

    def _is_unknown(self, tokens: Tokens) -> bool:
        """Whether at least half of a text's tokens stand for what the vocabulary does not have."""
        if self._tokenizer.unknown_token is None:
            return False
        unknown = int(np.count_nonzero(tokens == self._tokenizer.unknown_token))
        return unknown > 0 and 2 * unknown >= len(tokens) - int(np.count_nonzero(np.isin(tokens, self._special)))

    def take_new(self) -> list[NewText]:
        """Return the texts that came since the last call."""
        new, self._new = self._new, []
        return new

    def counts(self) -> NDArray[np.int32]:
        """Count the captions of each text; shape (N,)."""
        counts: NDArray[np.int32] = self._counts.values[: len(self)]
        return counts

    def truncated_ids(self) -> NDArray[np.int64]:
        """Return the texts that are longer than the encoder reads."""
        return np.flatnonzero(self._truncated.values[: len(self)])

    def unknown_ids(self) -> NDArray[np.int64]:
        """Return the texts of which the encoder knows less than half."""
        return np.flatnonzero(self._unknown.values[: len(self)])

    def unknown_captions(self) -> int:
        """Count the captions whose text the encoder knows less than half of."""
        return int(self.counts()[self._unknown.values[: len(self)]].sum())

    def truncated_captions(self) -> int:
        """Count the captions whose text is longer than the encoder reads."""
        return int(self.counts()[self._truncated.values[: len(self)]].sum())
