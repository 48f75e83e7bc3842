"""The stages of one fused graph: which samples have which texts, their strings and their vectors or neighbours.

Shape letters: G graphs, S samples, N texts of the fused graph, M texts of an origin, D vector width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from graphbuild.embed.graph_encoder import FUSED
from graphbuild.embed.index import build_index
from graphbuild.errors import SourceError
from graphbuild.exchange.rescored import Rescoring, Rule, input_digests
from graphbuild.exchange.searched import SearchRequest
from graphbuild.store import schemas
from graphbuild.store.arrays import by_first_appearance
from graphbuild.store.counts import count_captions, manifest_counts, write_counts
from graphbuild.store.digests import digest_json
from graphbuild.store.embeddings import embeddings_table, load_embeddings
from graphbuild.store.files import ShardRange, shard_ranges
from graphbuild.store.images import recorded_for_copy
from graphbuild.store.lookup import SampleLookup, build_lookup
from graphbuild.store.manifest import Manifest
from graphbuild.store.stage import Made, run_stage
from graphbuild.store.tables import ensure_shard, read_parquet, read_texts, with_text_ids

_AS_BEFORE = ("id_column", "keep_columns", "on_duplicate", "skip_broken")
"""What the manifest says of the samples' ids, which are those of the first graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FuseConfig:
    """How graphs are fused."""

    weights: tuple[float, ...] = ()
    """Of the mean, one a graph, of any sum; none: all alike."""
    rule: Rule = "mean"
    """How the similarities of the graphs become one."""
    k: int | Literal["auto", "all"] | None = None
    """Where neighbours are found here, how many, as of `KnnConfig`; None: as many as the graph with the fewest has."""
    overwrite: bool = False
    """Replace a graph that was fused otherwise."""


class Fusion:
    """One fused graph: which samples have which texts, and the stages."""

    def __init__(
        self,
        graphs: list[Path],
        origins: list[Manifest],
        weights: tuple[float, ...],
        out: Path,
        manifest: Manifest,
        config: FuseConfig,
    ) -> None:
        self._graphs, self._origins, self._weights = graphs, origins, weights
        self._out, self._manifest, self._asked, self._overwrite = out, manifest, config, config.overwrite
        self._inputs = input_digests(self._origins, "text", "embed")
        self._config = {"method": FUSED, "weights": list(weights)}
        if config.rule != "mean":
            self._config["rule"] = config.rule
        texts_SG = self._match()
        unique_NG, first_N, text_S = np.unique(texts_SG, axis=0, return_index=True, return_inverse=True)
        order_N, self._text_S = by_first_appearance(first_N, text_S)
        self._texts_NG = unique_NG[order_N]

    def _match(self) -> NDArray[np.int32]:
        """The text of every sample of the first graph in each of them; (S, G)."""
        tables = [table.select([schemas.SAMPLE_ID]) for _, table in self._samples()]
        ids = pa.concat_tables(tables)[schemas.SAMPLE_ID]
        columns = []
        for graph, origin in zip(self._graphs, self._origins, strict=True):
            found = SampleLookup(graph, origin).find(ids)
            counts_S, held = np.diff(found.offsets), origin.counts["samples"]
            matched = int((counts_S > 0).sum())
            if (counts_S > 1).any() or (matched == len(ids) and sum(map(len, origin.ranges("text", schemas.SAMPLES))) > held):
                raise SourceError(f"{graph}: some samples have several texts. Embed one caption a sample, and fuse that graph.")
            if matched < len(ids) or held > matched:
                raise SourceError(
                    f"{graph}: has {matched:,} of the {len(ids):,} samples of {self._graphs[0]}, and {held - matched:,} others. "
                    "Fuse graphs of the same samples; `graphbuild subset` makes them."
                )
            columns.append(found.text_ids.astype(np.int32))
        return np.stack(columns, axis=1)

    def _samples(self) -> Iterator[tuple[ShardRange, pa.Table]]:
        for shard in self._origins[0].ranges("text", schemas.SAMPLES):
            yield shard, read_parquet(self._graphs[0] / schemas.part_name(schemas.SAMPLES, shard.index))

    def run(self, *, by_vectors: bool) -> bool:
        """Do what is missing; returns whether anything was."""
        made = [self._embed, self._index] if by_vectors else [self._search]
        return any([self._text(by_vectors=by_vectors), build_lookup(self._out, self._manifest), *(one() for one in made)])

    def _search(self) -> bool:
        least = min(origin.stages["knn"].config["k"] for origin in self._origins)
        request = SearchRequest.read(
            self._out,
            self._manifest,
            {**self._config, "rule": self._asked.rule},
            input_digests(self._origins, "text", "embed", "knn"),
            lambda k, _key: Rescoring(self._graphs, self._texts_NG, self._asked.rule, self._weights, k),
            k=least if self._asked.k is None else self._asked.k,
            sketch_dim=schemas.DEFAULT_SKETCH_DIM,
        )
        return request.run(overwrite=self._overwrite)

    def _index(self) -> bool:
        return build_index(self._out, self._manifest, overwrite=True)

    def _text(self, *, by_vectors: bool) -> bool:
        work = partial(self._write_texts, by_vectors=by_vectors)
        return run_stage(self._out, self._manifest, "text", self._config, self._inputs, work, overwrite=self._overwrite)

    def _write_texts(self, key: str, *, by_vectors: bool) -> Made:
        receipts = []
        for shard, table in self._samples():
            table = with_text_ids(table, self._text_S[shard.start : shard.stop])
            receipts.append(ensure_shard(self._out, schemas.SAMPLES, shard.index, table, key=key))
        shards = self._shards()
        for shard in shards:
            ids = pa.array(np.arange(shard.start, shard.stop, dtype=np.int32))
            strings, hashes = self._strings(shard), self._hashes(shard)
            table = pa.table([ids, pa.array(strings, pa.string()), pa.array(hashes)], schema=schemas.TEXTS_SCHEMA)
            receipts.append(ensure_shard(self._out, schemas.TEXTS, shard.index, table, key=key))
        counts_N = count_captions([self._text_S], len(self._texts_NG))
        receipts += write_counts(self._out, map(len, shards), counts_N, counts_N, key=key)
        samples = len(self._text_S)
        self._manifest.dataset, self._manifest.encoder = self._describe_dataset(), self._describe_vectors() if by_vectors else {}
        self._manifest.shard_size = self._origins[0].shard_size
        self._manifest.counts = manifest_counts(samples=samples, captions=samples, texts=len(self._texts_NG))
        return Made(receipts)

    def _shards(self) -> list[ShardRange]:
        return shard_ranges(len(self._texts_NG), self._origins[0].shard_size)

    def _strings(self, shard: ShardRange) -> list[str]:
        """The texts of the first graph; one that stands for several of the others comes several times."""
        ids_n = self._texts_NG[shard.start : shard.stop, 0].astype(np.int64)
        held = read_texts(self._graphs[0], self._origins[0].files("text", schemas.TEXTS), np.unique(ids_n))
        return [held[number] for number in ids_n.tolist()]

    def _hashes(self, shard: ShardRange) -> NDArray[np.uint64]:
        """Of the ids in all graphs, so that two texts of one string differ."""
        rows = self._texts_NG[shard.start : shard.stop]
        return np.fromiter((xxhash.xxh3_64_intdigest(row.tobytes()) for row in rows), np.uint64, len(rows))

    def _embed(self) -> bool:
        inputs = {**self._manifest.text_digests(), **self._inputs}
        return run_stage(
            self._out, self._manifest, "embed", self._config, inputs, self._write_embeddings, overwrite=self._overwrite
        )

    def _write_embeddings(self, key: str) -> Made:
        vectors = [load_embeddings(graph) for graph in self._graphs]
        receipts = []
        for shard in self._shards():
            rows_nG = self._texts_NG[shard.start : shard.stop]
            parts = [
                np.sqrt(weight) * held_MD[rows_nG[:, number]].astype(np.float64)
                for number, (held_MD, weight) in enumerate(zip(vectors, self._weights, strict=True))
            ]
            texts = read_parquet(self._out / schemas.part_name(schemas.TEXTS, shard.index))
            table = embeddings_table(texts, np.concatenate(parts, axis=1).astype(np.float16))
            receipts.append(ensure_shard(self._out, schemas.EMBEDDINGS, shard.index, table, key=key))
        return Made(receipts)

    def _dim(self) -> int:
        return sum(int(origin.encoder["dim"]) for origin in self._origins)

    def _describe_dataset(self) -> dict[str, Any]:
        there = recorded_for_copy(self._origins[0].dataset, self._graphs[0])
        held = {key: value for key in _AS_BEFORE if (value := self._origins[0].dataset.get(key)) is not None}
        return {**held, "name": FUSED, "sources": [str(graph.absolute()) for graph in self._graphs], "images": there}

    def _describe_vectors(self) -> dict[str, Any]:
        """What stands in the place of an encoder."""
        return {
            "name": FUSED,
            "revision": None,
            "sha256": digest_json(self._inputs),
            "dim": self._dim(),
            "max_tokens": 0,
            "precision": "float16",
            "weights": list(self._weights),
            "encoders": [origin.encoder for origin in self._origins],
        }
