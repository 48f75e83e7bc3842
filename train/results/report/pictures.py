"""The report's matrices: learned similarities beside those of the texts.

Shape letters: N texts compared, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from graphbuild.store.arrays import Float32, Int64
from graphbuild.store.graph import Graph
from graphbuild.targets.assemble import assemble
from train.data.base import ImageSource
from train.data.prepare import OpenData
from train.data.store import CorruptImages, ImageStore
from train.evaluate.features import extract_features
from train.model.encoders import Encoder
from train.results.report.figures import matrix_image, off_diagonal_range
from train.results.report.page import MatrixFigure
from train.results.report.runs import RunRecord
from train.results.report.similarity import agreement, choose_items, cosine_matrix, mean_features, seriate
from train.run.checkpoint import load_encoder
from train.run.trainer import build_model

MATRIX_TEXTS = 192
PICTURES_A_TEXT = 10
_POOL = 50_000
"""Images from which those of the matrices are chosen; reading the labels of millions would say no more."""
_LISTED_NAMES = 40


@dataclass(frozen=True, slots=True)
class Similarities:
    """Text and learned similarities of N texts, in one order."""

    texts_NN: Float32
    learned: dict[str, Float32]
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
        opened: Images and graph of one of the runs.
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
    texts_NN = text_similarity(graph, ids, runs)
    named = [] if first is None else [labels[first].names[codes[first][item[0]]] for item in items]
    by_label = first is not None and len(set(named)) <= len(items) // 2
    if not by_label:
        # One text a label, or none at all: the texts' own similarities say which belong together.
        order = seriate(texts_NN)
        items, texts_NN, named = [items[i] for i in order], texts_NN[np.ix_(order, order)], [named[i] for i in order if named]
    names = list(dict.fromkeys(named))
    return Similarities(texts_NN, _learned_matrices(runs, opened, pool, items), items, first if by_label else None, names)


def text_similarity(graph: Graph, ids: Int64, runs: Sequence[RunRecord]) -> Float32:
    """Return what the target is made of: stored similarities, the sketch's estimate elsewhere; 1 between samples of one text."""
    absent = next((run.config.absent for run in runs if run.config.absent is not None), None)
    if absent is None and not graph.sketch_dim:
        absent = 0.0
    similarity: Float32 = assemble(graph.rows(ids), ids, absent=absent).similarity_BB
    return similarity


def _learned_matrices(runs: Sequence[RunRecord], opened: OpenData, pool: Int64, items: list[Int64]) -> dict[str, Float32]:
    assert opened.joined is not None
    chosen = np.concatenate(items)
    store = open_store(opened.source, opened.joined.indices[pool[chosen]], runs[0])
    try:
        by_encoder = {name: features_of(encoder, store, runs[0]) for name, encoder in encoders_of(runs).items()}
        places = np.full(len(pool), -1)
        places[chosen[np.flatnonzero(store.readable)]] = np.arange(int(store.readable.sum()))
    finally:
        store.close()
    # An unreadable picture leaves its text to the others; a text of which none is left takes the mean of all.
    kept = [found[found >= 0] for found in (places[item] for item in items)]
    everything = np.arange(int(store.readable.sum()))
    kept = [found if len(found) else everything for found in kept]
    return {name: cosine_matrix(mean_features(features, kept)) for name, features in by_encoder.items()}


def encoders_of(runs: Sequence[RunRecord], *, untrained: bool = True) -> dict[str, Encoder]:
    """Return the encoder of each run by its name, after the untrained one of the first."""
    first = {"untrained": build_model(runs[0].config, torch.device("cpu"))} if untrained else {}
    return first | {run.name: load_encoder(run.path) for run in runs}


def features_of(encoder: Encoder, store: ImageStore, run: RunRecord) -> Float32:
    """Return one row of features an image that can be read."""
    found = extract_features([encoder], store, device=torch.device(run.config.device), label="features for the report")
    features: Float32 = found.by_encoder[0].numpy()
    return features


def open_store(source: ImageSource, indices: Int64, run: RunRecord) -> ImageStore:
    """Return some images of a source, decoded at the size that a run was trained at."""
    corrupt = CorruptImages(source.name, run.config.max_corrupt)
    return ImageStore(source, size=run.config.load_size or run.config.image_size, corrupt=corrupt, indices=indices)


def _figure(title: str, matrix: Float32, correlation: float | None) -> MatrixFigure:
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
