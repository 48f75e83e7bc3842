"""The nearest stored texts of any text: opened once, then milliseconds a query.

Shape letters: M candidates, D vector width. A text that the graph holds is answered by its stored neighbours, without the
encoder; for any other, scores are inner products of its vector and stored ones, accumulated in float64: the index holds the
stored float16 values without loss, so they need no other file. FAISS and torch are loaded by the first such query.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.datasets.formats.vector_files import read_vector
from graphbuild.datasets.formats.vectors import NAME as VECTORS
from graphbuild.embed.encoder_files import EncoderSpec
from graphbuild.embed.graph_encoder import graph_encoder, require_same
from graphbuild.embed.text.table import TextPolicy
from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store import schemas
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.store.tables import find_text, read_texts
from graphbuild.store.verified import EMBED_AGAIN, require_verified
from graphbuild.system.answers import Answer
from graphbuild.system.decoding import as_text
from graphbuild.system.progress import progress

_PROBED_LISTS = 64
_MIN_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class NearText:
    """One of the nearest texts."""

    text_id: int
    similarity: float
    text: str


@dataclass(frozen=True, slots=True)
class NearTexts(Answer):
    """Nearest texts, best first."""

    query: str
    found: tuple[NearText, ...]

    def summary(self) -> str:
        """Return a line each: similarity, id, text."""
        return "\n".join(f"{near.similarity:7.4f}  {near.text_id:>9}  {near.text}" for near in self.found)


def nearest_texts(
    graph_dir: Path, text: str | int, *, count: int = 10, encoder: str | None = None, trust: str | None = None
) -> NearTexts:
    """Find the stored texts nearest to one text; for several, open a `NearestTexts`. Arguments and errors are its own."""
    return NearestTexts.open(graph_dir, encoder=encoder, trust=trust).find(text, count=count)


def nearest_to_vector(graph_dir: Path, path: Path, *, count: int = 10) -> NearTexts:
    """Find the stored texts nearest to the vector of a file.

    Args:
        graph_dir: The graph.
        path: A `.npy`, safetensors or Parquet file of one vector, of any length but zero.
        count: Texts wanted.

    Raises:
        SourceError: If the file is missing or damaged, or its vector is zero or not finite.
        OptionError: If it holds several vectors, or is as wide as no vector of this graph.
        ArtifactError: If there is no graph, or a file of it is missing or damaged.
    """
    return NearestTexts.open(graph_dir).find_vector(read_vector(path), str(path), count=count)


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
            raise ArtifactError(f"{path}: FAISS cannot read it. {EMBED_AGAIN}") from error
        if hasattr(self._index, "nprobe"):
            self._index.nprobe = _PROBED_LISTS

    def nearest(self, vector_D: NDArray[np.float16], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return ids and similarities of the nearest stored vectors, best first, ties to the lower id; (count,) or fewer each."""
        wanted = min(max(_MIN_CANDIDATES, 4 * count), self._index.ntotal)
        _, found, vectors = self._index.search_and_reconstruct(vector_D.astype(np.float32)[None], wanted)
        held = found[0] >= 0
        ids_M, vectors_MD = found[0][held], vectors[0][held]
        scores_M = vectors_MD.astype(np.float64) @ vector_D.astype(np.float64)
        order = np.lexsort((ids_M, -scores_M))[:count]
        return ids_M[order], scores_M[order]


class NearestTexts:
    """A graph to ask for the nearest texts; its rows, index and encoder are opened by the first query that needs them."""

    def __init__(
        self,
        graph_dir: Path,
        manifest: Manifest,
        *,
        verify: bool | None = None,
        encoder: str | None = None,
        trust: str | None = None,
    ) -> None:
        self._graph_dir, self._manifest, self._verify, self._named, self._trust = graph_dir, manifest, verify, encoder, trust
        self._policy = TextPolicy(tuple((old, new) for old, new in manifest.dataset.get("replacements", ())))
        self._shards = manifest.require("text", graph_dir).in_folder(schemas.TEXTS)

    @classmethod
    def open(
        cls, graph_dir: Path, *, verify: bool | None = None, encoder: str | None = None, trust: str | None = None
    ) -> NearestTexts:
        """Read what the graph holds; files are compared with their digests when they are needed, unless `verify` is False.

        Args:
            graph_dir: The graph.
            verify: Whether digests are compared; None does so once per version of a file.
            encoder: Name or folder of the graph's encoder. One that does not come with this program is loaded only if it is
                named here: a graph may come from anybody.
            trust: The encoder once more, where its own code may run.

        Raises:
            ArtifactError: If there is no graph.
        """
        graph_dir = graph_dir.absolute()
        return cls(graph_dir, Manifest.load(graph_dir), verify=verify, encoder=encoder, trust=trust)

    def find(self, text: str | int, *, count: int = 10) -> NearTexts:
        """Find the stored texts nearest to any text, itself first where the graph holds it.

        Args:
            text: A text, cleaned as captions are (templates do not apply), or the id of a stored one.
            count: Texts wanted; fewer come back where the graph, or the lists that are probed, have fewer.

        Raises:
            OptionError: If the text is blank, there is no such id, or the graph's encoder is needed and must be named.
            ArtifactError: If a file is missing or damaged, or the index names a text that is not there.
            ArtifactMismatch: If the encoder is needed, and the one at hand is not the one that the graph was built with.
        """
        query = self._text_of(text) if isinstance(text, int) else self._clean(text)
        stored = text if isinstance(text, int) else find_text(self._graph_dir, self._shards, query, verify=self._verify)
        if stored is not None and self._stores(count):
            ids, scores = self._by_row(stored, count)
        else:
            ids, scores = self._by_encoder(query, count)
        return self._answer(query, ids, scores)

    def find_vector(self, vector_D: NDArray[np.floating[Any]], name: str, *, count: int = 10) -> NearTexts:
        """Find the stored texts nearest to a unit vector, which `name` stands for in the answer.

        Raises:
            OptionError: If it has another width than the vectors of the graph.
            ArtifactError: If a file is missing or damaged, or the index names a text that is not there.
        """
        self._require_width(len(vector_D), name)
        ids, scores = self._by_vector(vector_D, count)
        return self._answer(name, ids, scores)

    def _answer(self, query: str, ids: NDArray[np.int64], scores: NDArray[np.float64]) -> NearTexts:
        texts = self._texts_of(ids)
        found = zip(ids.tolist(), scores.tolist(), strict=True)
        return NearTexts(query, tuple(NearText(number, score, texts[number]) for number, score in found))

    def _require_width(self, width: int, name: str) -> None:
        self._manifest.require("index", self._graph_dir)
        held = self._manifest.encoder["dim"]
        if width != held:
            raise OptionError(
                f"{name}: vectors are {width:,} wide, but those of {self._graph_dir} {held:,}. Only vectors of what the graph was "
                "made with compare with its own."
            )

    @cached_property
    def _graph(self) -> Graph:
        return Graph.open(self._graph_dir, verify=self._verify)

    @cached_property
    def _index(self) -> VectorIndex:
        files = self._manifest.require("index", self._graph_dir).files
        require_verified(self._graph_dir, files.values(), remedy=EMBED_AGAIN, verify=self._verify)
        return VectorIndex(self._graph_dir / schemas.INDEX_FILE)

    @cached_property
    def _encoder(self) -> EncoderSpec:
        return graph_encoder(self._graph_dir, self._manifest, self._named, self._trust)

    def _clean(self, text: str) -> str:
        # Bytes that are no UTF-8 reach a command as lone surrogates, which sources cannot hold either.
        if not (query := self._policy.clean(as_text(text) or "")):
            raise OptionError("the text is blank. Give a few words.")
        return query

    def _text_of(self, text_id: int) -> str:
        count = sum(shard.rows for shard in self._shards)
        if not 0 <= text_id < count:
            raise OptionError(f"{self._graph_dir}: no text_id {text_id}; they run from 0 to {count - 1:,}.")
        return self._texts_of(np.array([text_id]))[text_id]

    def _stores(self, count: int) -> bool:
        """Whether stored neighbours are the answer: as many as wanted, or the graph has nothing else, as one that was imported."""
        stages = self._manifest.stages
        return "knn" in stages and ("index" not in stages or count <= self._graph.k + 1 or self._graph.is_complete)

    def _by_row(self, text_id: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The text itself, of similarity 1, and its stored neighbours."""
        row = self._graph.row(text_id)
        ids = np.concatenate([[text_id], row.neighbor_ids[0, : count - 1]])
        return ids, np.concatenate([[1.0], row.similarities[0, : count - 1].astype(np.float64)])

    def _by_encoder(self, query: str, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if self._manifest.without_vectors:
            raise OptionError(
                f"{self._graph_dir}: has no vectors, so only its own texts can be asked for. Give one as it stands, or --id."
            )
        if self._has_pictures():
            return self._by_vector(self._shown_text(query), count)
        from graphbuild.embed.encoder import load_encoder

        with progress("opening the encoder", None):
            encoder = load_encoder(self._encoder)
        self._require_width(encoder.dim, self._encoder.name)
        (tokens,), _ = encoder.tokenize([query])
        return self._by_vector(encoder.encode_one(tokens), count)

    def _has_pictures(self) -> bool:
        """Whether vectors are those of pictures, as the manifest says, or who names an image encoder for given vectors."""
        from graphbuild.embed.image_files import is_image_encoder

        recorded = self._manifest.encoder
        return bool(recorded.get("images")) or (
            recorded["name"] == VECTORS and self._named is not None and is_image_encoder(self._named)
        )

    def _shown_text(self, query: str) -> NDArray[np.float32]:
        """Unit vector of a text by the text side of an image encoder, (D,)."""
        from graphbuild.embed.image_files import find_image_encoder
        from graphbuild.embed.image_shard import load_image_encoder

        recorded = self._manifest.encoder
        if self._named is None:
            raise OptionError(
                f"{self._graph_dir} was built with the image encoder {recorded['name']}. If it has a text side, as OpenCLIP's, "
                f"name it: --encoder {shlex.quote(recorded['name'])}. Else give a sample id that the graph holds, --id or --vector."
            )
        given = recorded["name"] == VECTORS
        spec = find_image_encoder(self._named, "auto" if given else recorded["precision"])
        if not given:
            require_same(self._graph_dir, recorded, spec.name, spec.sha256)
        if (vector_D := load_image_encoder(spec).encode_text(query)) is None:
            raise OptionError(
                f"{self._named}: has no text side, so no text can be compared with its pictures. Give a sample id that the graph "
                "holds, --id or --vector."
            )
        self._require_width(len(vector_D), self._named)
        return vector_D / np.linalg.norm(vector_D)

    def _by_vector(self, vector_D: NDArray[np.floating[Any]], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids, scores = self._index.nearest(vector_D.astype(np.float16), count)
        if len(unknown := ids[ids >= sum(shard.rows for shard in self._shards)]):
            raise ArtifactError(
                f"{self._graph_dir / schemas.INDEX_FILE} names text {unknown.min()}, which the graph does not have. {EMBED_AGAIN}"
            )
        return ids, scores

    def _texts_of(self, ids: NDArray[np.int64]) -> dict[int, str]:
        return read_texts(self._graph_dir, self._shards, ids, verify=self._verify)
