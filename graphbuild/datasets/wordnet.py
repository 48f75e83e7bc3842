"""WordNet 3.0's nouns by wnid: the user's own `data.noun` in; the name and the definition of each class out.

ImageNet's wnids are places in this file: n01440764 is the synset whose line begins at byte 1440764, and with that number.
No other version has its synsets at the same places. WordNet's words stay in the user's file: this project holds none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graphbuild.datasets.base import SourceFile
from graphbuild.errors import SourceError
from graphbuild.store.digests import digest_file

FILE = "data.noun"
_TAKES = f"--definitions takes WordNet 3.0's {FILE}, or the folder that holds it"
_WNID = re.compile(r"n\d{8}")
# Offset, section, part of speech, number of words, then the first word; after the bar the gloss.
_LINE = re.compile(r"(?P<offset>\d{8}) \d\d n [0-9a-f]{2} (?P<word>\S+) .*? \| (?P<gloss>.*)")
# Examples follow the definition, in quotes; a few come after a colon.
_EXAMPLES = re.compile(r'[;:] "')


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun synset of WordNet."""

    name: str
    """Its first word or words."""
    definition: str
    """Its gloss without the examples."""


@dataclass(frozen=True, slots=True)
class Nouns:
    """What was looked up, and where."""

    file: SourceFile
    by_wnid: dict[str, Noun]

    def describe(self, wnid: str, name: str | None = None) -> str:
        """Return the text of a class, `NAME: DEFINITION`, by WordNet's own name unless another is given."""
        noun = self.by_wnid[wnid]
        return f"{name or noun.name}: {noun.definition}"


def is_wnid(name: str) -> bool:
    """Return whether this is how ImageNet writes a noun of WordNet."""
    return _WNID.fullmatch(name) is not None


def read_nouns(given: str, wnids: Iterable[str]) -> Nouns:
    """Look up some nouns.

    Args:
        given: WordNet 3.0's `data.noun`, or the folder that holds it.
        wnids: Of the nouns, as n01440764.

    Raises:
        SourceError: If there is no such file, or no synset begins where a wnid says.
    """
    path = Path(given)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise SourceError(f"{path}: no such file. {_TAKES}.")
    found: dict[str, Noun] = {}
    with path.open("rb") as stream:
        for wnid in wnids:
            stream.seek(int(wnid[1:]))
            # No line of WordNet is nearly as long; a file that has no lines must not be read whole.
            found[wnid] = _parse(path, wnid, stream.readline(1 << 20))
    return Nouns(SourceFile(name=path.name, bytes=path.stat().st_size, digest=digest_file(path)), found)


def _parse(path: Path, wnid: str, line: bytes) -> Noun:
    match = _LINE.match(line.decode(errors="replace"))
    if match is None or match["offset"] != wnid[1:]:
        raise SourceError(
            f"{path}: no noun begins at byte {int(wnid[1:])}, where {wnid} stands in WordNet 3.0. {_TAKES}; "
            "other versions, such as 3.1, have other offsets."
        )
    definition = _EXAMPLES.split(match["gloss"], maxsplit=1)[0].strip(" ;")
    return Noun(match["word"].replace("_", " "), definition)
