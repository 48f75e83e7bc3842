"""What the knn stage checks before it searches: vectors with a direction, and sample counts that fit them.

Shape letters: N texts, n texts of a block, D vector width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError
from graphbuild.store import schemas
from graphbuild.store.files import require_intact
from graphbuild.store.manifest import Manifest

_LENGTH_TOLERANCE = 0.01
_CHECK_BLOCK = 8192


def require_unit_vectors(vectors_ND: NDArray[np.float16], graph_dir: Path) -> None:
    """Refuse what has no direction.

    Raises:
        ArtifactError: Naming the first text whose vector is zero, not finite, or not of length 1.
    """
    for start in range(0, len(vectors_ND), _CHECK_BLOCK):
        block_nD = vectors_ND[start : start + _CHECK_BLOCK].astype(np.float32)
        lengths_n = np.sqrt(np.einsum("nd,nd->n", block_nD, block_nD))
        bad = np.flatnonzero(~(np.abs(lengths_n - 1) <= _LENGTH_TOLERANCE))
        if len(bad):
            length = float(lengths_n[bad[0]])
            what = "is zero" if length == 0 else f"has length {length:.4g}, not 1" if np.isfinite(length) else "is not finite"
            raise ArtifactError(
                f"{graph_dir}: the embedding of text_id {start + int(bad[0])} {what}, so it has no neighbours "
                f"({len(bad):,} such in texts {start:,} to {start + len(block_nD) - 1:,}). "
                "Look at it with `graphbuild inspect --sql`, and embed again without it or with another encoder."
            )


def read_sample_counts(graph_dir: Path, manifest: Manifest, count: int) -> NDArray[np.int32]:
    """How many samples map onto each text; shape (N,).

    Raises:
        ArtifactError: If a counts file is missing or damaged, or the counts are not those of `count` texts.
    """
    mine = {receipt.path: receipt for receipt in manifest.require("text", graph_dir).in_folder(schemas.COUNTS)}
    remedy = "Run `graphbuild embed` again with the same options."
    require_intact(graph_dir, mine, remedy=remedy)
    parts = [pq.read_table(graph_dir / name, columns=[schemas.SAMPLE_COUNT])[schemas.SAMPLE_COUNT].to_numpy() for name in mine]
    counts = np.concatenate(parts) if parts else np.empty(0, np.int32)
    if len(counts) != count:
        raise ArtifactError(f"{graph_dir}: sample counts of {len(counts):,} texts, but {count:,} embeddings. {remedy}")
    return counts
