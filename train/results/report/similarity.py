"""What the report compares: which texts and pictures, their similarities, and how far the learned ones agree.

Shape letters: S pictures at hand, N texts or pictures compared, F feature width, Q queries, M neighbours shown.
"""

from __future__ import annotations

import numpy as np

from graphbuild.store.arrays import Float32, Int64


def choose_items(text_ids_S: Int64, label_codes_S: Int64 | None, *, most: int, pictures: int) -> list[Int64]:
    """Choose texts to compare, as evenly over the labels as can be, and some pictures of each.

    Args:
        text_ids_S: The text of each picture, -1 where it has none.
        label_codes_S: A label of each picture, -1 where it has none; None: there is no label.
        most: Texts chosen, at most.
        pictures: Pictures of a text, at most.

    Returns:
        For each text the indices of its pictures, in the order of labels, where there are any.
    """
    order = np.random.default_rng(0).permutation(len(text_ids_S))
    order = order[text_ids_S[order] >= 0]
    codes = np.zeros(len(text_ids_S), np.int64) if label_codes_S is None else label_codes_S
    members: dict[int, list[int]] = {}
    for index in order.tolist():
        members.setdefault(int(text_ids_S[index]), []).append(index)
    queues: dict[int, list[int]] = {}
    for text, found in members.items():
        queues.setdefault(int(codes[found[0]]), []).append(text)
    chosen: list[tuple[int, int]] = []
    depth = 0
    while len(chosen) < min(most, len(members)):
        chosen += [(code, texts[depth]) for code, texts in sorted(queues.items()) if depth < len(texts)]
        depth += 1
    return [np.array(members[text][:pictures]) for _, text in sorted(chosen[:most])]


def mean_features(features_SF: Float32, items: list[Int64]) -> Float32:
    """Return the mean feature vector of each item's pictures; (N, F)."""
    return np.stack([features_SF[item].mean(axis=0) for item in items]).astype(np.float32)


def cosine_matrix(features_NF: Float32) -> Float32:
    """Return cosine similarities after the mean vector is taken off; (N, N).

    Float32 behind a ReLU are all positive, so that without this every cosine would be near 1.
    """
    unit = normalize(features_NF - features_NF.mean(axis=0))
    similarity: Float32 = unit @ unit.T
    return similarity


def normalize(features_NF: Float32) -> Float32:
    """Return rows of unit length; a row of zeros stays."""
    length = np.linalg.norm(features_NF, axis=1, keepdims=True)
    unit: Float32 = features_NF / np.maximum(length, 1e-12)
    return unit


def seriate(similarity_NN: Float32) -> Int64:
    """Return an order in which similar rows are neighbours: by the Fiedler vector of the similarities, shifted to be positive."""
    weights = similarity_NN.astype(np.float64) - similarity_NN.min()
    np.fill_diagonal(weights, 0.0)
    # Sharpened, or the dense background of middling similarities decides the order.
    weights = (weights / max(weights.max(), 1e-12)) ** 4
    laplacian = np.diag(weights.sum(axis=1)) - weights
    vector = np.linalg.eigh(laplacian)[1][:, min(1, len(weights) - 1)]
    # The sign of an eigenvector is arbitrary: the first row comes in the first half.
    return np.argsort(vector if vector[0] <= 0 else -vector, kind="stable")


def agreement(one_NN: Float32, other_NN: Float32) -> float:
    """Return Pearson's correlation of two similarity matrices over their pairs, without the diagonal; NaN where one is constant."""
    pairs = np.triu_indices(len(one_NN), 1)
    x, y = one_NN[pairs].astype(np.float64), other_NN[pairs].astype(np.float64)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def cosines(features_SF: Float32, queries_Q: Int64) -> Float32:
    """Return the cosine of each query with every picture; (Q, S)."""
    unit = normalize(features_SF)
    found: Float32 = unit[queries_Q] @ unit.T
    return found


def nearest(similarity_QS: Float32, queries_Q: Int64, *, count: int) -> Int64:
    """Return the most similar pictures of each query, the query itself left out; (Q, M), ties to the lower index."""
    others_QS = similarity_QS.copy()
    others_QS[np.arange(len(queries_Q)), queries_Q] = -np.inf
    return np.argsort(-others_QS, axis=1, kind="stable")[:, : min(count, others_QS.shape[1] - 1)]
