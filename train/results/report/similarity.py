"""What the report compares: which texts and pictures, their similarities, and how far the learned ones agree.

Shape letters: S pictures at hand, N texts or pictures compared, F feature width, Q queries, M neighbours shown.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def choose_items(text_ids_S: Indices, label_codes_S: Indices | None, *, most: int, pictures: int, seed: int = 0) -> list[Indices]:
    """Choose texts to compare, as evenly over the labels as can be, and some pictures of each.

    Args:
        text_ids_S: The text of each picture, -1 where it has none.
        label_codes_S: A label of each picture, -1 where it has none; None: there is no label.
        most: Texts chosen, at most.
        pictures: Pictures of a text, at most.
        seed: Another seed, other texts.

    Returns:
        For each text the indices of its pictures, in the order of labels, where there are any.
    """
    order = np.random.default_rng(seed).permutation(len(text_ids_S))
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


def mean_features(features_SF: Features, items: list[Indices]) -> Features:
    """Return the mean feature vector of each item's pictures; (N, F)."""
    return np.stack([features_SF[item].mean(axis=0) for item in items]).astype(np.float32)


def cosine_matrix(features_NF: Features) -> Matrix:
    """Return cosine similarities after the mean vector is taken off; (N, N).

    Features behind a ReLU are all positive, so that without this every cosine would be near 1.
    """
    unit = normalize(features_NF - features_NF.mean(axis=0))
    similarity: Matrix = unit @ unit.T
    return similarity


def normalize(features_NF: Features) -> Features:
    """Return rows of unit length; a row of zeros stays."""
    length = np.linalg.norm(features_NF, axis=1, keepdims=True)
    unit: Features = features_NF / np.maximum(length, 1e-12)
    return unit


def seriate(similarity_NN: Matrix) -> Indices:
    """Return an order in which similar rows are neighbours: by the Fiedler vector of the similarities, shifted to be positive."""
    weights = similarity_NN.astype(np.float64) - similarity_NN.min()
    np.fill_diagonal(weights, 0.0)
    # Sharpened, or the dense background of middling similarities decides the order.
    weights = (weights / max(weights.max(), 1e-12)) ** 4
    laplacian = np.diag(weights.sum(axis=1)) - weights
    vector = np.linalg.eigh(laplacian)[1][:, min(1, len(weights) - 1)]
    # The sign of an eigenvector is arbitrary: the first row comes in the first half.
    return np.argsort(vector if vector[0] <= 0 else -vector, kind="stable")


def agreement(one_NN: Matrix, other_NN: Matrix) -> float:
    """Return Pearson's correlation of two similarity matrices over their pairs, without the diagonal; NaN where one is constant."""
    pairs = np.triu_indices(len(one_NN), 1)
    x, y = one_NN[pairs].astype(np.float64), other_NN[pairs].astype(np.float64)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def cosines(features_SF: Features, queries_Q: Indices) -> Matrix:
    """Return the cosine of each query with every picture; (Q, S)."""
    unit = normalize(features_SF)
    found: Matrix = unit[queries_Q] @ unit.T
    return found


def nearest(similarity_QS: Matrix, queries_Q: Indices, *, count: int) -> Indices:
    """Return the most similar pictures of each query, the query itself left out; (Q, M), ties to the lower index."""
    others_QS = similarity_QS.copy()
    others_QS[np.arange(len(queries_Q)), queries_Q] = -np.inf
    return np.argsort(-others_QS, axis=1, kind="stable")[:, : min(count, others_QS.shape[1] - 1)]
