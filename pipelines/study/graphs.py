"""The study's graphs: texts embedded in several ways, and graphs made from those for control and comparison.

A graph is named by its texts and, after a plus, by what was done to its similarities:
`prompts` ("a photo of a {}") · `second-prompts` (the same under another encoder) ·
`names` (no template) · `definitions` (name and WordNet definition) · `templates` (80 prompts
averaged) · `wordnet` (1 - distance / 8) · `flickr`, `scenes` (captions); `+shuffled` (same weights, other texts), `+centred` (mean
removed; whitening was tried, too: the directions that it shrinks are those that agree with WordNet), `+centred-shuffled`, `+random`
(each pair has the weight of a random one, so that no text keeps anything but the spread).
`flickr+shuffled` is embedded anew, because its graph is not complete: each picture has the captions of another one.

Shape letters: N texts, D vector width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graphbuild.errors import SourceError
from graphbuild.store.arrays import Float64
from pipelines.study.data import CLASSES, StudyData, write_frame
from pipelines.study.plan import CAPTIONS, SECOND

if TYPE_CHECKING:
    from graphbuild.embed.config import EmbedConfig

_TEMPLATES = "clip_imagenet_templates.json"
_DEEPEST = 8.0
"""WordNet distance at which similarity is 0."""
_SEED = 0


def build_graph(name: str, data: StudyData, folder: Path, encoder: str) -> Path:
    """Build, or complete, a graph and those that it is made from.

    Args:
        name: As the module says.
        data: The study's images.
        folder: Where graphs are kept.
        encoder: Sentence Transformer of the texts.

    Returns:
        The graph's directory.

    Raises:
        UserError: If it cannot be built.
    """
    texts, _, change = name.partition("+")
    if is_imported(name):
        return import_similarities(folder / name, class_similarities(name, data, folder, encoder), data)
    source = _shuffle_captions(data) if change else data.images(texts)
    return _embed(texts, source, data, folder / name, encoder)


def class_similarities(name: str, data: StudyData, folder: Path, encoder: str) -> Float64:
    """Return the similarities that a graph of class texts has, or is made of, in the order of the seen classes' table.

    Args:
        name: As for `build_graph`, which makes the graph whose embeddings are asked.
        data: The same.
        folder: The same.
        encoder: The same.

    Raises:
        UserError: If that graph cannot be built.
    """
    texts, _, change = name.partition("+")
    if texts == "wordnet":
        similarity = np.maximum(1 - class_distances(data) / _DEEPEST, -1)
    else:
        similarity = similarity_of(
            _embeddings(build_graph(texts, data, folder, encoder), data), centred=change.startswith("centred")
        )
    if change == "random":
        return randomise(similarity)
    return shuffle(similarity) if change.endswith("shuffled") else similarity


def is_imported(name: str) -> bool:
    """Return whether a graph is made from similarities at hand, every pair of them."""
    texts, _, change = name.partition("+")
    return texts != CAPTIONS and (bool(change) or texts == "wordnet")


def similarity_of(vectors_ND: Float64, *, centred: bool) -> Float64:
    """Return cosines of embeddings, as they are, or after their mean was taken from them; (N, N)."""
    moved = vectors_ND - vectors_ND.mean(axis=0) if centred else vectors_ND
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    similarity: Float64 = np.clip(unit @ unit.T, -1, 1)
    return similarity


def shuffle(similarity_NN: Float64, seed: int | tuple[int, ...] = _SEED) -> Float64:
    """Return the same weights between other texts: rows and columns permuted alike, no text in its own place."""
    moved = _moved(len(similarity_NN), seed)
    shuffled: Float64 = similarity_NN[np.ix_(moved, moved)]
    return shuffled


def randomise(similarity_NN: Float64) -> Float64:
    """Return the same weights, each between a random pair of texts: symmetric, and no text is to two others what it was."""
    rows, columns = np.triu_indices(len(similarity_NN), 1)
    drawn = similarity_NN.copy()
    drawn[rows, columns] = np.random.default_rng(_SEED).permutation(similarity_NN[rows, columns])
    drawn[columns, rows] = drawn[rows, columns]
    return drawn


def _moved(count: int, seed: int | tuple[int, ...] = _SEED) -> npt.NDArray[np.int64]:
    """A permutation that leaves nothing in its place: a cycle through all."""
    order = np.random.default_rng(seed).permutation(count)
    moved = np.empty_like(order)
    moved[order] = np.roll(order, 1)
    return moved


def _shuffle_captions(data: StudyData) -> Path:
    """Write flickr-shuffled.parquet: each picture's file, and the captions of another picture."""
    import polars as pl

    path = data.folder / "flickr-shuffled.parquet"
    pictures = pl.read_parquet(data.flickr, columns=["file", "captions"])
    write_frame(pictures.with_columns(captions=pictures["captions"].gather(_moved(len(pictures)))), path)
    return path


def _embed(texts: str, source: Path, data: StudyData, graph_dir: Path, encoder: str) -> Path:
    from graphbuild.embed.config import EmbedConfig
    from graphbuild.embed.text.table import DEFAULT_TEMPLATE

    templates = {"prompts": (DEFAULT_TEMPLATE,), SECOND: (DEFAULT_TEMPLATE,), "names": ("{}",)}
    column = {"definitions": "described", "flickr": "captions", "scenes": "caption"}
    config = EmbedConfig(
        dataset="parquet",
        sources=(str(source),),
        caption_column=column.get(texts, "name"),
        id_column="sample_id" if texts == "scenes" else "file",
        templates=_templates(data) if texts == "templates" else templates.get(texts, ()),
        encoder=encoder,
        workers=0,
    )
    return make_graph(graph_dir, config)


def make_graph(graph_dir: Path, config: EmbedConfig) -> Path:
    """Embed, find neighbours, and return the graph's directory."""
    from graphbuild.embed.build import build_embeddings
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn

    build_embeddings(graph_dir, config)
    build_knn(graph_dir, KnnConfig())
    return graph_dir


def _templates(data: StudyData) -> tuple[str, ...]:
    path = data.source / CLASSES / _TEMPLATES
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        raise SourceError(f"{path}: no such file. It holds the prompts that graphs named `templates` average.") from None


def _class_names(data: StudyData) -> list[str]:
    import polars as pl

    return pl.read_parquet(data.classes)["name"].to_list()


def class_distances(data: StudyData) -> Float64:
    """Return WordNet's distances, in edges, among the seen classes, in the order of their table."""
    import polars as pl

    with np.load(data.distances, allow_pickle=False) as stored:
        places = {str(wnid): place for place, wnid in enumerate(stored["wnids"])}
        chosen = [places[wnid] for wnid in pl.read_parquet(data.classes)["wnid"]]
        distances: Float64 = stored["dist"][np.ix_(chosen, chosen)].astype(np.float64)
    return distances


def _embeddings(graph_dir: Path, data: StudyData) -> Float64:
    """Stored vectors of the seen classes, in the order of their table; (N, D)."""
    import polars as pl

    from graphbuild.store.graph import Graph

    graph = Graph.open(graph_dir)
    images = pl.read_parquet(data.seen, columns=["file", "name"]).group_by("name").first()
    files = dict(images.select("name", "file").iter_rows())
    found = graph.sample_texts([files[name] for name in _class_names(data)])
    vectors: Float64 = graph.embeddings()[found.text_ids].astype(np.float64)
    return vectors


def import_similarities(graph_dir: Path, similarity_NN: Float64, data: StudyData) -> Path:
    """Make a complete graph of the seen classes' names, whose samples are the images to train on, and return its directory.

    Args:
        graph_dir: Where to.
        similarity_NN: In the order of the seen classes' table.
        data: The study's images.
    """
    import polars as pl

    from graphbuild.exchange.imported import ImportConfig, import_graph

    names = _class_names(data)
    graph_dir.parent.mkdir(parents=True, exist_ok=True)
    sources = graph_dir.with_name(f".{graph_dir.name}.import")
    sources.mkdir(exist_ok=True)
    rows, columns = np.nonzero(~np.eye(len(names), dtype=bool))
    pl.DataFrame({"id": names, "text": names}).write_parquet(sources / "texts.parquet")
    edges = {"src": np.array(names)[rows], "dst": np.array(names)[columns], "similarity": similarity_NN[rows, columns]}
    pl.DataFrame(edges).write_parquet(sources / "edges.parquet")
    samples = pl.read_parquet(data.seen, columns=["file", "name"]).rename({"file": "sample_id", "name": "id"})
    samples.write_parquet(sources / "samples.parquet")
    config = ImportConfig(
        texts=sources / "texts.parquet", edges=sources / "edges.parquet", samples=sources / "samples.parquet", overwrite=True
    )
    import_graph(graph_dir, config)
    return graph_dir
