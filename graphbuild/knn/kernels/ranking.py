"""Triton kernels that finish rows: exact similarities of their candidates, and the K best in the order that is stored.

Shape letters: N texts, t rows of a panel, W candidates a row has room for, K neighbours kept, D vector width.

Triton is not installed everywhere: import this only where it is.
"""

import triton
import triton.language as tl


@triton.jit
def exact_products(vectors_ND, own_t, counts_t, ids_tW, exact_tW, D, W, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Compute inner products in float64, whose sums of products of float16 are exact in any order."""
    row = tl.program_id(0)
    count = tl.minimum(tl.load(counts_t + row), W)
    position = tl.load(own_t + row).to(tl.int64)
    depth = tl.arange(0, DEPTH)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        ids = tl.load(ids_tW + row.to(tl.int64) * W + place, mask=place < count, other=0)
        sums = tl.zeros((BLOCK, DEPTH), dtype=tl.float64)
        for left in range(0, D, DEPTH):
            inside = left + depth < D
            own = tl.load(vectors_ND + position * D + left + depth, mask=inside, other=0.0).to(tl.float32)
            at = vectors_ND + ids[:, None].to(tl.int64) * D + left + depth[None, :]
            other = tl.load(at, mask=(place < count)[:, None] & inside[None, :], other=0.0).to(tl.float32)
            # A product of two float16 numbers fits float32.
            sums += (own[None, :] * other).to(tl.float64)
        tl.store(exact_tW + row.to(tl.int64) * W + place, tl.sum(sums, axis=1), mask=place < count)


@triton.jit
def half_code(value):
    """Return the float16 nearest to a float64, ties to even, as its bits without the sign; |value| below 65,504."""
    bits = tl.abs(value).to(tl.int64, bitcast=True)
    normal = ((bits + 0x1FFFFFFFFFF + ((bits >> 42) & 1)) >> 42) - ((1023 - 15) << 10)
    # Below 2^-14 steps are 2^-24: adding 2^28 leaves the multiples of 2^-24, rounded to even.
    small = ((tl.abs(value) + 268435456.0) - 268435456.0) * 16777216.0
    return tl.where(tl.abs(value) < 0.00006103515625, small.to(tl.int64), normal)


@triton.jit
def best_rows(
    exact_tW, keys_tW, counts_t, ids_tW, own_t, texts_N, texts_tK, bits_tK, kth_t, W, K, SIZE: tl.constexpr, BEST: tl.constexpr
):
    """Find the K best of each row by (exact similarity, lower text id), ordered by (float16 similarity, lower text id).

    `keys_tW` is the memory of `exact_tW` seen as int64: keys take the place of similarities that were read. The K-th similarity
    is minus infinity where there are fewer; the row's results then mean nothing.
    """
    row = tl.program_id(0)
    base = row.to(tl.int64) * W
    own = tl.load(own_t + row)
    place = tl.arange(0, SIZE)
    listed = place < tl.minimum(tl.load(counts_t + row), W)
    positions = tl.load(ids_tW + base + place, mask=listed, other=0)
    texts = tl.load(texts_N + positions, mask=listed, other=0)
    exact = tl.load(exact_tW + base + place, mask=listed, other=0.0)
    listed = listed & (positions != own)
    bits = exact.to(tl.int64, bitcast=True)
    lowest = tl.full((), -9223372036854775808, tl.int64)
    ordered = tl.where(listed, bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF), lowest)
    kth = lowest
    for step in range(64):
        trial = kth + (tl.full((), 1, tl.int64) << (63 - step))
        enough = tl.sum((ordered >= trial).to(tl.int32), axis=0) >= K
        kth = tl.where(enough, trial, kth)
    above = listed & (ordered > kth)
    tied = listed & (ordered == kth)
    wanted = K - tl.sum(above.to(tl.int32), axis=0)
    # The lowest ids of those that tie for the last places.
    last = 0
    for step in range(31):
        trial_id = last + (1073741824 >> step)
        few = tl.sum((tied & (texts < trial_id)).to(tl.int32), axis=0) < wanted
        last = tl.where(few, trial_id, last)
    chosen = above | (tied & (texts <= last))
    code = half_code(exact)
    ranked = tl.where(exact < 0, code, -code)
    keys = (ranked << 32) | texts.to(tl.int64)
    # All is read before any of it is overwritten, and written before it is read again.
    tl.debug_barrier()
    tl.store(keys_tW + base + tl.cumsum(chosen.to(tl.int32), axis=0) - 1, keys, mask=chosen)
    tl.debug_barrier()
    number = tl.sum(chosen.to(tl.int32), axis=0)
    slot = tl.arange(0, BEST)
    best = tl.sort(tl.load(keys_tW + base + slot, mask=slot < number, other=0x7FFFFFFFFFFFFFFF))
    ranked = best >> 32
    stored = tl.where(ranked <= 0, -ranked, ranked | 0x8000).to(tl.int16)
    tl.store(texts_tK + row.to(tl.int64) * K + slot, (best & 0xFFFFFFFF).to(tl.int32), mask=slot < K)
    tl.store(bits_tK + row.to(tl.int64) * K + slot, stored, mask=slot < K)
    found = (kth ^ ((kth >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
    tl.store(kth_t + row, tl.where(number < K, float("-inf"), found))
