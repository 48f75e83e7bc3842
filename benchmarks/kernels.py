"""What the search's vector instructions gain over the same loops as numba compiles them: `python -m benchmarks kernels`.

Shape letters: N texts, D vector width, R rows and C columns of a tile, M candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graphbuild.knn.kernels.exact import dot, similarities_to, similarity, widened
from graphbuild.knn.kernels.halves import LANES, hits, inner_lines, lowest_bit

_ROUNDS = 9
_D, _R, _C = 384, 256, 2_048
_SHARE = 0.005
"""Of the pairs of a tile that reach a limit."""


def run(*, small: bool = False) -> str:
    """Return the table: nanoseconds, median of alternating rounds, and how many times as long the plain loop takes."""
    rng = np.random.default_rng(0)
    lines = ["| | ns each | range | plain numba | times |", "|---|---:|---:|---:|---:|"]
    texts = 20_000 if small else 400_000
    halves_ND = rng.standard_normal((texts, _D), np.float32)
    halves_ND /= np.linalg.norm(halves_ND, axis=1, keepdims=True)
    bits_ND = halves_ND.astype(np.float16).view(np.int16)
    ids_M = rng.permutation(texts)[: texts // 2].astype(np.int32)
    few_M, out_M = (ids_M % 512).astype(np.int32), np.empty(len(ids_M))
    scores = rng.standard_normal(_R * _C, np.float32)
    masks = _masks(rng)
    width = np.ones(_C, np.float32)
    limits = np.full(_C, np.float32(np.quantile(scores, 1 - _SHARE)))
    compared: list[tuple[str, int, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = [
        ("inner product of float16, vectors at hand", len(few_M), _inner, _inner_plain, (bits_ND, few_M)),
        ("an upper bound against its limit", _R * _C, _bounds, _bounds_plain, (scores, width, limits)),
        ("listing what a mask of 32 lets pass", len(masks), _listed, _listed_plain, (masks,)),
        ("exact similarity, vectors asked for ahead", len(ids_M), _exact, _exact_plain, (bits_ND, ids_M, out_M)),
    ]
    for name, count, ours, plain, arguments in compared:
        assert np.isclose(ours(*arguments), plain(*arguments), rtol=1e-4), name
        taken = [(_nanoseconds(ours, arguments, count), _nanoseconds(plain, arguments, count)) for _ in range(_ROUNDS)]
        own, other = zip(*taken, strict=True)
        ratio = median(slow / fast for fast, slow in taken)
        lines.append(f"| {name} | {median(own):.2f} | {min(own):.2f} to {max(own):.2f} | {median(other):.2f} | {ratio:.2f} |")
    return "\n".join([f"{texts:,} vectors x {_D}, one thread; {_ROUNDS} rounds in turn", *lines])


def _nanoseconds(call: Callable[..., Any], arguments: tuple[Any, ...], count: int) -> float:
    started = time.perf_counter()
    call(*arguments)
    return 1e9 * (time.perf_counter() - started) / count


def _masks(rng: np.random.Generator) -> NDArray[np.uint32]:
    """Masks of a tile, a bit in two hundred set."""
    return np.packbits(rng.random((_R * _C // LANES, LANES)) < _SHARE, axis=1).view(np.uint32).ravel()


@njit
def _inner(bits_ND: NDArray[np.int16], ids_M: NDArray[np.int32]) -> float:
    total = 0.0
    for c in range(1, len(ids_M)):
        total += abs(inner_lines(bits_ND, ids_M[c - 1], bits_ND, ids_M[c], bits_ND.shape[1] // LANES))
    return total


@njit
def _inner_plain(bits_ND: NDArray[np.int16], ids_M: NDArray[np.int32]) -> float:
    total = 0.0
    for c in range(1, len(ids_M)):
        # In float64: where numba may reorder sums, float32 products of halves overflow.
        total += abs(similarity(bits_ND, ids_M[c - 1], ids_M[c]))
    return total


@njit(error_model="numpy")
def _bounds(scores: NDArray[np.float32], ones_C: NDArray[np.float32], limits_C: NDArray[np.float32]) -> int:
    one, total = np.float32(1), 0
    for r in range(_R):
        for at in range(0, _C, LANES):
            mask = hits(
                scores, r * _C + at, ones_C, ones_C, ones_C, limits_C, at, one, np.float32(0), np.float32(-1), np.float32(np.inf)
            )
            total += mask != 0
    return total


@njit(error_model="numpy", fastmath={"contract"})
def _bounds_plain(scores: NDArray[np.float32], ones_C: NDArray[np.float32], limits_C: NDArray[np.float32]) -> int:
    one, none, limit, total = np.float32(1), np.float32(0), np.float32(np.inf), 0
    for r in range(_R):
        for at in range(0, _C, LANES):
            mask = np.uint32(0)
            for lane in range(LANES):
                c = at + lane
                bound = scores[r * _C + c] * ones_C[c] * one + none * ones_C[c] - one + ones_C[c]
                mask |= np.uint32(bound > min(limits_C[c], limit)) << np.uint32(lane)
            total += mask != 0
    return total


@njit
def _listed(masks: NDArray[np.uint32]) -> int:
    total = 0
    for m in range(len(masks)):
        mask = masks[m]
        while mask:
            total += m * LANES + int(lowest_bit(mask))
            mask &= mask - np.uint32(1)
    return total


@njit
def _listed_plain(masks: NDArray[np.uint32]) -> int:
    total = 0
    for m in range(len(masks)):
        mask, lane = masks[m], 0
        while mask:
            if mask & np.uint32(1):
                total += m * LANES + lane
            mask >>= np.uint32(1)
            lane += 1
    return total


def _exact(bits_ND: NDArray[np.int16], ids_M: NDArray[np.int32], out_M: NDArray[np.float64]) -> float:
    similarities_to(bits_ND, 0, ids_M, len(ids_M), out_M)
    return float(out_M.sum())


@njit(error_model="numpy")
def _exact_plain(bits_ND: NDArray[np.int16], ids_M: NDArray[np.int32], out_M: NDArray[np.float64]) -> float:
    own_D = np.array([widened(bits) * 2.0**112 for bits in bits_ND[0]])
    for c in range(len(ids_M)):
        out_M[c] = dot(own_D, bits_ND[ids_M[c]])
    return float(out_M.sum())
