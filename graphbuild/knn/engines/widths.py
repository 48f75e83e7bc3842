"""Which coding of the vectors takes the least time: measured products, and an expected number of pairs scored in full.

Shape letters: N texts, M texts of the sample, n rows of it, D vector width, P width of the codes, K neighbours kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.engines.coding import FORMATS, Coding, eigenvectors, leading_basis, multiply
from graphbuild.knn.engines.group import BLOCK, TILE_ROWS
from graphbuild.knn.engines.threads import threads
from graphbuild.knn.kernels import selection
from graphbuild.knn.kernels.halves import LANES

_FEW_TEXTS = 32_768
"""Up to here a search is over before a calibration would pay: all coordinates are taken."""
_SAMPLE = 8192
_ROWS = 128
_SHARES = (1 / 4, 1 / 3, 5 / 12, 1 / 2, 7 / 12, 2 / 3)
"""Widths that are tried, of D."""
_STEP = 32
"""Widths are multiples of this."""
_LEAST_RANK = 4
"""Of the K-th similarity in the sample: a limit by fewer is too uncertain."""
_IN_A_SEARCH = 1.3
"""How much longer a pair scored in full takes in a search than here, where its vectors are in the cache: 72 ns against 58 of
183,338 captions on two Zen 4 cores. The pairs that reach the final limits are as many as a search scored there."""
_ADVANTAGE = 1.05
"""How much faster leading coordinates must be expected to be than all."""
_FORMAT_ADVANTAGE = 1.2
"""How much faster int8 products must be: their error lets more pairs through."""
_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """A coding, and what it takes."""

    coding: Coding
    pair_seconds: float
    """Expected time of one core for each pair of texts."""


def choose_coding(vectors_ND: NDArray[np.float16], k: int, *, count: int | None = None) -> Choice:
    """Return the coding with the least expected time for these vectors on this machine; takes about a second.

    Args:
        vectors_ND: The vectors, or some of them.
        k: Neighbours a text.
        count: N, where only some are given.
    """
    count = count or len(vectors_ND)
    dim = vectors_ND.shape[1]
    form = fastest_format(dim)
    chosen = np.random.default_rng(0).permutation(len(vectors_ND))[:_SAMPLE]
    sample_MD = np.ascontiguousarray(vectors_ND[chosen])
    rank = min(max(_LEAST_RANK, round(k * len(sample_MD) / count)), len(sample_MD) - 1)
    codings = [Coding(form)]
    if count > _FEW_TEXTS:
        vectors_DD = eigenvectors(sample_MD)
        widths = sorted({round(share * dim / _STEP) * _STEP for share in _SHARES} - {0})
        codings += [Coding(form, leading_basis(vectors_DD, width)) for width in widths if width < dim]
    limits_n = _kth_similarities(sample_MD, rank)
    with threads(1) as pool:
        # On one core, as the tiles will be: products that span cores stall where another process is at work.
        seconds: list[float] = []
        pool.run(codings, lambda _thread, one: seconds.append(_pair_seconds(one, sample_MD, limits_n)))
    best = int(np.argmin(seconds))
    if seconds[best] * _ADVANTAGE >= seconds[0]:
        best = 0
    return Choice(codings[best], seconds[best])


@cache
def fastest_format(dim: int) -> str:
    """Return `int8` where its products are right and faster than those of float32 on this machine, else `float32`."""
    rng = np.random.default_rng(0)
    codes_BP = torch.from_numpy(rng.integers(-127, 128, (BLOCK, dim), dtype=np.int8))
    with threads(1) as pool:
        seconds: dict[str, float] = {}
        pool.run(FORMATS, lambda _thread, name: seconds.update({name: _product_seconds(codes_BP, Coding(name))}))
    return "int8" if seconds["int8"] * _FORMAT_ADVANTAGE < seconds["float32"] else "float32"


def _product_seconds(codes_BP: torch.Tensor, coding: Coding) -> float:
    scores = coding.new_scores(TILE_ROWS, BLOCK)
    codes_BP = codes_BP if coding.format == "int8" else codes_BP.float()
    seconds = _fastest(lambda: multiply(codes_BP[:TILE_ROWS], codes_BP, scores))
    exact = codes_BP[:TILE_ROWS].double() @ codes_BP.double().T
    return seconds if torch.equal(scores.double(), exact) or coding.format != "int8" else np.inf


def _kth_similarities(sample_MD: NDArray[np.float16], rank: int) -> NDArray[np.float32]:
    """The `rank`-th largest similarity of the first rows of the sample to the others, (n,)."""
    wide_MD = torch.from_numpy(sample_MD).float()
    scores_nM = (wide_MD[:_ROWS] @ wide_MD.T).fill_diagonal_(-2)
    limits_n: NDArray[np.float32] = scores_nM.topk(rank, dim=1).values[:, -1].numpy()
    return limits_n


def _pair_seconds(coding: Coding, sample_MD: NDArray[np.float16], limits_n: NDArray[np.float32]) -> float:
    """Expected seconds for each pair of texts: its part of a tile, and of the pairs scored in full."""
    codes_MP, facts = coding.encode(sample_MD)
    facts.ids[:] = np.arange(len(sample_MD))
    columns = min(BLOCK, len(sample_MD) // LANES * LANES)
    rows = min(len(limits_n), TILE_ROWS)
    scores = coding.new_scores(rows, columns)
    multiply(codes_MP[:rows], codes_MP[:columns], scores)
    tile = _fastest(lambda: multiply(codes_MP[:rows], codes_MP[:columns], scores))
    closed = _scan_seconds(scores, facts, np.inf)
    pairs = rows * columns
    full = max(0.0, _scan_seconds(scores, facts, -np.inf) - closed) / pairs
    inner_nM = codes_MP[:rows].float() @ codes_MP.float().T
    scales, rests, errors = (torch.from_numpy(one) for one in facts[1:4])
    bound_nM = inner_nM * scales[:rows, None] * scales + rests[:rows, None] * rests + errors[:rows, None] + errors
    reached = (bound_nM > torch.from_numpy(limits_n)[:rows, None]).float().mean().item() - 1 / len(sample_MD)
    # Either text's limit will do.
    return (tile + closed) / pairs + 2 * reached * _IN_A_SEARCH * full


def _scan_seconds(scores: torch.Tensor, facts: selection.Codes, limit: float) -> float:
    """Seconds to select from one tile, when all its pairs are scored in full (limit -inf) or none (inf)."""
    rows, columns = scores.shape
    state = selection.new_state(np.full(rows, limit, np.float32), columns, columns, 0.0)
    row_facts, column_facts = (selection.some(facts, slice(size)) for size in (rows, columns))
    closed, flat = np.full(columns, np.inf, np.float32), scores.numpy().reshape(-1)

    def scan() -> None:
        state.counts_S[:] = 0
        selection.scan_tile(flat, row_facts, 0, column_facts, closed, -1, state)

    return _fastest(scan)


def _fastest(call: Callable[[], None]) -> float:
    """Seconds of one call: the fastest of as many as fit the time, at least three, after one that warms up."""
    call()
    best, started, calls = np.inf, time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
        calls += 1
    return best
