"""Nearest neighbours of some pictures: by the captions, where the graph knows them, and by what each run has learned.

Shape letters: S pictures of a gallery, Q queries, M neighbours shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.store.arrays import Int64
from graphbuild.store.graph import Graph
from train.data.base import ImageSource
from train.data.prepare import OpenData, absolute
from train.data.sources import open_images, recorded_images
from train.data.store import ImageStore
from train.results.report.figures import picture
from train.results.report.page import Hit, HitRow, Neighborhoods, Query
from train.results.report.pictures import encoders_of, features_of, open_store, text_similarity
from train.results.report.runs import RunRecord
from train.results.report.similarity import cosines, nearest

GALLERY = 2_000
"""Images among which neighbours are searched."""
QUERIES, NEIGHBORS = 6, 8
CAPTIONS = "captions"
"""The row of what is nearest by the texts."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some decoded pictures, with what is known of each."""

    kind: str
    store: ImageStore
    rows: Int64
    """Rows of the store that could be read; (S,). Everything below is in this order."""
    captions: list[str]
    labels: dict[str, Int64]
    """Codes of each label column; (S,)."""
    text_ids: Int64 | None
    """Their texts; None where the graph does not know them all; (S,)."""

    def picture(self, index: int) -> str:
        """Return one picture as a data URI."""
        return picture(self.store.batch(self.rows[[index]]).pixels[0].numpy())


def held_out_images(run: RunRecord, graph: Graph | None, data: str | None) -> ImageSource | None:
    """Return images that were not trained on: the ones named, else what the graph records, else those that were evaluated."""
    if data is not None:
        return open_images(absolute(data), validation=True)
    recorded = recorded_images(graph.manifest.dataset, graph.path, validation=True) if graph else None
    if recorded is not None:
        return open_images(**{name: value for name, value in recorded.items() if name != "id_column"})
    evaluated = run.evaluated.get("data")
    return open_images(evaluated, validation=True) if evaluated and Path(evaluated).exists() else None


def find_neighborhoods(
    runs: Sequence[RunRecord], place: RunRecord, opened: OpenData, columns: Sequence[str], data: str | None
) -> tuple[Neighborhoods, ...]:
    """Return neighbourhoods among held-out images, where there are any, and among training ones where only these have texts.

    Args:
        runs: Whose encoders embed the images.
        place: The run whose images they are.
        opened: Its images and graph.
        columns: Label columns; each neighbour is marked where it has the query's.
        data: Held-out images; None: those that the graph or the evaluation names, else the training images.
    """
    held_out = held_out_images(place, opened.graph, data)
    made = []
    texts_known = False
    if held_out is not None:
        gallery = _held_out_gallery(held_out, opened, columns, place)
        texts_known = gallery.text_ids is not None
        made.append(_neighborhoods(gallery, runs, place, opened))
    if held_out is None or (opened.graph is not None and not texts_known):
        made.append(_neighborhoods(_training_gallery(opened, columns, place), runs, place, opened))
    return tuple(made)


def _neighborhoods(gallery: Gallery, runs: Sequence[RunRecord], place: RunRecord, opened: OpenData) -> Neighborhoods:
    try:
        queries = np.arange(min(QUERIES, len(gallery.rows)))
        found: list[tuple[str, int | None, Int64]] = []
        if gallery.text_ids is not None and opened.graph is not None:
            by_text = text_similarity(opened.graph, gallery.text_ids, runs)[queries]
            found.append((CAPTIONS, None, nearest(by_text, queries, count=NEIGHBORS)))
        for number, (name, encoder) in enumerate(encoders_of(runs, untrained=False).items()):
            features = features_of(encoder, gallery.store, place)
            found.append((name, number, nearest(cosines(features, queries), queries, count=NEIGHBORS)))
        pages = tuple(
            Query(
                gallery.picture(query),
                gallery.captions[query],
                tuple(HitRow(name, number, _hits(gallery, query, hits[query])) for name, number, hits in found),
            )
            for query in queries.tolist()
        )
    finally:
        gallery.store.close()
    how = f"The nearest of {len(gallery.rows):,} {gallery.kind} images, "
    how += "by the similarity of their captions, and " if found[0][0] == CAPTIONS else ""
    how += "by the cosine of frozen features; the queries are drawn at random."
    return Neighborhoods(how, pages, tuple(gallery.labels))


def _hits(gallery: Gallery, query: int, found: Int64) -> tuple[Hit, ...]:
    def hit(index: int) -> Hit:
        marks = tuple(bool(codes[index] == codes[query]) for codes in gallery.labels.values())
        return Hit(gallery.picture(index), gallery.captions[index], marks)

    return tuple(hit(index) for index in found.tolist())


def _held_out_gallery(source: ImageSource, opened: OpenData, columns: Sequence[str], run: RunRecord) -> Gallery:
    chosen = np.random.default_rng(1).permutation(len(source))[:GALLERY]
    store = open_store(source, chosen, run)
    rows = np.flatnonzero(store.readable)
    indices = chosen[rows]
    texts = _texts_by_id(source, opened, indices)
    texts = _texts_by_class(source, opened, indices, columns) if texts is None else texts
    captions = _captions(source, opened.graph, indices, texts, columns)
    return Gallery("held-out", store, rows, captions, _codes(source, indices, columns), texts)


def _training_gallery(opened: OpenData, columns: Sequence[str], run: RunRecord) -> Gallery:
    source, joined = opened.source, opened.joined
    known = np.arange(len(source)) if joined is None else joined.indices
    chosen = np.random.default_rng(1).permutation(len(known))[:GALLERY]
    store = open_store(source, known[chosen], run)
    rows = np.flatnonzero(store.readable)
    indices = known[chosen][rows]
    texts = None if joined is None else joined.text_ids[joined.offsets[chosen[rows]]].astype(np.int64)
    captions = _captions(source, opened.graph, indices, texts, columns)
    return Gallery("training", store, rows, captions, _codes(source, indices, columns), texts)


def _codes(source: ImageSource, indices: Int64, columns: Sequence[str]) -> dict[str, Int64]:
    return {column: source.labels(column).codes[indices] for column in columns if column in source.label_columns()}


def _texts_by_id(source: ImageSource, opened: OpenData, indices: Int64) -> Int64 | None:
    """The texts of pictures that the graph holds as samples; None if it does not hold them all."""
    if opened.graph is None:
        return None
    found = opened.graph.sample_texts([source.sample_ids[index] for index in indices])
    return found.text_ids[found.offsets[:-1]].astype(np.int64) if found.known.all() else None


def _texts_by_class(source: ImageSource, opened: OpenData, indices: Int64, columns: Sequence[str]) -> Int64 | None:
    """The texts of pictures by their class, where every class has one text among the training images; else None."""
    joined, column = opened.joined, next(iter(columns), None)
    if joined is None or column is None or any(column not in one.label_columns() for one in (source, opened.source)):
        return None
    gallery, queries = opened.source.labels(column), source.labels(column)
    texts = joined.text_ids[joined.offsets[:-1]].astype(np.int64)
    pairs = np.unique(np.stack([gallery.codes[joined.indices], texts], axis=1), axis=0)
    text_of = {gallery.names[code]: text for code, text in pairs.tolist() if code >= 0}
    names = [queries.names[code] if code >= 0 else "" for code in queries.codes[indices]]
    if len(text_of) < len(pairs) or not text_of.keys() >= set(names):
        return None
    return np.array([text_of[name] for name in names], np.int64)


def _captions(source: ImageSource, graph: Graph | None, indices: Int64, text_ids: Any, columns: Sequence[str]) -> list[str]:
    """What is said of pictures: the graph's texts, else the captions' own column, else a class, else their ids.

    Args:
        source: The pictures.
        graph: Whose texts are known, and which column the captions were in.
        indices: The pictures that are shown.
        text_ids: Their texts; None where the graph does not hold them.
        columns: Label columns, the surest first.
    """
    if graph is not None and text_ids is not None:
        return _read_texts(graph, text_ids)
    dataset: Mapping[str, Any] = graph.manifest.dataset if graph else {}
    for column in (dataset.get("caption_column"), "name", *columns, "label"):
        if column in source.label_columns():
            labels = source.labels(str(column))
            return [labels.names[code] if code >= 0 else "" for code in labels.codes[indices]]
    return [source.sample_ids[index] for index in indices]


def _read_texts(graph: Graph, text_ids: Int64) -> list[str]:
    """Texts of some ids, in their order; reads only the shards that hold them."""
    found = graph.texts_of(text_ids)
    return [found[int(text_id)] for text_id in text_ids]
