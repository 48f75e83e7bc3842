"""Keeping the candidates of every row while tiles of scores stream by, in numba.

Shape letters: N texts, R rows and C columns of a tile, S rows of the whole state, W candidates a row has room for, K
neighbours kept, D vector width.

A tile holds scores of shortened vectors. From a score follows an upper bound of the pair's similarity; where it exceeds a
limit of either text, the pair is scored in full, in float32, from vectors that lie in the order of the tile. Limits only rise,
and so everything that a row has turned away is at most as similar as its last limit and the error of a full score: that is
what the certificate builds on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graphbuild.knn.kernels.exact import prefetch, widened
from graphbuild.knn.kernels.halves import LANES, hits, inner_lines, lowest_bit

_AHEAD = 8
"""Pairs whose vectors are asked for before they are scored."""
_LINE = 32
"""float16 numbers in a cache line."""
_SPARE = 64
"""A limit may let one in so many more candidates stay than it needs to: it is found in fewer steps."""


class Codes(NamedTuple):
    """What scoring takes of each of some texts, beside their codes: R or C entries."""

    ids: NDArray[np.int32]
    """Text ids."""
    scales: NDArray[np.float32]
    """What a code counts."""
    rests: NDArray[np.float32]
    """Length of the part that the codes leave out."""
    errors: NDArray[np.float32]
    """The share of the text in the error bound; -inf where filled up, which no limit lets pass."""
    bits: NDArray[np.int16]
    """The vectors themselves, float16 seen as int16: (R, D) or (C, D), C order."""


def some(facts: Codes, chosen: slice) -> Codes:
    """Return what bounds take of some of the texts: views."""
    ids, scales, rests, errors, bits = facts
    return Codes(ids[chosen], scales[chosen], rests[chosen], errors[chosen], bits[chosen])


class State(NamedTuple):
    """The candidates of S rows."""

    limits_S: NDArray[np.float32]
    """The similarity that a candidate must exceed; inf for rows that take none."""
    counts_S: NDArray[np.int32]
    ids_SW: NDArray[np.int32]
    scores_SW: NDArray[np.float32]
    """Similarities scored in full, each within `error` of the exact one."""
    k: int
    error: float


def new_state(limits_S: NDArray[np.float32], width: int, k: int, error: float) -> State:
    """Return a state without candidates; an id and its score lie side by side, so that a candidate touches one cache line."""
    # Left empty: pages that no candidate reaches are never taken.
    pairs_SW2 = np.empty((len(limits_S), width, 2), np.int32)
    return State(limits_S, np.zeros(len(limits_S), np.int32), pairs_SW2[:, :, 0], pairs_SW2.view(np.float32)[:, :, 1], k, error)


def full_error(dim: int, longest: float) -> float:
    """Most that a similarity in full, in float32, differs from the exact one.

    g |x| |y| with g = n u / (1 - n u), u = 2^-24, and n the longest chain of roundings of `similar` (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1); what denormal products lose is counted, too.
    """
    roundings = dim // LANES + dim % LANES + 8
    return roundings * 2.0**-24 / (1 - roundings * 2.0**-24) * longest**2 + dim * 2.0**-126


@njit(nogil=True, cache=True, error_model="numpy")
def similar(bits_RD: NDArray[np.int16], one: int, bits_CD: NDArray[np.int16], other: int) -> np.float32:
    """Similarity of two texts, each a row of its matrix, within `full_error`; the same whichever comes first."""
    D = bits_RD.shape[1]
    lines = D // LANES
    total = inner_lines(bits_RD, one, bits_CD, other, lines)
    for d in range(lines * LANES, D):
        total += np.float32(widened(bits_RD[one, d])) * np.float32(widened(bits_CD[other, d]))
    return np.float32(total)


@njit(nogil=True, cache=True, error_model="numpy")
def enclose(values: NDArray[np.float32], rank: int, spare: int, apart: float) -> tuple[np.float32, np.float32]:
    """Enclose the `rank`-th largest of some numbers by bisection, each step of which counts them in vectors.

    Args:
        values: At least `rank` of them.
        rank: From 1.
        spare: Stop where the lower end is reached by at most so many more than `rank`.
        apart: Stop where the ends are so near.

    Returns:
        Numbers that it lies between, or is.
    """
    low, high = values[0], values[0]
    for value in values:
        low, high = min(low, value), max(high, value)
    while high - low > apart:
        middle = np.float32(low + (high - low) / np.float32(2))
        if middle <= low or middle >= high:
            break
        count = 0
        for value in values:
            count += value >= middle
        if count < rank:
            high = middle
            continue
        low = middle
        if count <= rank + spare:
            break
    return low, high


@njit(nogil=True, cache=True, error_model="numpy")
def _raise(state: State, row: int, limit: np.float32) -> None:
    """Raise a row's limit, and drop the candidates that do not exceed it."""
    if limit <= state.limits_S[row]:
        return
    state.limits_S[row] = limit
    kept = 0
    for c in range(state.counts_S[row]):
        # Without a branch, which would be mispredicted half of the time.
        score = state.scores_SW[row, c]
        state.ids_SW[row, kept] = state.ids_SW[row, c]
        state.scores_SW[row, kept] = score
        kept += score > limit
    state.counts_S[row] = kept


@njit(nogil=True, cache=True, error_model="numpy")
def thin(state: State, row: int) -> None:
    """Drop the candidates of a row that cannot be among its k nearest, and raise its limit to what was dropped.

    The k+1 best (the row itself may be one of them) bound the k-th from below. If the row would still be over three quarters
    full, as with a great many near-ties, it is cut by rank; the certificate then fails, and the row is computed another way.
    """
    count = state.counts_S[row]
    if count <= state.k:
        return
    scores = state.scores_SW[row, :count].copy()
    limit = np.float32(enclose(scores, state.k + 1, state.k // _SPARE, 0.0)[0] - np.float32(3 * state.error))
    room = 3 * state.ids_SW.shape[1] // 4
    if (scores > limit).sum() > room:
        limit = max(limit, np.partition(scores, count - 1 - room)[count - 1 - room])
    _raise(state, row, limit)


@njit(nogil=True, cache=True, error_model="numpy")
def raise_limits(state: State, start: int, stop: int, rank: int) -> None:
    """Raise the limit of rows `start` to `stop` to about the `rank`-th best candidate, where a row has as many.

    With a rank that the k nearest among the texts so far hardly reach, this is a guess, as any first limit is; the certificate
    sees a row whose limit was too high.
    """
    for row in range(start, stop):
        count = state.counts_S[row]
        if count >= rank:
            low, _ = enclose(state.scores_SW[row, :count].copy(), rank, rank // _SPARE, 0.0)
            _raise(state, row, np.float32(low - np.float32(3 * state.error)))


@njit(nogil=True, cache=True, error_model="numpy")
def _enter(state: State, row: int, text: int, score: np.float32) -> None:
    if score <= state.limits_S[row]:
        return
    if state.counts_S[row] == state.ids_SW.shape[1]:
        thin(state, row)
        if score <= state.limits_S[row]:
            return
    state.ids_SW[row, state.counts_S[row]] = text
    state.scores_SW[row, state.counts_S[row]] = score
    state.counts_S[row] += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _reached(
    scores: NDArray[Any], rows: Codes, row_limits: NDArray[np.float32], columns: Codes, column_limits: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Return the places of a tile whose upper bound exceeds a limit of either text, in order."""
    C = len(columns.ids)
    # All comparisons first: mispredicted branches cost more than the comparisons.
    masks = np.empty(len(rows.ids) * C // LANES, np.uint32)
    for r in range(len(rows.ids)):
        limit, scale, rest, error = row_limits[r], rows.scales[r], rows.rests[r], rows.errors[r]
        for at in range(0, C, LANES):
            place = r * C + at
            mask = hits(scores, place, columns.scales, columns.rests, columns.errors, column_limits, at, scale, rest, error, limit)
            masks[place // LANES] = mask
    found = np.empty(len(rows.ids) * C, np.int32)
    count = 0
    for m in range(len(masks)):
        mask = masks[m]
        while mask:
            found[count] = m * LANES + int(lowest_bit(mask))
            mask &= mask - np.uint32(1)
            count += 1
    return found[:count]


@njit(nogil=True, cache=True, error_model="numpy")
def scan_tile(
    scores: NDArray[Any],
    rows: Codes,
    row_at: int,
    columns: Codes,
    column_limits: NDArray[np.float32],
    column_at: int,
    state: State,
) -> int:
    """Enter the pairs of one tile that reach a limit into its rows' candidates, and into its columns' where these are served.

    Args:
        scores: The tile, (R, C) in C order, flat: inner products of codes.
        rows: Of the tile's rows.
        row_at: State row of the first.
        columns: Of its columns; C is a multiple of `LANES`.
        column_limits: The columns' part of `limits_S` where they are served, else C times inf.
        column_at: State row of the first column, or -1 where they are not served.
        state: The candidates.

    Returns:
        Pairs that were scored in full.
    """
    C, D = columns.bits.shape
    found = _reached(scores, rows, state.limits_S[row_at : row_at + len(rows.ids)], columns, column_limits)
    for h in range(len(found)):
        if h + _AHEAD < len(found):
            ahead = found[h + _AHEAD] % C
            for d in range(0, D, _LINE):
                prefetch(columns.bits, ahead, d)
            if column_at >= 0:
                prefetch(state.ids_SW, column_at + ahead, state.counts_S[column_at + ahead])
        r, c = found[h] // C, found[h] % C
        score = similar(rows.bits, r, columns.bits, c)
        _enter(state, row_at + r, columns.ids[c], score)
        if column_at >= 0:
            _enter(state, column_at + c, rows.ids[r], score)
    return len(found)


@njit(nogil=True, cache=True, error_model="numpy")
def seed_limits(
    scores: NDArray[Any],
    columns: int,
    scales_C: NDArray[np.float32],
    scales_R: NDArray[np.float32],
    limits_R: NDArray[np.float32],
    rank: int,
) -> None:
    """Set each row's first limit from its scores against a random sample of the texts.

    The limit is the `rank`-th largest of the maxima of blocks of 32 scores: at most the `rank`-th largest score, and far
    cheaper. It is a guess, as any first limit is; the certificate sees a row whose limit was too high.
    """
    blocks = columns // LANES
    maxima = np.empty(blocks, np.float32)
    for r in range(len(limits_R)):
        for block in range(blocks):
            best = np.float32(-np.inf)
            for c in range(block * LANES, (block + 1) * LANES):
                best = max(best, np.float32(scores[r * columns + c]) * scales_C[c])
            maxima[block] = best
        limits_R[r] = np.partition(maxima, blocks - rank)[blocks - rank] * scales_R[r]
