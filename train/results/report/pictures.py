"""The report's pictures: matrices of learned and textual similarities, and nearest neighbours.

Shape letters: S pictures of a gallery, N texts compared, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphbuild.store.graph import Graph
from graphbuild.targets.assemble import assemble
from train.data.base import ImageSource, Int64
from train.data.prepare import OpenData, absolute
from train.data.sources import open_images, recorded_images
from train.data.store import CorruptImages, ImageStore
from train.evaluate.features import extract_features
from train.model.encoders import Encoder
from train.results.report.figures import matrix_image, off_diagonal_range, picture
from train.results.report.page import Hit, HitRow, MatrixFigure, Query
from train.results.report.runs import RunRecord
from train.results.report.similarity import (
    Features,
    Matrix,
    agreement,
    choose_items,
    cosine_matrix,
    mean_features,
    nearest,
    seriate,
)
from train.run.checkpoint import load_encoder
from train.run.trainer import build_model

MATRIX_TEXTS = 192
PICTURES_A_TEXT = 10
_POOL = 50_000
"""Images from which those of the matrices are chosen; reading the labels of millions would say no more."""
GALLERY = 2_000
"""Held-out images among which neighbours are searched."""
QUERIES, NEIGHBORS = 6, 8
_LISTED_NAMES = 40


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some decoded pictures, with what is known of each."""

    store: ImageStore
    rows: Int64
    """Rows of the store that could be read; (S,). Everything below is in this order."""
    captions: list[str]
    labels: dict[str, Int64]
    """Codes of each label column; (S,)."""

    def picture(self, index: int) -> str:
        """Return one picture as a data URI."""
        return picture(self.store.batch(self.rows[[index]]).pixels[0].numpy())


@dataclass(frozen=True, slots=True)
class Similarities:
    """Text and learned similarities of N texts, in one order."""

    texts_NN: Matrix
    learned: dict[str, Matrix]
    """By encoder; (N, N) each."""
    items: list[Int64]
    """The pictures of each text."""
    column: str | None
    """The label that they are ordered by; None: by the texts' own similarities."""
    names: list[str]
    """Of the label's values, in the order of the texts; empty where there is no label."""


@dataclass(frozen=True, slots=True)
class MatrixSection:
    """The matrices, how to read them, and the names of the labels in their order."""

    figures: tuple[MatrixFigure, ...]
    how: str
    order: str


def compare_similarities(runs: Sequence[RunRecord], opened: OpenData, columns: Sequence[str]) -> MatrixSection | None:
    """Return text and learned similarities of some training images, as the report shows them; None without a graph."""
    found = measure_similarities(runs, opened, columns)
    if found is None or opened.graph is None:
        return None
    whole = len(found.items) == opened.graph.n_texts
    figures = [_figure("captions" if whole else "captions, from the graph", found.texts_NN, None)]
    figures += [_figure(name, matrix, agreement(matrix, found.texts_NN)) for name, matrix in found.learned.items()]
    return MatrixSection(tuple(figures), _matrix_how(found.items, found.column), _join_names(found.names))


def measure_similarities(runs: Sequence[RunRecord], opened: OpenData, columns: Sequence[str]) -> Similarities | None:
    """Return text and learned similarities of some training images; None without a graph.

    Args:
        runs: Whose encoders are compared; the untrained net of the first stands beside them.
        opened: Images and graph of the first run.
        columns: Label columns, the first of which orders the texts.
    """
    graph, joined = opened.graph, opened.joined
    if graph is None or joined is None:
        return None
    pool = np.sort(np.random.default_rng(0).permutation(len(joined.indices))[:_POOL])
    text_ids = joined.text_ids[joined.offsets[pool]].astype(np.int64)
    labels = {column: opened.source.labels(column) for column in columns if column in opened.source.label_columns()}
    codes = {column: label.codes[joined.indices[pool]] for column, label in labels.items()}
    first = next(iter(codes), None)
    items = choose_items(text_ids, None if first is None else codes[first], most=MATRIX_TEXTS, pictures=PICTURES_A_TEXT)
    # Ordered by every label in turn, so that blocks have blocks within.
    items.sort(key=lambda item: tuple(int(code[item[0]]) for code in codes.values()))
    ids = np.array([text_ids[item[0]] for item in items])
    texts_NN = _text_similarity(graph, ids, runs)
    named = [] if first is None else [labels[first].names[codes[first][item[0]]] for item in items]
    by_label = first is not None and len(set(named)) <= len(items) // 2
    if not by_label:
        # One text a label, or none at all: the texts' own similarities say which belong together.
        order = seriate(texts_NN)
        items, texts_NN, named = [items[i] for i in order], texts_NN[np.ix_(order, order)], [named[i] for i in order if named]
    names = list(dict.fromkeys(named))
    return Similarities(texts_NN, _learned_matrices(runs, opened, pool, items), items, first if by_label else None, names)


def _text_similarity(graph: Graph, ids: Int64, runs: Sequence[RunRecord]) -> Matrix:
    """What the target is made of: stored similarities, the sketch's estimate elsewhere."""
    absent = next((run.config.absent for run in runs if run.config.absent is not None), None)
    if absent is None and not graph.sketch_dim:
        absent = 0.0
    similarity: Matrix = assemble(graph.rows(ids), ids, absent=absent).similarity_BB
    return similarity


def _learned_matrices(runs: Sequence[RunRecord], opened: OpenData, pool: Int64, items: list[Int64]) -> dict[str, Matrix]:
    assert opened.joined is not None
    chosen = np.concatenate(items)
    store = _open_store(opened.source, opened.joined.indices[pool[chosen]], runs[0])
    try:
        by_encoder = {name: _features(encoder, store, runs[0]) for name, encoder in _encoders(runs).items()}
        places = np.full(len(pool), -1)
        places[chosen[np.flatnonzero(store.readable)]] = np.arange(int(store.readable.sum()))
    finally:
        store.close()
    # An unreadable picture leaves its text to the others; a text of which none is left takes the mean of all.
    kept = [found[found >= 0] for found in (places[item] for item in items)]
    everything = np.arange(int(store.readable.sum()))
    kept = [found if len(found) else everything for found in kept]
    return {name: cosine_matrix(mean_features(features, kept)) for name, features in by_encoder.items()}


def _encoders(runs: Sequence[RunRecord], *, untrained: bool = True) -> dict[str, Encoder]:
    first = {"untrained": build_model(runs[0].config, torch.device("cpu"))} if untrained else {}
    return first | {run.name: load_encoder(run.path) for run in runs}


def _features(encoder: Encoder, store: ImageStore, run: RunRecord) -> Features:
    found = extract_features([encoder], store, device=torch.device(run.config.device), label="features for the report")
    features: Features = found.by_encoder[0].numpy()
    return features


def _open_store(source: ImageSource, indices: Int64, run: RunRecord) -> ImageStore:
    corrupt = CorruptImages(source.name, run.config.max_corrupt)
    return ImageStore(source, size=run.config.load_size or run.config.image_size, corrupt=corrupt, indices=indices)


def _figure(title: str, matrix: Matrix, correlation: float | None) -> MatrixFigure:
    low, high = off_diagonal_range(matrix)
    caption = f"{low:.2f} (dark) to {high:.2f}"
    if correlation is not None:
        caption += f"; correlation with the captions {correlation:.2f}"
    return MatrixFigure(title, matrix_image(matrix), caption)


def _matrix_how(items: list[Int64], label: str | None) -> str:
    pictures = max(len(item) for item in items)
    each = "one training image each" if pictures == 1 else f"the mean of up to {pictures} training images each"
    order = f"ordered by {label}" if label else "ordered so that similar texts are neighbours"
    return (
        f"{len(items)} texts, {order}: first how similar the captions are, then how similar the encoders' features are "
        f"(cosine, mean removed; {each}). Each matrix has its own scale, from the 1st to the 99th percentile of its pairs."
    )


def _join_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more


def held_out_images(run: RunRecord, graph: Graph | None, data: str | None) -> ImageSource | None:
    """Return images that were not trained on: the ones named, else what the graph records, else those that were evaluated."""
    if data is not None:
        return open_images(absolute(data), validation=True)
    recorded = recorded_images(graph.manifest.dataset, graph.path, validation=True) if graph else None
    if recorded is not None:
        return open_images(**{name: value for name, value in recorded.items() if name != "id_column"})
    evaluated = run.evaluated.get("data")
    return open_images(evaluated, validation=True) if evaluated and Path(evaluated).exists() else None


def find_neighbors(
    runs: Sequence[RunRecord], opened: OpenData, columns: Sequence[str], data: str | None
) -> tuple[tuple[Query, ...], str]:
    """Return nearest neighbours of some pictures by each run's features, and a sentence that says among what.

    Args:
        runs: Whose encoders are asked.
        opened: Images and graph of the first run.
        columns: Label columns; each neighbour is marked where it has the query's.
        data: Held-out images; None: those that the graph or the evaluation names, else the training images.
    """
    source = held_out_images(runs[0], opened.graph, data)
    kind = "held-out" if source is not None else "training"
    gallery = _gallery(source or opened.source, opened, columns, runs[0], trained_on=source is None)
    try:
        features = {name: _features(encoder, gallery.store, runs[0]) for name, encoder in _encoders(runs, untrained=False).items()}
        queries = np.arange(min(QUERIES, len(gallery.rows)))
        found = [nearest(matrix, queries, count=NEIGHBORS) for matrix in features.values()]
        pages = tuple(
            Query(gallery.picture(query), gallery.captions[query], _rows(gallery, runs, query, [hits[query] for hits in found]))
            for query in queries.tolist()
        )
    finally:
        gallery.store.close()
    return (
        pages,
        f"The nearest of {len(gallery.rows):,} {kind} images, by the cosine of frozen features; the queries are drawn at random.",
    )


def _rows(gallery: Gallery, runs: Sequence[RunRecord], query: int, found: Sequence[Int64]) -> tuple[HitRow, ...]:
    def hit(index: int) -> Hit:
        marks = tuple(bool(codes[index] == codes[query]) for codes in gallery.labels.values())
        return Hit(gallery.picture(index), gallery.captions[index], marks)

    return tuple(
        HitRow(run.name, number, tuple(hit(index) for index in hits.tolist()))
        for number, (run, hits) in enumerate(zip(runs, found, strict=True))
    )


def _gallery(source: ImageSource, opened: OpenData, columns: Sequence[str], run: RunRecord, *, trained_on: bool) -> Gallery:
    known = opened.joined.indices if trained_on and opened.joined is not None else np.arange(len(source))
    chosen = np.random.default_rng(1).permutation(len(known))[:GALLERY]
    store = _open_store(source, known[chosen], run)
    rows = np.flatnonzero(store.readable)
    indices = known[chosen][rows]
    labels = {column: source.labels(column).codes[indices] for column in columns if column in source.label_columns()}
    texts = opened.joined.text_ids[opened.joined.offsets[chosen[rows]]] if trained_on and opened.joined is not None else None
    return Gallery(store, rows, _captions(source, opened.graph, indices, texts, columns), labels)


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
        return read_texts(graph, text_ids)
    dataset: Mapping[str, Any] = graph.manifest.dataset if graph else {}
    for column in (dataset.get("caption_column"), "name", *columns, "label"):
        if column in source.label_columns():
            labels = source.labels(str(column))
            return [labels.names[code] if code >= 0 else "" for code in labels.codes[indices]]
    return [source.sample_ids[index] for index in indices]


def read_texts(graph: Graph, text_ids: Int64) -> list[str]:
    """Return the texts of some ids, in their order; reads only the shards that hold them."""
    found = graph.texts_of(text_ids)
    return [found[int(text_id)] for text_id in text_ids]
