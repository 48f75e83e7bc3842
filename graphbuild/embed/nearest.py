"""The nearest stored texts of any text: opened once, then milliseconds a query.

Shape letters: M candidates, D vector width. Scores are inner products of the query and stored vectors, accumulated in
float64; the index holds the stored float16 values without loss, so they need no other file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from graphbuild.embed.encoder import load_encoder
from graphbuild.embed.encoder_files import EncoderSpec, find_encoder
from graphbuild.embed.text.table import TextPolicy
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError
from graphbuild.store import schemas
from graphbuild.store.files import damage
from graphbuild.store.manifest import Manifest

_PROBED_LISTS = 64
_MIN_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class NearText:
    """One of the nearest texts."""

    text_id: int
    similarity: float
    text: str


@dataclass(frozen=True, slots=True)
class NearTexts:
    """Nearest texts, best first."""

    query: str
    found: tuple[NearText, ...]

    def summary(self) -> str:
        """A line each: similarity, id, text."""
        return "\n".join(f"{near.similarity:7.4f}  {near.text_id:>9}  {near.text}" for near in self.found)

    def to_json(self) -> dict[str, Any]:
        """The same, for scripts."""
        return asdict(self)


def nearest_texts(graph_dir: Path, text: str, *, count: int = 10) -> NearTexts:
    """The stored texts nearest to one text; for several, open a `NearestTexts`. Arguments and errors are its own."""
    return NearestTexts.open(graph_dir).find(text, count=count)


class VectorIndex:
    """An open index.faiss. An inverted file is mapped: a query reads the lists that it probes, and nothing else."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            ArtifactError: If FAISS cannot read it.
        """
        import faiss

        try:
            self._index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        # FAISS says with this what is wrong with a file, whatever it is; a length that is wrong may ask for any memory.
        except (RuntimeError, MemoryError) as error:
            raise ArtifactError(f"{path}: FAISS cannot read it. Run `graphbuild embed` again: it rebuilds it.") from error
        if hasattr(self._index, "nprobe"):
            self._index.nprobe = _PROBED_LISTS

    def nearest(self, vector_D: NDArray[np.float16], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and similarities of the nearest stored vectors, best first, ties to the lower id; (count,) or fewer each."""
        wanted = min(max(_MIN_CANDIDATES, 4 * count), self._index.ntotal)
        _, found, vectors = self._index.search_and_reconstruct(vector_D.astype(np.float32)[None], wanted)
        held = found[0] >= 0
        ids_M, vectors_MD = found[0][held], vectors[0][held]
        scores_M = vectors_MD.astype(np.float64) @ vector_D.astype(np.float64)
        order = np.lexsort((ids_M, -scores_M))[:count]
        return ids_M[order], scores_M[order]


class NearestTexts:
    """A graph's index, open, and its encoder, loaded by the first query."""

    def __init__(self, graph_dir: Path, manifest: Manifest, index: VectorIndex, encoder: EncoderSpec) -> None:
        self._graph_dir, self._manifest, self._index, self._encoder = graph_dir, manifest, index, encoder
        self._policy = TextPolicy(tuple((old, new) for old, new in manifest.dataset.get("replacements", ())))

    @classmethod
    def open(cls, graph_dir: Path) -> NearestTexts:
        """Map the index and find the encoder that the graph was built with.

        The index is compared with its receipt by size; its digest, for which all of it would be read, is left to `verify`.

        Raises:
            ArtifactError: If the index is missing or cut short.
            ArtifactMismatch: If the encoder at hand is not the one that the graph was built with.
        """
        manifest = Manifest.load(graph_dir)
        receipt = manifest.require("index", graph_dir).files[schemas.INDEX_FILE]
        path = graph_dir / schemas.INDEX_FILE
        if problem := damage(graph_dir, receipt, digest=False):
            raise ArtifactError(f"{path} {problem}. Run `graphbuild embed` again: it rebuilds it.")
        return cls(graph_dir, manifest, VectorIndex(path), _stored_encoder(graph_dir, manifest))

    def find(self, text: str, *, count: int = 10) -> NearTexts:
        """The stored texts nearest to any text.

        Args:
            text: Cleaned as captions are; templates do not apply.
            count: Texts wanted; fewer come back where the graph, or the lists that are probed, have fewer.

        Raises:
            OptionError: If the text is blank.
            ArtifactError: If the index names a text that is not there.
        """
        query = self._policy.clean(text)
        if not query:
            raise OptionError("the text is blank. Give a few words.")
        encoder = load_encoder(self._encoder)
        (tokens,), _ = encoder.tokenize([query])
        ids, scores = self._index.nearest(encoder.encode_one(tokens).astype(np.float16), count)
        texts = self._texts_of(ids)
        if unknown := set(ids.tolist()) - texts.keys():
            raise ArtifactError(
                f"{self._graph_dir / schemas.INDEX_FILE} names text {min(unknown)}, which the graph does not have. "
                "Run `graphbuild embed` again: it rebuilds it."
            )
        found = zip(ids.tolist(), scores.tolist(), strict=True)
        return NearTexts(query, tuple(NearText(text_id, score, texts[text_id]) for text_id, score in found))

    def _texts_of(self, ids: NDArray[np.int64]) -> dict[int, str]:
        texts: dict[int, str] = {}
        for shard in self._manifest.ranges("text", schemas.TEXTS):
            held = ids[(ids >= shard.start) & (ids < shard.stop)]
            if len(held):
                table = pq.read_table(self._graph_dir / schemas.part_name(schemas.TEXTS, shard.index), columns=[schemas.TEXT])
                texts |= zip(held.tolist(), table[schemas.TEXT].take(held - shard.start).to_pylist(), strict=True)
        return texts


def _stored_encoder(graph_dir: Path, manifest: Manifest) -> EncoderSpec:
    recorded = manifest.encoder
    spec = find_encoder(recorded["name"]).with_precision(recorded["precision"])
    if spec.sha256 != recorded["sha256"]:
        raise ArtifactMismatch(
            f"{graph_dir}: built with {recorded['name']} of sha256 {recorded['sha256'][:12]}, but the encoder of this name has "
            f"{spec.sha256[:12]}: their vectors do not compare. Put the old one back, or run `graphbuild embed --overwrite`."
        )
    return spec
