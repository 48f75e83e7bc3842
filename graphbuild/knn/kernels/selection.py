"""Keeping the candidates of every row while tiles of scores stream by, in numba.

Shape letters: R rows and C columns of a tile, S rows of the whole state, W candidates a row has room for, K neighbours.

Scores are non-negative floats seen as signed integers of the same width, which order alike; negative ones order below
all of these. A score is a hit if it exceeds its row's limit. Limits only rise, so everything that a row has turned away
scored at most its last limit: that is what the certificate builds on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from graphbuild.knn.kernels.exact import keep_best, similarities_to

LANES = 32
"""Scores compared at once; tile widths are multiples of this."""

Integers = NDArray[Any]
"""int16 for half-precision scores, int32 for float32."""


def _hits_typing(_context: Any, scores: Any, at: Any, limits: Any, first: Any, own: Any) -> Any:
    """Bit l is set if scores[at + l] > min(limits[first + l], own), for 32 lanes: a vector comparison numba cannot spell."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_value_type(signature.args[0].dtype)
        lanes = ir.VectorType(element, LANES)

        def load(array_type: Any, array: Any, index: Any) -> Any:
            data = context.make_array(array_type)(context, builder, array).data
            pointer = builder.bitcast(builder.gep(data, [index]), lanes.as_pointer())
            return builder.load(pointer, align=element.width // 8)

        values = load(signature.args[0], arguments[0], arguments[1])
        columns = load(signature.args[2], arguments[2], arguments[3])
        start = builder.insert_element(ir.Constant(lanes, ir.Undefined), arguments[4], ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        row = builder.shuffle_vector(start, ir.Constant(lanes, ir.Undefined), order)
        lower = builder.select(builder.icmp_signed("<", columns, row), columns, row)
        return builder.bitcast(builder.icmp_signed(">", values, lower), ir.IntType(LANES))

    return types.uint32(scores, types.intp, limits, types.intp, scores.dtype), generate


def _lowest_bit_typing(_context: Any, mask: Any) -> Any:
    """Position of the lowest set bit of a mask that is not 0."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), generate


# Calls of an intrinsic leave out the typing context; Any, for its type does not say so.
_hits: Any = intrinsic(_hits_typing)
_lowest_bit: Any = intrinsic(_lowest_bit_typing)


@njit(nogil=True, cache=True, error_model="numpy")
def thin(
    row: int,
    limits_S: Integers,
    counts_S: NDArray[np.int32],
    ids_SW: NDArray[np.int32],
    scores_SW: NDArray[np.int16],
    k: int,
    lowered: NDArray[np.int16],
    shift: int,
) -> None:
    """Drop the candidates of a row that cannot be among its k nearest, and raise its limit to what was dropped.

    The k+1 best (the row itself may be one of them) bound the k-th from below; `lowered` turns the worst of these into
    the highest score that is certainly out. If the row would still be over three quarters full, as with a great many
    near-ties, it is cut by rank; the certificate then fails, and the row is computed another way.
    """
    count = counts_S[row]
    if count <= k:
        return
    ordered = np.partition(scores_SW[row, :count], count - 1 - k)
    limit = lowered[ordered[count - 1 - k]]
    room = 3 * ids_SW.shape[1] // 4
    # What the upper bits do not tell apart may lie above a limit whose lower bits are all 0.
    coarse = 1 if shift else 0
    if count > room:
        ordered = np.partition(ordered, count - 1 - room)
        limit = max(limit, ordered[count - 1 - room] + coarse)
    if limit << shift <= limits_S[row]:
        return
    limits_S[row] = limit << shift
    kept = 0
    for c in range(count):
        if scores_SW[row, c] + coarse > limit:
            ids_SW[row, kept] = ids_SW[row, c]
            scores_SW[row, kept] = scores_SW[row, c]
            kept += 1
    counts_S[row] = kept


@njit(nogil=True, cache=True, error_model="numpy")
def scan_tile(
    scores: Integers,
    columns: int,
    row_ids_R: NDArray[np.int32],
    row_at: int,
    column_ids_C: NDArray[np.int32],
    column_at: int,
    column_limits: Integers,
    column_limits_at: int,
    limits_S: Integers,
    counts_S: NDArray[np.int32],
    ids_SW: NDArray[np.int32],
    scores_SW: NDArray[np.int16],
    k: int,
    lowered: NDArray[np.int16],
    shift: int,
) -> None:
    """Enter the hits of one tile into its rows' candidates, and into its columns' where these are rows of the state.

    Args:
        scores: The tile, (R, C) in C order, flat.
        columns: C, a multiple of `LANES`.
        row_ids_R: Text id of each row of the tile.
        row_at: State row of the tile's first row.
        column_ids_C: Text id of each column.
        column_at: State row of the tile's first column; where the columns are not served, any.
        column_limits: `limits_S` to serve the columns too, else C limits that no score exceeds.
        column_limits_at: Where the tile's first column is in `column_limits`.
        limits_S: Of each state row, the score that a candidate must exceed; at least 0.
        counts_S: Candidates that each row has.
        ids_SW: Their text ids.
        scores_SW: The upper 16 bits of their scores.
        k: Neighbours wanted.
        lowered: See `thin`.
        shift: Bits of a score below its upper 16.
    """
    width = ids_SW.shape[1]
    for r in range(len(row_ids_R)):
        row = row_at + r
        own = limits_S[row]
        for start in range(0, columns, LANES):
            mask = _hits(scores, r * columns + start, column_limits, column_limits_at + start, own)
            while mask:
                c = start + int(_lowest_bit(mask))
                mask &= mask - np.uint32(1)
                score = scores[r * columns + c]
                if score > own:
                    if counts_S[row] == width:
                        thin(row, limits_S, counts_S, ids_SW, scores_SW, k, lowered, shift)
                        own = limits_S[row]
                    if score > own:
                        ids_SW[row, counts_S[row]] = column_ids_C[c]
                        scores_SW[row, counts_S[row]] = score >> shift
                        counts_S[row] += 1
                if score > column_limits[column_limits_at + c]:
                    column = column_at + c
                    if counts_S[column] == width:
                        thin(column, limits_S, counts_S, ids_SW, scores_SW, k, lowered, shift)
                    if score > limits_S[column]:
                        ids_SW[column, counts_S[column]] = row_ids_R[r]
                        scores_SW[column, counts_S[column]] = score >> shift
                        counts_S[column] += 1


@njit(nogil=True, cache=True, error_model="numpy")
def seed_limits(scores: Integers, columns: int, limits_R: Integers, rank: int, shift: int) -> None:
    """Set each row's first limit from its scores against a random sample of the texts.

    The limit is the `rank`-th largest of the maxima of blocks of 32 scores, less one step: at most the `rank`-th largest
    score, and far cheaper.
    """
    blocks = columns // LANES
    maxima = np.empty(blocks, scores.dtype)
    for r in range(len(limits_R)):
        for block in range(blocks):
            best = scores[r * columns + block * LANES]
            for c in range(r * columns + block * LANES, r * columns + (block + 1) * LANES):
                best = max(best, scores[c])
            maxima[block] = best
        limit = np.partition(maxima, blocks - rank)[blocks - rank]
        limits_R[r] = max(((limit >> shift) - 1) << shift, 0)


@njit(nogil=True, cache=True, error_model="numpy")
def finish_candidates(
    bits_ND: NDArray[np.int16],
    order: NDArray[np.int64],
    text_ids_n: NDArray[np.int32],
    limits_n: Integers,
    counts_n: NDArray[np.int32],
    ids_nW: NDArray[np.int32],
    scores_nW: NDArray[np.int16],
    lowered: NDArray[np.int16],
    ceiling: NDArray[np.float64],
    shift: int,
    out_ids_nK: NDArray[np.int32],
    out_bits_nK: NDArray[np.int16],
    failed_n: NDArray[np.bool_],
) -> None:
    """The K best of each row's candidates, exactly; rows that the certificate does not settle are marked and left open.

    A row is settled if nothing that it turned away can reach its exact K-th similarity: everything turned away scored at
    most its limit, and `ceiling` says what that can stand for. Only the rows in `order` are done, and in that order: rows
    near one another have candidates in common, which are then still in the cache.
    """
    K, W = out_ids_nK.shape[1], ids_nW.shape[1]
    own_ids = np.empty(W, np.int32)
    exact = np.empty(W, np.float64)
    keys = np.empty(K, np.int64)
    for i in order:
        thin(i, limits_n, counts_n, ids_nW, scores_nW, K, lowered, shift)
        count = 0
        for c in range(counts_n[i]):
            if ids_nW[i, c] != text_ids_n[i]:
                own_ids[count] = ids_nW[i, c]
                count += 1
        failed_n[i] = True
        if count >= K:
            similarities_to(bits_ND, text_ids_n[i], own_ids, count, exact)
            kth = keep_best(own_ids, exact, count, keys, out_ids_nK[i], out_bits_nK[i])
            failed_n[i] = ceiling[limits_n[i] >> shift] >= kth


@njit(nogil=True, cache=True, error_model="numpy")
def finish_new(
    bits_ND: NDArray[np.int16],
    text_ids_n: NDArray[np.int32],
    stored_nK: NDArray[np.int32],
    limits_n: Integers,
    counts_n: NDArray[np.int32],
    ids_nW: NDArray[np.int32],
    ceiling: NDArray[np.float64],
    shift: int,
    out_ids_nK: NDArray[np.int32],
    out_bits_nK: NDArray[np.int16],
    failed_n: NDArray[np.bool_],
) -> None:
    """As `finish_candidates`, for rows whose K best of the older texts are known: the candidates are newer texts only."""
    K, W = out_ids_nK.shape[1], ids_nW.shape[1]
    both = np.empty(K + W, np.int32)
    exact = np.empty(K + W, np.float64)
    keys = np.empty(K, np.int64)
    for i in range(len(text_ids_n)):
        both[:K] = stored_nK[i]
        count = K + counts_n[i]
        both[K:count] = ids_nW[i, : counts_n[i]]
        similarities_to(bits_ND, text_ids_n[i], both, count, exact)
        kth = keep_best(both, exact, count, keys, out_ids_nK[i], out_bits_nK[i])
        failed_n[i] = ceiling[limits_n[i] >> shift] >= kth
