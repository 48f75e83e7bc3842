"""Captions for the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

CAPTIONS = Path(__file__).resolve().parents[2] / "shared/data/captions/captions.parquet"
_WORDS = "a the dog man woman child runs jumps over near red blue small large house street water beach"


def read_captions(count: int) -> tuple[list[str], str]:
    """Return real captions where they are at hand, else made-up ones of like lengths; and which they are."""
    if CAPTIONS.is_file():
        unique = pq.read_table(CAPTIONS, columns=["text"])["text"].unique().to_pylist()
        return unique[:: max(1, len(unique) // count)][:count], "real captions"
    rng = np.random.default_rng(0)
    words = _WORDS.split()
    return [" ".join(rng.choice(words, rng.integers(6, 20))) for _ in range(count)], "made-up captions"
