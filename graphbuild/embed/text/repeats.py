"""Sources whose sample ids repeat, where the user says what becomes of them (`--on-duplicate`).

Shape letters: S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from graphbuild.datasets.base import CaptionBatch, OpenSource
from graphbuild.errors import OptionError
from graphbuild.store.hashes import hash_strings
from graphbuild.store.repeats import OnDuplicate, numbered, occurrences

COUNTED = {"first": "duplicate_ids_left_out", "suffix": "duplicate_ids_numbered"}
"""How the manifest calls the number of samples whose id came before."""
_LISTED = 100


def require_one_rule(rule: OnDuplicate | None, *, multi_caption: bool, append: bool) -> None:
    """Check that --on-duplicate goes together with the other options.

    Raises:
        OptionError: If it does not.
    """
    if rule is None:
        return
    if multi_caption:
        raise OptionError("--multi-caption says that rows of one id are captions of one sample: leave out --on-duplicate.")
    if append and rule != "error":
        raise OptionError(
            f"--on-duplicate {rule} looks at all files at once, and --append at the new ones: build the graph from all sources, or "
            "leave it out."
        )


def settle_repeats(source: OpenSource, rule: OnDuplicate | None) -> OpenSource:
    """Return the source with distinct ids: of those that repeat only the first sample, or each with its number.

    It is read once more for its ids, of which 8 bytes each are held.

    Args:
        source: An opened data set.
        rule: What becomes of repeated ids; None and `error` leave them, for whoever reads to refuse.
    """
    if rule is None:
        return source
    if rule == "error":
        return replace(source, repeated_ids=False)

    @cache
    def before() -> NDArray[np.int64]:
        hashes = [hash_strings(batch.sample_ids) for batch in source.read()]
        return occurrences(np.concatenate(hashes)) if hashes else np.zeros(0, np.int64)

    def read() -> Iterator[CaptionBatch]:
        before_S, start, listed = before(), 0, list[str]()
        for batch in source.read():
            own = before_S[start : start + len(batch.sample_ids)]
            start += len(own)
            listed += [
                f"{batch.place(row)}: {batch.sample_ids[row]}" for row in np.flatnonzero(own)[: _LISTED - len(listed)].tolist()
            ]
            yield _settle(batch, own, rule)
        source.counts[COUNTED[rule]], source.facts["duplicate_ids"] = int((before_S > 0).sum()), listed

    return replace(source, read=read, repeated_ids=False)


def _settle(batch: CaptionBatch, before: NDArray[np.int64], rule: OnDuplicate) -> CaptionBatch:
    if not before.any():
        return batch
    if rule == "suffix":
        ids = [numbered(sample_id, count) for sample_id, count in zip(batch.sample_ids, before.tolist(), strict=True)]
        return replace(batch, sample_ids=ids)
    return batch.take(np.flatnonzero(before == 0).tolist())
