"""The text policy at work: captions cleaned, and everything unusual about them counted, with examples, for the manifest."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.datasets.base import CaptionBatch
from graphbuild.embed.text.append import ExistingTexts
from graphbuild.embed.text.table import TextPolicy
from graphbuild.store.files import Receipt
from graphbuild.store.tables import read_texts

LISTED = 100
"""Examples of each thing that the manifest lists."""
LONG = 1_000
"""Characters from which a caption is called very long: no caption of a picture is, but alt texts of a whole page are."""
LONGEST = 100_000
"""Characters after which a caption is cut: far beyond what encoders read, and what a tokenizer takes in reasonable memory."""
_REPEATED = 10
_EXCERPT = 80
# Those of the classes Cc and Cf that are neither white space nor joiners, which some scripts and emoji need.
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)

COUNTS = {
    "null": "null_captions",
    "blank": "blank_captions",
    "invalid_utf8": "invalid_utf8_rows",
    "control": "control_captions",
    "recomposed": "recomposed_captions",
    "long": "long_captions",
    "cut": "cut_captions",
}
"""What is listed, and how the manifest calls its count."""

NOTES = {
    "null_captions": "null captions left out",
    "blank_captions": "blank captions left out",
    "invalid_utf8_rows": "rows with invalid UTF-8, repaired with U+FFFD",
    "control_captions": "captions with control or invisible characters, kept as they are",
    "recomposed_captions": "captions brought to Unicode NFC",
    "long_captions": f"captions over {LONG:,} characters",
    "cut_captions": f"captions over {LONGEST:,} characters, cut there",
}
"""What people are told of each."""


@dataclass(slots=True)
class Listing:
    """Counts something, and keeps the first places where it was met."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str, caption: str | None = None) -> None:
        """Count one more, and keep it if it is among the first."""
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(place if caption is None else f"{place}: {caption[:_EXCERPT]!r}")


class Cleaner:
    """Cleans captions, and lists what is unusual about them."""

    def __init__(self, policy: TextPolicy, held: ExistingTexts | None = None) -> None:
        """Go on from what a graph that is appended to counted."""
        self._policy = policy
        counts = held.counts if held is not None else {}
        listed = held.stage.facts.get("listed", {}) if held is not None else {}
        self._listings = {name: Listing(counts.get(counted, 0), list(listed.get(name, ()))) for name, counted in COUNTS.items()}

    def clean(self, batch: CaptionBatch) -> tuple[list[int], list[str]]:
        """Clean captions, and the batch row that each belongs to; null and blank ones are left out."""
        rows: list[int] = []
        cleaned: list[str] = []
        for row, captions in enumerate(batch.captions):
            # A sample without any caption in its list has none, too.
            for caption in captions or [None]:
                if caption is None:
                    self._listings["null"].add(batch.place(row))
                elif text := self._policy.clean(caption[:LONGEST]):
                    rows.append(row)
                    cleaned.append(text)
                    self._look_at(batch, row, caption)
                else:
                    self._listings["blank"].add(batch.place(row))
        for row in batch.invalid_rows:
            self._listings["invalid_utf8"].add(f"{batch.file}:{row}")
        return rows, cleaned

    def _look_at(self, batch: CaptionBatch, row: int, caption: str) -> None:
        # Nearly all captions are printable ASCII: the cheap questions come first.
        if not caption.isprintable() and _CONTROL.search(caption):
            self._listings["control"].add(batch.place(row), caption)
        if not caption.isascii() and not unicodedata.is_normalized("NFC", caption):
            self._listings["recomposed"].add(batch.place(row), caption)
        if len(caption) > LONG:
            self._listings["long"].add(batch.place(row), caption)
        if len(caption) > LONGEST:
            self._listings["cut"].add(batch.place(row), caption)

    @property
    def left_out(self) -> int:
        """Captions that are null or blank."""
        return self._listings["null"].count + self._listings["blank"].count

    def counts(self) -> dict[str, int]:
        """Return how many captions had each peculiarity, by its name in the manifest."""
        return {counted: self._listings[name].count for name, counted in COUNTS.items()}

    def listed(self) -> dict[str, list[str]]:
        """Return examples of what was left out or changed, by kind."""
        return {name: listing.first for name, listing in self._listings.items() if listing.first}


def collapse_facts(graph_dir: Path, texts: Mapping[str, Receipt], counts_N: NDArray[np.int32]) -> dict[str, Any]:
    """Return how often captions repeat, what making one text of them saves, and the texts that are repeated most.

    Args:
        graph_dir: Where the shards of texts lie.
        texts: Their receipts, in order.
        counts_N: Captions of each text.
    """
    captions = int(counts_N.sum(dtype=np.int64))
    share = len(counts_N) / captions
    top = np.argsort(-counts_N, kind="stable")[:_REPEATED]
    top = top[counts_N[top] > 1]
    found = read_texts(graph_dir, texts.values(), top, verify=False)
    return {
        "collapsed": {
            "captions": captions - len(counts_N),
            "encoding_saved": round(1 - share, 4),
            "pairs_saved": round(1 - share**2, 4),
        },
        "most_repeated": [{"text_id": int(i), "captions": int(counts_N[i]), "text": found[int(i)]} for i in top],
    }


def describe_collapse(facts: Mapping[str, Any]) -> str | None:
    """Return one line for people, or None where no caption repeats."""
    collapsed, repeated = facts.get("collapsed"), facts.get("most_repeated")
    if not collapsed or not collapsed["captions"] or not repeated:
        return None
    first = repeated[0]
    return (
        f"{collapsed['captions']:,} captions repeat a text: {collapsed['encoding_saved']:.1%} fewer to encode, "
        f"{collapsed['pairs_saved']:.1%} fewer pairs; most repeated, {first['captions']:,} times: {first['text'][:_EXCERPT]!r}"
    )
