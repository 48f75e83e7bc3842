"""The similarity of any two texts of a graph without vectors, to compare its neighbours with a brute force.

Shape letters: S samples, N texts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from graphbuild.embed.graph_encoder import FUSED
from graphbuild.errors import ArtifactError, SourceError
from graphbuild.exchange.relate.related import related
from graphbuild.exchange.relate.stage import METHOD as RELATE
from graphbuild.exchange.rescored import Fused, Mapped, input_digests, similarity_of
from graphbuild.knn.blockwise import Similarity
from graphbuild.store import schemas
from graphbuild.store.graph import Graph
from graphbuild.store.lookup import SampleLookup
from graphbuild.store.manifest import Manifest
from graphbuild.store.tables import read_parquet


def known_similarity(graph: Graph) -> Similarity | None:
    """Return what tells how similar texts are: kernels of columns, or the graphs that one was fused of; None of imported edges.

    Raises:
        SourceError: If an encoder, a taxonomy or one of these graphs is not there any more, or is another one by now.
    """
    config = graph.manifest.stages["knn"].config
    if config["method"] == RELATE:
        return related(graph.path, graph.manifest, config)
    return _fused(graph) if config["method"] == FUSED else None


def _fused(graph: Graph) -> Similarity:
    paths = [Path(source) for source in graph.manifest.dataset["sources"]]
    origins = [_origin(path) for path in paths]
    stage = graph.manifest.stages["knn"]
    if input_digests(origins, "text", "embed", "knn") != stage.inputs:
        raise SourceError(f"{', '.join(map(str, paths))} have changed since they were fused.")
    files = graph.manifest.files("text", schemas.SAMPLES)
    samples = pa.concat_tables([read_parquet(graph.path / one.path, [schemas.SAMPLE_ID, schemas.TEXT_ID]) for one in files])
    _, first_N = np.unique(samples[schemas.TEXT_ID].to_numpy(), return_index=True)
    ids = samples[schemas.SAMPLE_ID].take(pa.array(first_N))
    parts = []
    for path, origin in zip(paths, origins, strict=True):
        opened = Graph.open(path)
        parts.append(Mapped(similarity_of(opened), SampleLookup(path, origin).find(ids).text_ids.astype(np.int32)))
    return Fused(parts, stage.config["rule"], stage.config["weights"])


def _origin(path: Path) -> Manifest:
    try:
        return Manifest.load(path)
    except ArtifactError:
        raise SourceError(f"{path}, of which it was fused, is not there any more.") from None
