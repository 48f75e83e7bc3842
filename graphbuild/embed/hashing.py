"""The `hashing:<width>` encoder, a testing aid: deterministic, instant, without torch, and without any knowledge of language.

A text's vector is the sum of pseudo-random vectors of its words, plus a little of one for the whole sequence, so that
texts with common words are closer, and different sequences differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from graphbuild.errors import OptionError
from graphbuild.store.atomic import write_json

PREFIX = "hashing:"
MAX_TOKENS = 256
_SEQUENCE_WEIGHT = 0.1


def parse_width(name: str) -> int:
    """Return the vector width in `hashing:<width>`.

    Raises:
        OptionError: If it is no number from 2 to 4,096.
    """
    width = name.removeprefix(PREFIX)
    if not width.isdecimal() or not 2 <= int(width) <= 4096:
        raise OptionError(f"--encoder {name}: give the width of the vectors as a number from 2 to 4096, such as hashing:64.")
    return int(width)


class HashingEncoder:
    """Words to pseudo-random vectors; a testing aid."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.max_tokens = MAX_TOKENS

    def tokenize(self, texts: Sequence[str]) -> tuple[list[NDArray[np.int32]], list[bool]]:
        """Return hashes of the lower-case words of each text, cut to 256, and whether it was cut."""
        words = [text.lower().split() for text in texts]
        return [self._tokens(some[:MAX_TOKENS]) for some in words], [len(some) > MAX_TOKENS for some in words]

    unknown_token = None
    """Every word has a hash."""
    special_tokens: frozenset[int] = frozenset()

    @staticmethod
    def _tokens(words: list[str]) -> NDArray[np.int32]:
        return np.fromiter((xxhash.xxh32_intdigest(word.encode()) & 0x7FFFFFFF for word in words), dtype=np.int32, count=len(words))

    def encode(self, tokens: Sequence[NDArray[np.int32]], report: Callable[[int], None] = lambda _: None) -> NDArray[np.float32]:
        """Return unit vectors of token sequences; shape (len(tokens), D)."""
        vectors = np.empty((len(tokens), self.dim), np.float32)
        for row, sequence in enumerate(tokens):
            total = _SEQUENCE_WEIGHT * _gaussian(xxhash.xxh3_64_intdigest(sequence.tobytes()), self.dim)
            for token in sequence.tolist():
                total = total + _word(token, self.dim)
            vectors[row] = total / np.linalg.norm(total)
        report(len(tokens))
        return vectors

    def encode_one(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the unit vector of one token sequence; (D,)."""
        vector_D: NDArray[np.float32] = self.encode([tokens])[0]
        return vector_D

    def save_tokenizer(self, folder: Path) -> None:
        """Write down what the tokens are."""
        write_json(folder / "hashing.json", {"tokens": "xxh32 of lower-case words & 0x7fffffff", "max_tokens": MAX_TOKENS})


def _gaussian(seed: int, dim: int) -> NDArray[np.float64]:
    return np.random.Generator(np.random.Philox(key=seed)).standard_normal(dim)


@lru_cache(maxsize=65_536)
def _word(token: int, dim: int) -> NDArray[np.float64]:
    return _gaussian(token, dim)
