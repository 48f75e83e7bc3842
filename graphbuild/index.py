"""The FAISS index over all texts, and the nearest texts of any text.

Shape letters: N texts, n of one shard, M candidates, D vector width. Scores are inner products of stored vectors,
accumulated in float64. The index holds the stored float16 values without loss, so scores need no other file.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from graphbuild import schemas
from graphbuild.embed_shards import embed_texts
from graphbuild.encoder_files import EncoderSpec, find_encoder
from graphbuild.errors import ArtifactMismatch, OptionError, ResourceError
from graphbuild.knn.memory import free_memory
from graphbuild.manifest import Manifest, Stage, stage_key, up_to_date
from graphbuild.progress import progress
from graphbuild.shards import atomic_path, finish, remove_stale_temporaries, require_intact
from graphbuild.text import Prompts, TextPolicy
from graphbuild.vectors import iterate_embeddings

FLAT_LIMIT = 200_000
"""Texts up to which the index is flat; above, IVF with float16 codes."""
_TRAIN_PER_LIST = 64
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


def build_index(graph_dir: Path, manifest: Manifest, *, overwrite: bool, flat_limit: int = FLAT_LIMIT) -> bool:
    """Build index.faiss from the stored embeddings, and enter the `index` stage, unless it is there.

    Args:
        graph_dir: A graph whose embed stage is done.
        manifest: Its manifest; changed and saved.
        overwrite: Replace an index made from other embeddings.
        flat_limit: Texts up to which the index is flat.

    Returns:
        Whether it was built.
    """
    count = sum(receipt.rows for receipt in manifest.require("embed", graph_dir).files.values())
    lists = 0 if count <= flat_limit else round(4 * math.sqrt(count))
    config = {"kind": "ivf-float16" if lists else "flat", "lists": lists}
    inputs = manifest.column_digests("embed", (schemas.TEXT_ID, schemas.EMBEDDING))
    if up_to_date(manifest, graph_dir, "index", config, inputs, overwrite=overwrite):
        return False
    started = time.monotonic()
    path = graph_dir / schemas.INDEX_FILE
    _write_index(path, _fill_index(graph_dir, manifest.encoder["dim"], count, lists))
    receipt = finish(graph_dir, path, rows=count, key=stage_key(config, inputs))
    manifest.stages["index"] = Stage(
        config=config, inputs=inputs, seconds=time.monotonic() - started, files={schemas.INDEX_FILE: receipt}
    )
    remove_stale_temporaries(graph_dir)
    manifest.save(graph_dir)
    return True


def _fill_index(graph_dir: Path, dim: int, count: int, lists: int) -> Any:
    import faiss

    index: Any
    if lists:
        _say_memory(dim, count, lists)
        coarse = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        # Codes of the vectors themselves, which are exact, and not of their residuals, which would be rounded.
        index.by_residual = False
        if getattr(faiss, "get_num_gpus", int)():
            # Only the centroids are sought there; the index itself stays in memory.
            index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dim))
        with progress("training the index", None, unit="vectors"):
            index.train(_training_sample(graph_dir, count, lists))
    else:
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
    with progress("indexing", count, unit="texts") as meter:
        # The embed stage has just compared every file with its receipt.
        for shard in iterate_embeddings(graph_dir, check=False):
            index.add_with_ids(shard.vectors_nD.astype(np.float32), shard.ids_n.astype(np.int64))
            meter.advance(len(shard.ids_n))
    return index


def _say_memory(dim: int, count: int, lists: int) -> None:
    """What the index takes while it is built; said where there is less."""
    needed = count * (2 * dim + 8) + 4 * dim * lists * (_TRAIN_PER_LIST + 1)
    if needed > (free := free_memory()):
        click.echo(
            f"index: {lists:,} lists of {count:,} vectors take about {needed / 1e9:.1f} GB of memory while they are made, and "
            f"{free / 1e9:.1f} GB are free; a machine with more finishes it, if this one does not",
            err=True,
        )


def _training_sample(graph_dir: Path, count: int, lists: int) -> NDArray[np.float32]:
    """Every so-many-th vector: spread over all shards, the same at every run."""
    step = max(1, count // (lists * _TRAIN_PER_LIST))
    return np.concatenate(
        [shard.vectors_nD[shard.ids_n % step == 0].astype(np.float32) for shard in iterate_embeddings(graph_dir, check=False)]
    )


def _write_index(path: Path, index: Any) -> None:
    """Write an index in pieces, through Python: no second copy of it, and a full disk is an error with a name."""
    import faiss

    # FAISS's annotations leave out what its wrapper adds.
    library: Any = faiss
    failures: list[OSError] = []
    with atomic_path(path) as temporary, temporary.open("wb") as stream:

        def write(piece: bytes) -> None:
            try:
                stream.write(piece)
            except OSError as error:
                failures.append(error)
                raise

        try:
            library.write_index(index, library.PyCallbackIOWriter(write))
        except (RuntimeError, OSError):
            # FAISS has an error of its own for whatever the callback raised.
            raise failures[0] if failures else ResourceError(f"{path}: FAISS could not write the index.") from None


def nearest_texts(graph_dir: Path, text: str, *, count: int = 10) -> NearTexts:
    """The stored texts nearest to any text, by the graph's own encoder.

    Args:
        graph_dir: A graph with an index.
        text: Cleaned as captions are; templates do not apply.
        count: Texts wanted; fewer come back where the graph has fewer.

    Raises:
        ArtifactError: If the index is missing or damaged.
        ArtifactMismatch: If the encoder at hand is not the one that the graph was built with.
        OptionError: If the text is blank.
    """
    manifest = Manifest.load(graph_dir)
    require_intact(graph_dir, manifest.require("index", graph_dir).files, remedy="Run `graphbuild embed` again: it rebuilds it.")
    policy = TextPolicy(tuple((old, new) for old, new in manifest.dataset.get("replacements", ())))
    query = policy.clean(text)
    if not query:
        raise OptionError("the text is blank. Give a few words.")
    vector_D = _encode_query(graph_dir, manifest, query)
    ids_M, vectors_MD = _candidates(graph_dir / schemas.INDEX_FILE, vector_D, max(_MIN_CANDIDATES, 4 * count))
    scores_M = vectors_MD.astype(np.float64) @ vector_D.astype(np.float64)
    # Best first, ties to the lower id.
    order = np.lexsort((ids_M, -scores_M))[:count]
    texts = _texts_of(graph_dir, manifest, ids_M[order])
    found = zip(ids_M[order].tolist(), scores_M[order].tolist(), strict=True)
    return NearTexts(query, tuple(NearText(text_id, score, texts[text_id]) for text_id, score in found))


def _encode_query(graph_dir: Path, manifest: Manifest, query: str) -> NDArray[np.float16]:
    vector_D: NDArray[np.float16] = embed_texts(_stored_encoder(graph_dir, manifest), Prompts(), [query])[0]
    return vector_D


def _stored_encoder(graph_dir: Path, manifest: Manifest) -> EncoderSpec:
    recorded = manifest.encoder
    spec = find_encoder(recorded["name"]).with_precision(recorded["precision"])
    if spec.sha256 != recorded["sha256"]:
        raise ArtifactMismatch(
            f"{graph_dir}: built with {recorded['name']} of sha256 {recorded['sha256'][:12]}, but the encoder of this name has "
            f"{spec.sha256[:12]}: their vectors do not compare. Put the old one back, or run `graphbuild embed --overwrite`."
        )
    return spec


def _candidates(path: Path, vector_D: NDArray[np.float16], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids of about the nearest texts, and their vectors exactly as stored."""
    import faiss

    index: Any = faiss.read_index(str(path))
    query_1D = vector_D.astype(np.float32)[None]
    if hasattr(index, "nprobe"):
        index.nprobe = _PROBED_LISTS
        index.make_direct_map()
    _, found = index.search(query_1D, min(count, index.ntotal))
    ids_M = found[0][found[0] >= 0]
    return ids_M, np.stack([index.reconstruct(int(text_id)) for text_id in ids_M])


def _texts_of(graph_dir: Path, manifest: Manifest, ids: NDArray[np.int64]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for shard in manifest.ranges("text", schemas.TEXTS):
        held = ids[(ids >= shard.start) & (ids < shard.stop)]
        if len(held):
            table = pq.read_table(graph_dir / schemas.part_name(schemas.TEXTS, shard.index), columns=[schemas.TEXT])
            texts |= zip(held.tolist(), table[schemas.TEXT].take(held - shard.start).to_pylist(), strict=True)
    return texts
