"""What the knn stage checks before it searches: sample counts that fit the vectors.

Shape letters: N texts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError
from graphbuild.store import schemas
from graphbuild.store.files import require_intact
from graphbuild.store.manifest import Manifest
from graphbuild.store.tables import read_parquet


def read_sample_counts(graph_dir: Path, manifest: Manifest, count: int) -> NDArray[np.int32]:
    """Return how many samples map onto each text; shape (N,).

    Raises:
        ArtifactError: If a counts file is missing or damaged, or the counts are not those of `count` texts.
    """
    mine = {receipt.path: receipt for receipt in manifest.require("text", graph_dir).in_folder(schemas.COUNTS)}
    remedy = "Run `graphbuild embed` again with the same options."
    require_intact(graph_dir, mine, remedy=remedy)
    parts = [read_parquet(graph_dir / name, [schemas.SAMPLE_COUNT])[schemas.SAMPLE_COUNT].to_numpy() for name in mine]
    counts = np.concatenate(parts) if parts else np.empty(0, np.int32)
    if len(counts) != count:
        raise ArtifactError(f"{graph_dir}: sample counts of {len(counts):,} texts, but {count:,} embeddings. {remedy}")
    return counts
