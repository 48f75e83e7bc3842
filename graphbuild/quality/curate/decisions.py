"""What a curation decides of every text, and the file of samples that it writes.

Shape letters: N texts, S rows of the samples table.
The file has one row for each row of the samples table, kept or not, so that nothing is dropped without its reason:
sample_id, text_id, keep, reason, other_text_id, similarity. `graphbuild subset --keep` takes it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store import schemas
from graphbuild.store.atomic import atomic_path
from graphbuild.store.frames import SIMILARITY, Frames
from graphbuild.store.outputs import PARQUET_METADATA

REASON, OTHER = "reason", "other_text_id"
SAME_TEXT = "same text as an earlier sample"
_NONE = -1


@dataclass(slots=True)
class Decisions:
    """One decision a text; all arrays (N,)."""

    keep_N: npt.NDArray[np.bool_]
    reason_N: npt.NDArray[np.int8]
    """Index into `reasons`."""
    reasons: tuple[str, ...]
    other_N: npt.NDArray[np.int32]
    """The text that the reason is about; -1 for none."""
    similarity_N: npt.NDArray[np.float32]
    """Similarity to it; NaN for none."""
    one_sample_a_text: bool
    """Whether only the first sample of a text is kept."""


@dataclass(frozen=True, slots=True)
class Written:
    """Counts of the file that was written."""

    samples: int
    kept: int


def require_neighbors(tables: Frames) -> None:
    """Check that there are neighbours to decide by.

    Raises:
        ArtifactError: If the graph is a single text, or the knn stage is not done.
    """
    if tables.graph.k == 0:
        raise ArtifactError(f"{tables.path}: the graph is a single text without neighbours; there is nothing to curate.")


def write_decisions(tables: Frames, out: Path, decisions: Decisions) -> Written:
    """Write the decision on every sample as Parquet.

    Args:
        tables: The graph.
        out: A .parquet file that may be replaced.
        decisions: On every text.

    Raises:
        OptionError: If `out` does not end in .parquet.
    """
    if out.suffix != ".parquet":
        raise OptionError(f"--out {out}: the answer is a Parquet file. Let its name end in .parquet.")
    samples = tables.samples.select(schemas.SAMPLE_ID, schemas.TEXT_ID).collect(engine="streaming")
    texts_S = samples[schemas.TEXT_ID].to_numpy()
    keep_S = decisions.keep_N[texts_S]
    names = np.array(decisions.reasons, dtype=object)
    reason_S = names[decisions.reason_N[texts_S]]
    if decisions.one_sample_a_text:
        repeated_S = np.ones(len(texts_S), np.bool_)
        repeated_S[np.unique(texts_S, return_index=True)[1]] = False
        reason_S[keep_S & repeated_S] = SAME_TEXT
        keep_S &= ~repeated_S
    frame = samples.with_columns(
        pl.Series(schemas.KEEP, keep_S),
        pl.Series(REASON, reason_S.tolist(), dtype=pl.String),
        pl.Series(OTHER, decisions.other_N[texts_S]).replace(_NONE, None),
        pl.Series(SIMILARITY, decisions.similarity_N[texts_S]).fill_nan(None),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        frame.write_parquet(temporary, metadata=PARQUET_METADATA)
    return Written(samples=len(frame), kept=int(keep_S.sum()))
