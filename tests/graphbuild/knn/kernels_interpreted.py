"""Checks the Triton kernels, run by Triton's interpreter, against NumPy: a process of its own, with TRITON_INTERPRET=1.

Each function is a claim; `test_knn_kernels` runs them all in one process, for it takes seconds to start.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from helpers_graph import brute_force, clustered_vectors

from graphbuild.knn.engines.gpu import triton_steps
from graphbuild.knn.engines.gpu.engine import DeviceEngine
from graphbuild.knn.engines.gpu.lists import Columns, Lists
from graphbuild.knn.engines.gpu.triton_steps import TritonSteps
from graphbuild.knn.engines.gpu.vectors import Vectors
from graphbuild.store.files import shard_ranges

CPU = torch.device("cpu")
COUNT = 34
"""Texts of a whole search: two tiles, and a part of one."""


def listed(lists: Lists, row: int) -> set[tuple[int, int]]:
    count = min(int(lists.counts_n[row]), lists.ids_nW.shape[1])
    return set(zip(lists.ids_nW[row, :count].tolist(), lists.codes_nW[row, :count].tolist(), strict=True))


def filter_enters_what_exceeds_a_limit_and_counts_what_has_no_room() -> None:
    rng = np.random.default_rng(0)
    rows, columns, room, top, at = 5, 32, 9, 3, 16
    scores = rng.uniform(-1, 1, (rows, columns)).astype(np.float16)
    limits = rng.uniform(0.3, 0.9, 48).astype(np.float16)
    # One row has more hits than room, and a score that equals its limit is none.
    limits[top], scores[1, 2] = 0, limits[top + 1]
    for both in (False, True):
        lists = Lists.empty(48, room, CPU)
        lists.limits_n[:] = torch.from_numpy(limits.view(np.int16))
        row_ids, column_ids = torch.arange(100, 100 + rows).int(), torch.arange(200, 200 + columns).int()
        block = Columns(torch.zeros((columns, 16)), column_ids, at if both else None)
        TritonSteps().enter(torch.from_numpy(scores), lists, top, row_ids, block)
        bits = scores.view(np.int16)
        for row in range(48):
            expected = set()
            if top <= row < top + rows:
                hits = np.flatnonzero(scores[row - top] > limits[row])
                expected |= {(200 + int(c), int(bits[row - top, c])) for c in hits}
            if both and at <= row < at + columns:
                hits = np.flatnonzero(scores[:, row - at] > limits[row])
                expected |= {(100 + int(r), int(bits[r, row - at])) for r in hits}
            assert int(lists.counts_n[row]) == len(expected), row
            assert listed(lists, row) <= expected
            assert len(listed(lists, row)) == min(len(expected), room)


def first_limits_are_a_step_below_the_ranked_score() -> None:
    scores = np.random.default_rng(1).uniform(-1, 1, (4, 48)).astype(np.float16)
    scores[2] = -0.5
    found = TritonSteps().first_limits(torch.from_numpy(scores), 7).numpy()
    ranked = np.maximum(np.sort(scores, axis=1)[:, -7], 0).view(np.int16)
    np.testing.assert_array_equal(found, np.maximum(ranked - 1, 0))


def raised_limits_drop_what_does_not_exceed_them_and_tell_of_lost_candidates() -> None:
    rng = np.random.default_rng(2)
    rows, room, rank = 6, 24, 5
    counts = np.array([0, 4, 5, 13, 24, 30], np.int32)
    scores = rng.uniform(0, 1, (rows, room)).astype(np.float16)
    ids = rng.integers(0, 1000, (rows, room)).astype(np.int32)
    lowered = torch.arange(1 << 15).clamp(min=40).int().sub(40).to(torch.int16)
    for by in (None, lowered):
        lists = Lists.empty(rows, room, CPU)
        lists.counts_n[:rows], lists.codes_nW = torch.from_numpy(counts), torch.from_numpy(scores.view(np.int16).copy())
        lists.ids_nW = torch.from_numpy(ids.copy())
        lists.limits_n[:] = int(np.float16(0.25).view(np.int16))
        TritonSteps().raise_limits(lists, slice(0, rows), rank, by)
        for row in range(rows):
            codes = scores[row, : counts[row]].view(np.int16).astype(int)
            nth = int(np.sort(codes)[-rank]) if len(codes) >= rank else 0
            limit = max(nth - 1 if by is None else max(nth - 40, 0), int(np.float16(0.25).view(np.int16)))
            stays = codes > limit
            assert int(lists.limits_n[row]) == limit
            pairs = zip(ids[row, : len(codes)][stays].tolist(), codes[stays].tolist(), strict=True)
            assert listed(lists, row) == set(pairs)
            assert int(lists.spilled_n[row]) == (counts[row] > room)


def best_candidates_are_those_of_float64_in_the_stored_order() -> None:
    rng = np.random.default_rng(3)
    vectors_ND = clustered_vectors(40, 150)
    vectors_ND[5:12], vectors_ND[30] = vectors_ND[5], -vectors_ND[5]
    vectors = Vectors(vectors_ND, CPU, resident=True)
    own = np.array([int((vectors.texts_N == text).nonzero()) for text in (5, 7, 20, 0)], np.int32)
    ids = np.array([rng.permutation(40)[:32] for _ in own], np.int32)
    counts = np.array([32, 20, 31, 4], np.int32)
    found = TritonSteps().best(vectors, *(torch.from_numpy(one) for one in (own, ids, counts)), 6)
    texts = vectors.texts_N.numpy()
    for row, position in enumerate(own):
        others = texts[[one for one in ids[row, : counts[row]] if one != position]]
        exact = vectors_ND[others].astype(np.float64) @ vectors_ND[texts[position]].astype(np.float64)
        if len(others) < 6:
            assert float(found.kth_t[row]) == -np.inf
            continue
        kept = np.lexsort((others, -exact))[:6]
        assert float(found.kth_t[row]) == exact[kept[-1]]
        halves = exact[kept].astype(np.float16)
        order = np.lexsort((others[kept], -halves.astype(np.float64)))
        np.testing.assert_array_equal(found.texts_tK[row].numpy(), others[kept][order])
        np.testing.assert_array_equal(found.similarities_tK[row].numpy(), halves[order])


def engine_with_kernels_matches_float64_brute_force() -> None:
    triton_steps.CHUNK, triton_steps.PART = 32, 16
    vectors = clustered_vectors(COUNT, 24)
    vectors[8:24] = vectors[8]
    engine = DeviceEngine(vectors, k=3, memory_limit=10**9, device="cpu", way="sweep")
    assert isinstance(engine.steps, TritonSteps)
    # Twins spill, and are settled.
    engine.room = replace(engine.room, tile=16, rows=16, width=12)
    (found,) = engine.search(shard_ranges(COUNT, COUNT))
    assert found.recomputed >= 16
    ids, similarities = brute_force(vectors, 3)
    np.testing.assert_array_equal(found.ids_nK, ids)
    np.testing.assert_array_equal(found.similarities_nK, similarities)


CLAIMS = [
    filter_enters_what_exceeds_a_limit_and_counts_what_has_no_room,
    first_limits_are_a_step_below_the_ranked_score,
    raised_limits_drop_what_does_not_exceed_them_and_tell_of_lost_candidates,
    best_candidates_are_those_of_float64_in_the_stored_order,
    engine_with_kernels_matches_float64_brute_force,
]

if __name__ == "__main__":
    for claim in CLAIMS:
        claim()
        sys.stdout.write(f"{claim.__name__}\n")
        sys.stdout.flush()
