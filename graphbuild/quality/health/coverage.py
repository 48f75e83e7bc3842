"""Does the encoder know the language of the captions? Judged by its tokenizer, without the encoder.

A text is not covered if the tokenizer does not know half of its pieces or letters, or if it has to spell it: an English
vocabulary writes an English word in 1.1 pieces, a German one in 2. Such texts are near to one another for what they have
in common as strings, and a caption is not found near its translation.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from graphbuild.store import schemas
from graphbuild.store.frames import Frames

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORD = re.compile(r"\w+")
_PIECES_OF_A_SCRIPT = 200
"""Pieces of several letters from which a vocabulary knows a script."""
_SINGLE_LETTERS = 2000
"""The same in single characters, for scripts that write a word with one."""
_MANY_SCRIPTS = 4
"""Scripts from which a vocabulary is one of many languages; how it splits words says nothing then."""
_SPELLED = 1.75
"""Pieces a word from which a text is spelled, not read: 1 % of English captions and 2 % of WordNet's definitions reach it."""
_FEWEST_WORDS = 4


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the texts the encoder's vocabulary covers."""

    share: float
    """Of texts that are not covered."""
    uncovered: list[int]
    """Their ids, of those looked at."""


def measure_coverage(view: Frames, ids_s: npt.NDArray[np.integer[Any]]) -> Coverage | None:
    """Look at some texts, and at what `embed` counted of all.

    Returns:
        None for a graph without a tokenizer, such as an imported one.
    """
    path = view.graph.tokenizer / "tokenizer.json"
    if not path.is_file():
        return None
    texts = view.texts_of(ids_s.tolist())
    covered = Vocabulary.read(path).covers(texts[schemas.TEXT].to_list())
    uncovered = [text_id for text_id, known in zip(texts[schemas.TEXT_ID].to_list(), covered, strict=True) if not known]
    counts = view.manifest.counts
    counted = counts.get("unknown_captions", 0) / max(counts.get("captions", 1), 1)
    return Coverage(max(len(uncovered) / max(len(texts), 1), counted), uncovered)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer, and the scripts that its vocabulary knows."""

    tokenizer: Tokenizer
    unknown: str | None
    """The token that stands for what it does not know."""
    scripts: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the vocabulary of a `tokenizer.json`."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Decoded one by one: byte-level vocabularies do not hold letters themselves.
        pieces = tokenizer.decode_batch([[number] for number in range(tokenizer.get_vocab_size())], skip_special_tokens=True)
        several, single = Counter[str](), Counter[str]()
        for piece in pieces:
            letters = [letter for letter in piece if letter.isalpha()]
            (several if len(letters) > 1 else single).update({_script(letter) for letter in letters})
        known = {script for script, count in several.items() if count >= _PIECES_OF_A_SCRIPT}
        known |= {script for script, count in single.items() if count >= _SINGLE_LETTERS}
        return cls(tokenizer, getattr(tokenizer.model, "unk_token", None), frozenset(known))

    def covers(self, texts: Sequence[str]) -> list[bool]:
        """Tell for each text whether the vocabulary covers it."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._covers(text, found.tokens) for text, found in zip(texts, encoded, strict=True)]

    def _covers(self, text: str, pieces: list[str]) -> bool:
        if 2 * pieces.count(self.unknown or "") >= max(len(pieces), 1):
            return False
        letters = [letter for letter in text if letter.isalpha()]
        if 2 * sum(_script(letter) not in self.scripts for letter in letters) > len(letters):
            return False
        words = len(_WORD.findall(text))
        spelled = words >= _FEWEST_WORDS and len(pieces) >= _SPELLED * words
        return not spelled or len(self.scripts) >= _MANY_SCRIPTS


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK."""
    return unicodedata.name(letter, "").split(" ", 1)[0]
