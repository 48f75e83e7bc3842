"""The K nearest of a row's candidates, exactly, and whether the certificate settles the row; in numba.

Shape letters: N texts, n rows of a block, S rows of the whole state, W candidates a row has room for, K neighbours kept.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graphbuild.knn.kernels.exact import half_bits, keep_best, similarity
from graphbuild.knn.kernels.selection import State, enclose, similar


@njit(nogil=True, cache=True, error_model="numpy")
def _finish_row(
    bits_ND: NDArray[np.int16],
    text: int,
    ids: NDArray[np.int32],
    scores: NDArray[np.float32],
    count: int,
    error: float,
    wide: NDArray[np.float64],
    keys: NDArray[np.int64],
    out_ids_K: NDArray[np.int32],
    out_bits_K: NDArray[np.int16],
) -> float:
    """The K best of a row's candidates, exactly, and the exact K-th similarity.

    Scored again, exactly, is what may lie on either side of the K-th place, or of a border between two float16 numbers; of
    all else the score in float32 has the right place and rounds to the right float16.
    """
    K = len(keys)
    low, high = enclose(scores[:count], K, 0, error)
    kept = 0
    for c in range(count):
        score = float(scores[c])
        if score < low - 2 * error:
            continue
        ids[kept] = ids[c]
        near = score <= high + 2 * error
        if near or half_bits(score - error) != half_bits(score + error):
            score = similarity(bits_ND, text, ids[c])
        wide[kept] = score
        kept += 1
    return keep_best(ids, wide, kept, keys, out_ids_K, out_bits_K)


@njit(nogil=True, cache=True, error_model="numpy")
def finish_candidates(
    bits_ND: NDArray[np.int16],
    rows: NDArray[np.int64],
    text_ids_S: NDArray[np.int32],
    first: int,
    state: State,
    out_ids_nK: NDArray[np.int32],
    out_bits_nK: NDArray[np.int16],
    failed_n: NDArray[np.bool_],
) -> None:
    """The K best of each row's candidates, exactly; rows that the certificate does not settle are marked and left open.

    A row is settled if nothing that it turned away can reach its exact K-th similarity. Only the state's `rows` are done; what
    is found of text t goes to place t - `first`.
    """
    K, W = out_ids_nK.shape[1], state.ids_SW.shape[1]
    ids, scores = np.empty(W, np.int32), np.empty(W, np.float32)
    wide, keys = np.empty(W, np.float64), np.empty(K, np.int64)
    for row in rows:
        text = text_ids_S[row]
        i = text - first
        count = 0
        for c in range(state.counts_S[row]):
            if state.ids_SW[row, c] != text:
                ids[count] = state.ids_SW[row, c]
                scores[count] = state.scores_SW[row, c]
                count += 1
        failed_n[i] = True
        if count >= K:
            kth = _finish_row(bits_ND, text, ids, scores, count, state.error, wide, keys, out_ids_nK[i], out_bits_nK[i])
            failed_n[i] = state.limits_S[row] + state.error >= kth


@njit(nogil=True, cache=True, error_model="numpy")
def finish_new(
    bits_ND: NDArray[np.int16],
    text_ids_n: NDArray[np.int32],
    stored_nK: NDArray[np.int32],
    state: State,
    out_ids_nK: NDArray[np.int32],
    out_bits_nK: NDArray[np.int16],
    failed_n: NDArray[np.bool_],
) -> None:
    """As `finish_candidates`, for rows whose K best of the older texts are known: the candidates are newer texts only."""
    K, W = out_ids_nK.shape[1], state.ids_SW.shape[1]
    ids, scores = np.empty(K + W, np.int32), np.empty(K + W, np.float32)
    wide, keys = np.empty(K + W, np.float64), np.empty(K, np.int64)
    for i in range(len(text_ids_n)):
        ids[:K] = stored_nK[i]
        for c in range(K):
            scores[c] = similar(bits_ND, text_ids_n[i], bits_ND, stored_nK[i, c])
        count = K + state.counts_S[i]
        ids[K:count] = state.ids_SW[i, : state.counts_S[i]]
        scores[K:count] = state.scores_SW[i, : state.counts_S[i]]
        kth = _finish_row(bits_ND, text_ids_n[i], ids, scores, count, state.error, wide, keys, out_ids_nK[i], out_bits_nK[i])
        failed_n[i] = state.limits_S[i] + state.error >= kth
