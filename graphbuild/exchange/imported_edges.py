"""Edges from a file: checked, sorted and cut to K a text.

Shape letters: N texts, E edges, K neighbours kept, n texts of a shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from graphbuild.errors import SourceError
from graphbuild.exchange.tables import ID, NAMED, read_frame, require_known
from graphbuild.store import schemas
from graphbuild.store.files import ShardRange
from graphbuild.store.frames import DST, SIMILARITY, SRC

if TYPE_CHECKING:
    import polars as pl


class Edges:
    """The edges, checked, sorted and cut to K a text."""

    def __init__(self, path: Path, texts: pl.DataFrame, *, k: int | None, symmetric: bool) -> None:
        """Read a file of edges.

        Args:
            path: Columns src, dst and similarity.
            texts: Columns id and text_id.
            k: Neighbours kept; None: as many as the text with the fewest edges has.
            symmetric: Whether every edge counts both ways.

        Raises:
            SourceError: If the file cannot be read, an id is unknown, a similarity is not in [-1, 1], or a text has fewer
                edges than K.
        """
        self._path, self._texts = path, texts
        frame = self._numbered(read_frame(path, (SRC, DST, SIMILARITY)))
        self.facts: dict[str, Any] = {"edges_read": len(frame)}
        frame = self._clean(frame, symmetric=symmetric)
        degrees = np.bincount(frame[SRC].to_numpy(), minlength=len(texts))
        self.k = self._choose_k(degrees, k)
        ranks = np.arange(len(frame)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
        kept = ranks < self.k
        self.facts["cut_edges"] = int((~kept).sum())
        self._ids = frame[DST].to_numpy()[kept].reshape(len(texts), self.k)
        self._values = frame[SIMILARITY].to_numpy()[kept].astype(np.float16).reshape(len(texts), self.k)

    def _numbered(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Ids as text ids; similarities as stored, in float16."""
        import polars as pl

        values = frame[SIMILARITY].cast(pl.Float64, strict=False)
        bad = ~(values.is_between(-1, 1)).fill_null(False) | values.is_nan().fill_null(True)
        if bad.any():
            shown = ", ".join(str(value) for value in frame[SIMILARITY].filter(bad).head(NAMED).to_list())
            raise SourceError(f"{self._path}: {bad.sum():,} similarities are not numbers from -1 to 1 ({shown}). Rescale them.")
        columns = []
        for name in (SRC, DST):
            named = frame[name].cast(pl.String)
            lookup = self._texts.select(pl.col(ID).alias(name), schemas.TEXT_ID)
            found = named.to_frame(name).join(lookup, on=name, how="left", maintain_order="left")[schemas.TEXT_ID]
            require_known(self._path, named, found)
            columns.append(found.alias(name))
        return pl.DataFrame([*columns, values.cast(pl.Float16).cast(pl.Float32).alias(SIMILARITY)])

    def _clean(self, frame: pl.DataFrame, *, symmetric: bool) -> pl.DataFrame:
        """Without edges of a text with itself and repeated ones; the same similarity both ways; in the order of rows."""
        import polars as pl

        proper = frame.filter(pl.col(SRC) != pl.col(DST))
        self.facts["self_edges"] = len(frame) - len(proper)
        once = proper.group_by(SRC, DST).agg(pl.col(SIMILARITY).max(), pl.col(SIMILARITY).n_unique().alias("values"), pl.len())
        self.facts["repeated_edges"] = int((once["len"] - 1).sum())
        back = once.select(pl.col(DST).alias(SRC), pl.col(SRC).alias(DST), pl.col(SIMILARITY).alias("back"))
        both = once.join(back, on=[SRC, DST], how="full" if symmetric else "left", coalesce=True)
        differs = (pl.col("back") != pl.col(SIMILARITY)) | (pl.col("values") > 1)
        unequal = both.filter(differs.fill_null(False)).select(pl.min_horizontal(SRC, DST), pl.max_horizontal(SRC, DST).alias("_"))
        self.facts["unequal_pairs"] = len(unequal.unique())
        larger = both.select(SRC, DST, pl.max_horizontal(SIMILARITY, "back").alias(SIMILARITY))
        return larger.sort([SRC, SIMILARITY, DST], descending=[False, True, False])

    def _choose_k(self, degrees_N: np.ndarray[Any, Any], requested: int | None) -> int:
        fewest = int(degrees_N.min())
        k = fewest if requested is None else min(requested, len(degrees_N) - 1)
        if k == 0 or k > fewest:
            short = np.flatnonzero(degrees_N < max(k, 1))
            named = ", ".join(repr(self._texts[ID][int(i)]) for i in short[:NAMED])
            spread = ", ".join(f"{q:.0%} {np.quantile(degrees_N, q):,.0f}" for q in (0, 0.05, 0.5, 0.95, 1))
            raise SourceError(
                f"{self._path}: {len(short):,} of {len(degrees_N):,} texts have fewer than {max(k, 1):,} edges (ids {named}; edges "
                f"a text, quantiles: {spread}). Rows are never padded: give them edges, leave those texts out, choose a "
                "smaller --k, or count edges both ways with --symmetric."
            )
        return k

    def batch(self, shard: ShardRange) -> pa.RecordBatch:
        """Return one neighbour shard; n rows."""
        schema = schemas.knn_schema(self.k, 0)
        rows = slice(shard.start, shard.stop)
        lists = [
            pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(values[rows]).reshape(-1)), type=schema.field(name).type
            )
            for name, values in ((schemas.NEIGHBOR_IDS, self._ids), (schemas.SIMILARITIES, self._values))
        ]
        ids = pa.array(np.arange(shard.start, shard.stop, dtype=np.int32))
        return pa.RecordBatch.from_arrays([ids, *lists], schema=schema)
