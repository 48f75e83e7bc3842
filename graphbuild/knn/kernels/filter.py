"""Triton kernels that keep candidates: a tile of scores is read once, and what exceeds a limit is entered in its row's list.

Shape letters: R rows and C columns of a tile, t rows of a block, M texts of a sample, W candidates a row has room for.

A score is a hit of its row, of its column, or of both. Hits are entered by atomics in no order; the neighbours do not depend on
it, because limits depend on sets and the final order is total. Triton is not installed everywhere: import this only where it is.
"""

import triton
import triton.language as tl


@triton.jit
def append(who, candidate, score, hit, counts_n, ids_nW, scores_nW, W):
    """Enter each hit among the candidates of its row, wherever there is room; the count tells how many there were."""
    before = tl.atomic_add(counts_n + who, 1, mask=hit, sem="relaxed")
    kept = hit & (before < W)
    at = who.to(tl.int64) * W + before
    tl.store(ids_nW + at, candidate, mask=kept)
    tl.store(scores_nW + at, score, mask=kept)


# Sizes that change within a search compile no kernel of their own.
@triton.jit(do_not_specialize=["R"])
def filter_tile(
    scores_RC, limits_n, counts_n, ids_nW, scores_nW, row_positions_R, column_positions_C, top, at, R, C, stride, W,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """Enter the scores of a tile that exceed their row's limit and, if BOTH, those that exceed their column's.

    Rows `top` to `top + R` of the group meet columns that are rows `at` to `at + C` of it, if BOTH; C is a multiple of 16.
    """
    start = tl.program_id(0) * CHUNK
    place = start + tl.arange(0, CHUNK)
    first = tl.program_id(1) * ROWS
    last = tl.minimum(first + ROWS, R)
    inside = place < C
    column_limits = tl.full((CHUNK,), float("inf"), tl.float16)
    if BOTH:
        column_limits = tl.load(limits_n + at + place, mask=inside, other=float("inf"))
    scores = tl.load(scores_RC + first.to(tl.int64) * stride + place, mask=inside, other=float("-inf"))
    for r in range(first, last):
        # The next row is on its way while this one is looked at.
        following = tl.minimum(r + 1, last - 1).to(tl.int64)
        ahead = tl.load(scores_RC + following * stride + place, mask=inside, other=float("-inf"))
        limit = tl.load(limits_n + top + r)
        hit = scores > limit
        if BOTH:
            hit = hit | (scores > column_limits)
        if tl.max(hit.to(tl.int32), axis=0) > 0:
            # Few parts have hits; reading these again keeps registers free for more warps.
            for begin in range(start, start + CHUNK, PART):
                column = begin + tl.arange(0, PART)
                valid = column < C
                again = tl.load(scores_RC + tl.minimum(r, last).to(tl.int64) * stride + column, mask=valid, other=float("-inf"))
                over_row = again > limit
                over_column = over_row
                if BOTH:
                    over_column = again > tl.load(limits_n + at + column, mask=valid, other=float("inf"))
                if tl.max((over_row | over_column).to(tl.int32), axis=0) > 0:
                    own = top + r + tl.zeros_like(column)
                    other = tl.load(column_positions_C + column, mask=over_row, other=0)
                    append(own, other, again, over_row, counts_n, ids_nW, scores_nW, W)
                    if BOTH:
                        position = tl.load(row_positions_R + r) + tl.zeros_like(column)
                        append(at + column, position, again, over_column, counts_n, ids_nW, scores_nW, W)
        scores = ahead


@triton.jit
def nth_largest(codes, rank):
    """Return the rank-th largest of non-negative 15-bit codes, by bisection; 0 if there are fewer."""
    found = 0
    for step in range(15):
        trial = found + (16384 >> step)
        enough = tl.sum((codes >= trial).to(tl.int32), axis=0) >= rank
        found = tl.where(enough, trial, found)
    return found


@triton.jit(do_not_specialize=["rank"])
def seed_limits(codes_tM, limits_t, M, stride, rank, SIZE: tl.constexpr):
    """Set first limits: a step below the rank-th largest score of a random sample."""
    row = tl.program_id(0)
    place = tl.arange(0, SIZE)
    codes = tl.load(codes_tM + row.to(tl.int64) * stride + place, mask=place < M, other=-1).to(tl.int32)
    limit = tl.maximum(nth_largest(codes, rank) - 1, 0)
    tl.store(limits_t + row, limit.to(tl.int16))


@triton.jit(do_not_specialize=["first", "rank"])
def raise_limits(
    limits_n, counts_n, ids_nW, codes_nW, spilled_n, lowered, first, rank, W, BY_RANK: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Raise a row's limit by its candidates, and drop those that do not exceed it, in place.

    By rank, K texts of all probably exceed the limit; else K + 1 texts reach the rank-th, and what is `lowered` from it is
    certainly not among the K best.
    """
    row = first + tl.program_id(0)
    entered = tl.load(counts_n + row)
    base = row.to(tl.int64) * W
    place = tl.arange(0, SIZE)
    listed = place < tl.minimum(entered, W)
    codes = tl.load(codes_nW + base + place, mask=listed, other=-1).to(tl.int32)
    ids = tl.load(ids_nW + base + place, mask=listed, other=0)
    nth = nth_largest(codes, rank)
    raised = nth - 1 if BY_RANK else tl.load(lowered + nth).to(tl.int32)
    limit = tl.maximum(tl.load(limits_n + row).to(tl.int32), raised)
    stays = codes > limit
    at = base + tl.cumsum(stays.to(tl.int32), axis=0) - 1
    # All is read before any of it is overwritten.
    tl.debug_barrier()
    tl.store(ids_nW + at, ids, mask=stays)
    tl.store(codes_nW + at, codes.to(tl.int16), mask=stays)
    tl.store(counts_n + row, tl.sum(stays.to(tl.int32), axis=0))
    tl.store(limits_n + row, limit.to(tl.int16))
    # Candidates above the limit were lost for want of room: only another search can tell.
    tl.store(spilled_n + row, (entered > W).to(tl.int8), mask=entered > W)
