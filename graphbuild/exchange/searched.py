"""The knn stage of graphs without vectors, whose similarity can be told for any pair: every pair is looked at.

Shape letters: N texts, K neighbours kept, M landmarks, R sketch width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphbuild.knn.blockwise import Landmarks, Similarity, nearest
from graphbuild.knn.engines.base import Advance, Neighbors
from graphbuild.knn.output import ShardWriter, no_neighbors
from graphbuild.knn.search import pair_progress
from graphbuild.knn.sketch import encode_within, landmark_basis
from graphbuild.knn.stage import stored_k
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, finished
from graphbuild.store.manifest import Manifest
from graphbuild.store.sketches import estimate
from graphbuild.store.stage import Made, run_stage

_PROBES = 512
"""Texts whose sketches are compared with what they stand for."""


class Finder(Protocol):
    """Finds neighbours by a similarity."""

    @property
    def similarity(self) -> Similarity:
        """Of any two texts."""

    def find(self, shard: ShardRange, k: int, advance: Advance) -> tuple[Neighbors, NDArray[np.float64]]:
        """Find the k neighbours of each text of a shard, and how similar others are at most, (n,); facts say what is not proven."""


class Scan:
    """Looks at every pair."""

    def __init__(self, similarity: Similarity, count: int) -> None:
        self.similarity, self._count = similarity, count

    def find(self, shard: ShardRange, k: int, advance: Advance) -> tuple[Neighbors, NDArray[np.float64]]:
        """Find the k most similar texts to each text of a shard, and the similarity of the last of them; (n,)."""
        return nearest(self.similarity, np.arange(shard.start, shard.stop), self._count, k, advance)


def search_similarity(
    graph_dir: Path,
    manifest: Manifest,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    finder: Callable[[int], Finder],
    *,
    k: int | str,
    sketch_dim: int,
    overwrite: bool,
) -> bool:
    """Search for the neighbours of all texts, and enter the knn stage; shards that are finished stay.

    Args:
        graph_dir: A graph whose text stage is done.
        manifest: Its manifest; changed and saved.
        config: What decides the similarity.
        inputs: Digests of what it is made from.
        finder: Makes what finds so many neighbours; called only if a shard is missing.
        k: Neighbours kept, as of `KnnConfig`.
        sketch_dim: R; 0 leaves the sketch out.
        overwrite: Whether a stage of another similarity is replaced.

    Returns:
        Whether there was anything to do.
    """
    shards = manifest.ranges("text", schemas.TEXTS)
    count = shards[-1].stop
    options = {**config, "k": stored_k(k, count), "sketch_dim": sketch_dim, "shard_size": manifest.shard_size}

    def work(key: str) -> Made:
        names = {shard: schemas.part_name(schemas.KNN, shard.index) for shard in shards}
        done: dict[ShardRange, Receipt | None] = {shard: finished(graph_dir, name, key=key) for shard, name in names.items()}
        missing = [shard for shard, receipt in done.items() if receipt is None]
        if missing:
            search = _Search(graph_dir, finder(options["k"]), count, options["k"], sketch_dim, key)
            done |= dict(zip(missing, search.run(missing), strict=True))
        receipts = [receipt for receipt in done.values() if receipt is not None]
        return Made(receipts, _facts(receipts, k, options["k"], count, len(shards) - len(missing)))

    return run_stage(graph_dir, manifest, "knn", options, inputs, work, overwrite=overwrite)


class _Search:
    """The search for what is missing."""

    def __init__(self, graph_dir: Path, finder: Finder, count: int, k: int, sketch_dim: int, key: str) -> None:
        self._finder, self._similarity, self._count, self._k = finder, finder.similarity, count, k
        self._landmarks = Landmarks(finder.similarity, count)
        basis_MR = landmark_basis(self._landmarks.own(), sketch_dim) if sketch_dim else None
        facts = {"sketch_rms_error": self._sketch_error(basis_MR)} if basis_MR is not None else {}
        self._writer = ShardWriter(graph_dir, k, basis_MR, key, facts=facts, encode=encode_within)

    def run(self, missing: Sequence[ShardRange]) -> Iterator[Receipt]:
        """Receipts of the shards, which are written."""
        with pair_progress(sum(map(len, missing)) * self._count) as advance:
            for shard in missing:
                found, last_n = no_neighbors(shard), np.ones(len(shard))
                if self._k:
                    found, last_n = self._finder.find(shard, self._k, advance)
                yield self._write(shard, found, last_n)

    def _write(self, shard: ShardRange, found: Neighbors, last_n: NDArray[np.float64]) -> Receipt:
        least = self._similarity.least
        absent = {
            "absent_at_least": least,
            "absent_at_most": float(last_n.max(initial=least)),
            "absent_known_rows": int((last_n <= least).sum()),
        }
        wanted = np.arange(shard.start, shard.stop if self._writer.basis_DR is not None else shard.start)
        writer = replace(self._writer, facts={**self._writer.facts, **absent})
        return writer.write(shard, self._landmarks.features(wanted), found, "float64")

    def _sketch_error(self, basis_MR: NDArray[np.float64]) -> float:
        """Root of the mean squared error over pairs of some texts."""
        ids_s = np.random.default_rng(1).permutation(self._count)[:_PROBES]
        codes_sR, scales_s = encode_within(self._landmarks.features(ids_s), basis_MR)
        errors_ss = estimate(codes_sR, scales_s, codes_sR, scales_s) - self._similarity.tile(ids_s, ids_s)
        return float(np.sqrt(np.square(errors_ss[~np.eye(len(ids_s), dtype=np.bool_)]).mean())) if len(ids_s) > 1 else 0.0


def _facts(receipts: Sequence[Receipt], k_asked: int | str, k: int, count: int, reused: int) -> dict[str, Any]:
    held = [receipt.facts for receipt in receipts]
    return {
        "k_asked": k_asked,
        "k": k,
        "texts": count,
        "complete": k == count - 1,
        "recomputed_rows": sum(one["recomputed_rows"] for one in held),
        "certified_rows": sum(receipt.facts.get("certified_rows", receipt.rows) for receipt in receipts),
        "precision": "float64",
        "reused_shards": reused,
        "absent_at_least": held[0]["absent_at_least"],
        "absent_at_most": max(one["absent_at_most"] for one in held),
        "absent_known_rows": sum(one["absent_known_rows"] for one in held),
        **({"sketch_rms_error": held[0]["sketch_rms_error"]} if "sketch_rms_error" in held[0] else {}),
    }
