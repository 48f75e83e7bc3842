"""Texts, samples and counts of a graph checked against one another: ids, hashes, lengths of vectors, and how often texts occur."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.store import schemas
from graphbuild.store.arrays import Int32
from graphbuild.store.counts import count_samples
from graphbuild.store.embeddings import embedding_blocks, require_aligned, require_unit_length
from graphbuild.store.manifest import Manifest
from graphbuild.store.tables import read_parquet
from graphbuild.store.verified import repair_by

EMBED_REMEDY = repair_by("embed")


def check_texts(graph_dir: Path, manifest: Manifest) -> int:
    """Check that texts and their embeddings hold the same ids, 0 to N-1, and the same hashes; returns N.

    Raises:
        ArtifactError: If a file cannot be read, or a vector has another length than 1.
        ArtifactMismatch: If they do not belong together.
    """
    listed = check_text_ids(graph_dir, manifest)
    start = 0
    for receipt in manifest.files("embed", schemas.EMBEDDINGS):
        require_aligned(graph_dir, receipt.path)
        start += receipt.rows
    for block in embedding_blocks(graph_dir, check=False):
        require_unit_length(graph_dir / schemas.EMBEDDINGS, block.vectors_nD, start=block.start)
    said = manifest.counts.get("texts", start)
    if not start == listed == said:
        raise ArtifactMismatch(
            f"{graph_dir}: {start:,} embeddings, {listed:,} texts, and the manifest says {said:,}. {EMBED_REMEDY}"
        )
    return start


def check_text_ids(graph_dir: Path, manifest: Manifest) -> int:
    """Check that texts hold the ids 0 to N-1; returns N.

    Raises:
        ArtifactError: If they do not.
    """
    start = 0
    for receipt in manifest.files("text", schemas.TEXTS):
        path = graph_dir / receipt.path
        _require_ids(path, read_parquet(path, [schemas.TEXT_ID])[schemas.TEXT_ID].to_numpy(), start, receipt.rows)
        start += receipt.rows
    return start


def check_samples(graph_dir: Path, manifest: Manifest, texts: int) -> int:
    """Check that samples map onto known texts, as often as the counts say; returns the number of sample rows.

    Raises:
        ArtifactError: If a text is not there.
        ArtifactMismatch: If the counts are others.
    """
    captions_N = np.zeros(texts, np.int32)
    rows = 0
    for receipt in manifest.files("text", schemas.SAMPLES):
        path = graph_dir / receipt.path
        ids = read_parquet(path, [schemas.TEXT_ID])[schemas.TEXT_ID].to_numpy()
        if len(outside := np.flatnonzero((ids < 0) | (ids >= texts))):
            raise ArtifactError(f"{path}: row {outside[0]} has text_id {ids[outside[0]]}, but there are {texts:,}. {EMBED_REMEDY}")
        captions_N += np.bincount(ids, minlength=texts).astype(np.int32)
        rows += len(ids)
    samples_N = captions_N
    if manifest.counts.get("samples") != rows:
        samples_N = count_samples((graph_dir / receipt.path for receipt in manifest.files("text", schemas.SAMPLES)), texts)
    _check_counts(graph_dir, manifest, samples_N, captions_N)
    return rows


def _check_counts(graph_dir: Path, manifest: Manifest, samples_N: Int32, captions_N: Int32) -> None:
    """Compare the stored counts with those of the samples table, counted anew."""
    start = 0
    for receipt in manifest.files("text", schemas.COUNTS):
        path = graph_dir / receipt.path
        table = read_parquet(path)
        _require_ids(path, table[schemas.TEXT_ID].to_numpy(), start, receipt.rows)
        old = schemas.CAPTION_COUNT not in table.column_names
        expected = (
            {schemas.SAMPLE_COUNT: captions_N} if old else {schemas.SAMPLE_COUNT: samples_N, schemas.CAPTION_COUNT: captions_N}
        )
        for name, right_N in expected.items():
            stored, right = table[name].to_numpy(), right_N[start : start + receipt.rows]
            if len(differ := np.flatnonzero(stored != right)):
                first = int(differ[0])
                raise ArtifactMismatch(
                    f"{path}: row {first} has {name} {stored[first]:,} of text_id {start + first}, but the samples table "
                    f"gives {right[first]:,}. {EMBED_REMEDY}"
                )
        start += receipt.rows
    if start != len(captions_N):
        raise ArtifactMismatch(f"{graph_dir}: sample counts of {start:,} texts, but there are {len(captions_N):,}. {EMBED_REMEDY}")


def _require_ids(path: Path, ids_n: NDArray[np.int32], start: int, rows: int) -> None:
    if len(ids_n) != rows:
        raise ArtifactError(f"{path}: {len(ids_n):,} rows, but the manifest says {rows:,}. {EMBED_REMEDY}")
    wrong = np.flatnonzero(ids_n != np.arange(start, start + rows))
    if len(wrong):
        row = int(wrong[0])
        raise ArtifactError(f"{path}: row {row} has text_id {ids_n[row]}, not {start + row}. {EMBED_REMEDY}")
