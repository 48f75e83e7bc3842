"""A batch's similarities in NumPy and numba: stored rows of its texts in, the matrix G out. The reference.

Shape letters: B samples in a batch, K neighbours stored, R sketch width, D embedding width.
What a softmax makes of G is in `graphbuild.targets.softmax`. Nothing here imports torch, faiss, dask or polars.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit
from threadpoolctl import ThreadpoolController

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Float32, Ids
from graphbuild.store.choices import Symmetrize
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows
from graphbuild.store.sketches import residual_lengths

Pairs = tuple[Ids, Ids, Float32]
"""Two samples, each the first one of its text, and the similarity that the first one's row stores; (P,) each."""

# Every half-precision number as float32: numba has no float16 on the CPU, so similarities are read as bits.
_HALF_TO_FLOAT = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


class Assembly(NamedTuple):
    """The similarities among a batch's samples, and how many of them the graph stored."""

    similarity_BB: Float32
    """Symmetric, 1 on the diagonal and between samples of one text; (B, B) float32."""
    stored_B: Ids
    """For each anchor, the other samples of the batch that its row stores; (B,). Its mean is the hit rate."""


def assemble(rows: Rows, text_ids_B: npt.ArrayLike, *, absent: float | None = None, symmetrize: Symmetrize = "union") -> Assembly:
    """Compute similarities among the samples of a batch (docs/definitions.md, Target), in one scan of their rows: O(B K + B^2).

    A pair is 1 if it has one text; else its stored similarity, if either row stores it (the larger, should an imported
    graph hold two); else scale_i scale_j <q_i, q_j>, corrected by what sketches leave out (`graphbuild.store.sketches`), or
    `absent`. Sketch products are sums of at most 1,024 products of bytes, so float32 holds them exactly: every order of
    summation, here or on a GPU, gives the same bits.

    Args:
        rows: Stored rows of the batch's texts, from `Graph.rows`; B of them.
        text_ids_B: The text of each sample; (B,).
        absent: What a pair counts as that neither row stores; None takes the sketch. -inf leaves such pairs out.
        symmetrize: `mutual` takes a pair that only one of its rows stores for absent.

    Raises:
        OptionError: If `absent` is None and the graph has no sketch, or if it is not a number.
    """
    check_absent(rows.sketch.shape[1], absent)
    ids = np.ascontiguousarray(text_ids_B, np.int32)
    first, following = _chain(ids)
    pairs = _scan(ids, first, rows.neighbor_ids, rows.similarities.view(np.uint16), _HALF_TO_FLOAT)
    if absent is None:
        codes = rows.sketch.astype(np.float32)
        # In one thread: OpenBLAS's others spin for 30 ms after a product, and hold up the training step that follows it.
        with _openblas().limit(limits=1):
            # A copy, because a product with one's own transpose is computed by half and then mirrored, number by number: slower.
            similarity = codes @ codes.copy().T
        lengths = residual_lengths(rows.sketch, rows.sketch_scale)
        _estimate(similarity, rows.sketch_scale, lengths, np.array(rows.correction, np.float32))
    else:
        similarity = np.full((len(ids), len(ids)), absent, np.float32)
    stored = _count(pairs, following)
    _enter(similarity, first, following, _mutual(pairs) if symmetrize == "mutual" else pairs)
    return Assembly(similarity, stored)


@cache
def _openblas() -> ThreadpoolController:
    """Of NumPy; finding it among the loaded libraries takes milliseconds, once."""
    found: ThreadpoolController = ThreadpoolController().select(internal_api="openblas")
    return found


def resolve_absent(graph: Graph, absent: float | None) -> float | None:
    """Decide what the absent pairs of a graph count as: a constant, or, for None, the sketch's estimate.

    Raises:
        OptionError: If the graph has no sketch and no constant is given, or the constant is not a number.
    """
    if absent is None and graph.similarity == "rescored" and not graph.is_complete:
        raise OptionError(
            "rescored similarities say nothing of pairs that were not rescored, and the sketch estimates another measure. Name "
            "what those count as, such as --absent 0 (absent=0.0)."
        )
    # A complete graph has no absent pairs, so it needs neither sketch nor constant.
    absent = 0.0 if absent is None and not graph.sketch_dim and graph.is_complete else absent
    check_absent(graph.sketch_dim, absent)
    return absent


def check_absent(sketch_dim: int, absent: float | None) -> None:
    """Refuse a graph without sketches where no constant is given.

    Raises:
        OptionError: With what to do.
    """
    if absent is None and not sketch_dim:
        raise OptionError(
            "the graph has no sketch, so a pair that neither row stores has no similarity. "
            "Name one (absent=0.1, or --absent 0.1), or run `graphbuild knn --sketch-dim 64 --overwrite`."
        )
    if absent is not None and np.isnan(absent):
        raise OptionError("absent (--absent) is not a number. Give a similarity, such as 0.1, or -inf to leave absent pairs out.")


def dense(embeddings_BD: npt.NDArray[np.floating], text_ids_B: npt.ArrayLike) -> Float32:
    """Compute exact similarities among the samples of a batch, from stored embeddings; (B, B) float32, 1 where texts are equal.

    Args:
        embeddings_BD: The stored float16 vectors of the batch's texts; (B, D).
        text_ids_B: The text of each sample; (B,).
    """
    vectors = embeddings_BD.astype(np.float32)
    ids = np.asarray(text_ids_B)
    similarity: Float32 = vectors @ vectors.T
    similarity[ids[:, None] == ids[None, :]] = 1.0
    return similarity


def hit_rate(assembly: Assembly) -> float:
    """Return the stored neighbours per anchor in the batch; (B - 1) K / (N - 1) is expected of a random one."""
    return float(assembly.stored_B.mean())


@njit(nogil=True, cache=True)
def _slot(text_id: np.int32, shift: np.uint64) -> np.uint64:
    """Multiplicative hash: the top bits, of 32, of the id times 2^32 / golden ratio."""
    return ((np.uint64(text_id) * np.uint64(2654435769)) & np.uint64(0xFFFFFFFF)) >> shift


@njit(nogil=True, cache=True, boundscheck=False)
def _chain(ids: Ids) -> tuple[Ids, Ids]:
    """Of each sample, the first one of its text, and the next one in a chain that begins there; -1 ends a chain."""
    heads, shift = _table(ids)
    mask = np.uint64(len(heads) - 1)
    first = np.empty(len(ids), np.int32)
    following = np.full(len(ids), -1, np.int32)
    for i in range(len(ids)):
        slot = _slot(ids[i], shift)
        while ids[heads[slot]] != ids[i]:
            slot = (slot + np.uint64(1)) & mask
        first[i] = heads[slot]
        if first[i] != i:
            following[i] = following[first[i]]
            following[first[i]] = i
    return first, following


@njit(nogil=True, cache=True, boundscheck=False)
def _table(ids: Ids) -> tuple[Ids, np.uint64]:
    """Hash table of the first sample of each text; -1 where a slot is free. At least half of it is."""
    bits = 4
    while (1 << bits) < 2 * len(ids):
        bits += 1
    shift = np.uint64(32 - bits)
    heads = np.full(1 << bits, -1, np.int32)
    mask = np.uint64(len(heads) - 1)
    for i in range(len(ids)):
        slot = _slot(ids[i], shift)
        while heads[slot] >= 0 and ids[heads[slot]] != ids[i]:
            slot = (slot + np.uint64(1)) & mask
        if heads[slot] < 0:
            heads[slot] = i
    return heads, shift


@njit(nogil=True, cache=True, boundscheck=False)
def _scan(ids: Ids, first: Ids, neighbors: Ids, halves: npt.NDArray[np.uint16], to_float: Float32) -> Pairs:
    """The pairs of texts of the batch that a row stores, once for each row that stores them.

    Nearly every probe misses, so a bitmap of 64 bits a sample, small enough for the first-level cache, is asked first. Of
    the samples of one text only the first one's row is scanned.
    """
    batch, k = neighbors.shape
    heads, shift = _table(ids)
    mask = np.uint64(len(heads) - 1)
    # A slot of the table stands for 32 bits: at least 64 a sample.
    bitmap_shift = np.uint64(shift - np.uint64(5))
    bitmap = np.zeros((1 << (32 - bitmap_shift)) >> 3, np.uint8)
    for i in range(batch):
        place = _slot(ids[i], bitmap_shift)
        bitmap[place >> np.uint64(3)] |= np.uint8(1) << np.uint8(place & np.uint64(7))
    # Pages that no pair reaches are never taken.
    rows, columns = np.empty(batch * min(k, batch), np.int32), np.empty(batch * min(k, batch), np.int32)
    values = np.empty(batch * min(k, batch), np.float32)
    found = 0
    for i in range(batch):
        if first[i] != i:
            continue
        for c in range(k):
            neighbor = neighbors[i, c]
            place = _slot(neighbor, bitmap_shift)
            if not (bitmap[place >> np.uint64(3)] >> (place & np.uint64(7))) & np.uint64(1):
                continue
            slot = _slot(neighbor, shift)
            while heads[slot] >= 0 and ids[heads[slot]] != neighbor:
                slot = (slot + np.uint64(1)) & mask
            if heads[slot] >= 0:
                rows[found], columns[found], values[found] = i, heads[slot], to_float[halves[i, c]]
                found += 1
    return rows[:found], columns[:found], values[:found]


def _mutual(pairs: Pairs) -> Pairs:
    """Those pairs that both of their rows store."""
    rows, columns, _ = pairs
    one_way = rows.astype(np.int64) << 32 | columns
    other_way = columns.astype(np.int64) << 32 | rows
    kept = np.isin(one_way, other_way)
    return rows[kept], columns[kept], pairs[2][kept]


@njit(nogil=True, cache=True, boundscheck=False)
def _count(pairs: Pairs, following: Ids) -> Ids:
    """For each sample, the samples that its row stores."""
    stored = np.zeros(len(following), np.int32)
    for head, other in zip(pairs[0], pairs[1]):  # noqa: B905 - numba knows no `strict`
        others = 0
        while other >= 0:
            others += 1
            other = following[other]
        while head >= 0:
            stored[head] += others
            head = following[head]
    return stored


@njit(nogil=True, cache=True, boundscheck=False)
def _enter(similarity: Float32, first: Ids, following: Ids, pairs: Pairs) -> None:
    """Put the stored similarities, the larger of two, and 1 for samples of one text, in the place of what is there."""
    rows, columns, values = pairs
    for turn in range(2):
        for p in range(len(rows)):
            a = rows[p]
            while a >= 0:
                b = columns[p]
                while b >= 0:
                    # First all that was there is taken away, then the values compete.
                    value = values[p] if turn else np.float32(-np.inf)
                    if not turn or value > similarity[a, b]:
                        similarity[a, b] = value
                        similarity[b, a] = value
                    b = following[b]
                a = following[a]
    for i in range(len(first)):
        j = first[i]
        while j >= 0:
            similarity[i, j] = 1.0
            j = following[j]


@njit(nogil=True, cache=True, boundscheck=False)
def _estimate(products: Float32, scale: Float32, lengths: Float32, correction: Float32) -> None:
    """Turn products of codes into the sketch's estimates, with what it leaves out: `graphbuild.store.sketches.corrected`."""
    least, most = np.float32(-1), np.float32(1)
    for i in range(len(products)):
        for j in range(len(products)):
            # The two scales first: their product is the same for (i, j) and (j, i), so the matrix stays symmetric.
            found = products[i, j] * (scale[i] * scale[j])
            cosine = ((correction[3] * found + correction[2]) * found + correction[1]) * found + correction[0]
            products[i, j] = found + (lengths[i] * lengths[j]) * min(max(cosine, least), most)
