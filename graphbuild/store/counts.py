"""How many samples and how many captions each text has: the `counts` folder.

A picture that has one caption five times is one sample and five captions of that text.
Shape letters: N texts, C captions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.store import schemas
from graphbuild.store.arrays import Int32
from graphbuild.store.files import Receipt, finished, write_parquet
from graphbuild.store.tables import read_parquet


def manifest_counts(*, samples: int, captions: int, texts: int) -> dict[str, int]:
    """Return the counts that the manifest of every graph of captions begins with."""
    return {"samples": samples, "captions": captions, "texts": texts, "duplicate_captions": captions - texts}


def count_captions(parts: Iterable[NDArray[np.int32]], texts: int) -> Int32:
    """Return the number of captions of each of so many texts, (N,), from the text id of every caption, part by part."""
    counts_N = np.zeros(texts, np.int32)
    for text_ids in parts:
        np.add.at(counts_N, text_ids, 1)
    return counts_N


def count_samples(samples: Iterable[Path], texts: int) -> Int32:
    """Return the number of different samples of each text, (N,), from the shards of the samples table.

    Takes some 30 bytes a caption: only worth it where a sample has several captions.
    """
    shards = [read_parquet(path, [schemas.SAMPLE_HASH, schemas.TEXT_ID]) for path in samples]
    return distinct_samples(pa.concat_tables(shards), texts) if shards else np.zeros(texts, np.int32)


def distinct_samples(captions: pa.Table, texts: int) -> Int32:
    """Return the number of different sample hashes of each text id, (N,), in a table of one row a caption."""
    hashes_C, texts_C = captions[schemas.SAMPLE_HASH].to_numpy(), captions[schemas.TEXT_ID].to_numpy()
    order = np.lexsort((hashes_C, texts_C))
    hashes_C, texts_C = hashes_C[order], texts_C[order]
    first_C = np.ones(len(order), np.bool_)
    first_C[1:] = (hashes_C[1:] != hashes_C[:-1]) | (texts_C[1:] != texts_C[:-1])
    return np.bincount(texts_C[first_C], minlength=texts).astype(np.int32)


def write_counts(graph_dir: Path, rows: Iterable[int], samples_N: Int32, captions_N: Int32, *, key: str) -> list[Receipt]:
    """Write the shards of counts that are missing, or made before captions were counted; returns the receipts of all.

    Args:
        graph_dir: Where they go.
        rows: How many texts each shard has, in order.
        samples_N: Different samples of each text.
        captions_N: Captions of each text.
        key: Of the stage that writes them.
    """
    receipts: list[Receipt] = []
    start = 0
    for count in rows:
        part = slice(start, start + count)
        columns = [np.arange(start, start + count, dtype=np.int32), samples_N[part], captions_N[part]]
        name = schemas.part_name(schemas.COUNTS, len(receipts))
        receipt = finished(graph_dir, name, key=key)
        if receipt is None or schemas.CAPTION_COUNT not in receipt.columns:
            receipt = write_parquet(graph_dir, name, pa.table(columns, schema=schemas.COUNTS_SCHEMA), key=key)
        receipts.append(receipt)
        start += count
    return receipts
