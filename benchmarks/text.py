"""The text stage at full size: everything that `graphbuild embed` does before the encoder, on simulated captions.

The captions are written to Parquet first, a batch at a time; reading that file back is a part of what is measured.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.captions import read_captions
from benchmarks.memory import reset_peak, status
from graphbuild.datasets.base import BATCH_ROWS, SourceOptions
from graphbuild.datasets.registry import get_source
from graphbuild.embed.encoder import load_encoder
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.text.append import Segment
from graphbuild.embed.text.stage import TextWork, write_texts
from graphbuild.embed.text.table import Prompts, TextPolicy
from graphbuild.store import schemas
from graphbuild.system.options import DEFAULT_ENCODER

_REPEATED = 0.15
"""Share of rows that repeat a caption of a small set, as alt texts do."""


def run(rows: int, folder: Path | None = None) -> str:
    """Measure, in one line: texts found, seconds, rows a second, peak memory, and what of it was there before."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source = Path(name) / "captions.parquet"
        _simulate(source, rows)
        encoder = load_encoder(find_encoder(DEFAULT_ENCODER))
        encoder.tokenize(["the tokenizer starts at its first call"])
        options = SourceOptions(sources=(str(source),), caption_column="caption", id_column="url")
        opened = get_source("parquet").open(options, Path(name))
        work = TextWork(
            policy=TextPolicy(),
            prompts=Prompts(),
            multi_caption=False,
            shard_size=schemas.SHARD_SIZE,
            segments=(Segment((), "benchmark"),),
        )
        before = reset_peak()
        started = time.perf_counter()
        outcome = write_texts(Path(name) / "graph", opened, encoder, work, lambda _: None)
        seconds = time.perf_counter() - started
        written = sum(receipt.bytes for receipt in outcome.receipts.values())
        shutil.rmtree(Path(name) / "graph")
    return (
        f"{rows:,} simulated captions, ids like URLs, {outcome.counts['texts']:,} texts: {seconds:,.0f} s, "
        f"{rows / seconds:,.0f} rows/s, {written / 1e9:.2f} GB written; peak resident memory "
        f"{status('VmHWM') / 1e9:.2f} GB, of which {before / 1e9:.2f} GB before the stage began (the loaded encoder)"
    )


def _simulate(path: Path, rows: int) -> None:
    """Halves of real captions, put together anew: lengths and words as in captions, nearly all different."""
    captions, _ = read_captions(40_000)
    split = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in (caption.split() for caption in captions)]
    heads, tails = [" ".join(head) for head, _ in split], [" ".join(tail) for _, tail in split]
    with pq.ParquetWriter(path, pa.schema([("url", pa.string()), ("caption", pa.string())]), compression="zstd") as writer:
        for first, one, two in _draws(rows, len(captions)):
            made = [f"{heads[a]} {tails[b]}" for a, b in zip(one.tolist(), two.tolist(), strict=True)]
            urls = [f"https://images.example.org/{row % 997:03d}/{row:09d}.jpg" for row in range(first, first + len(made))]
            writer.write_table(pa.table({"url": urls, "caption": made}))


def _draws(rows: int, count: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for first in range(0, rows, 8 * BATCH_ROWS):
        size = min(8 * BATCH_ROWS, rows - first)
        one, two = rng.integers(count, size=(2, size))
        yield first, one, np.where(rng.random(size) < _REPEATED, one, two)
