"""Chunks of neighbours by greedy growth, in numba: which samples go together. `graphbuild.targets.partition` is the way in.

Shape letters: S samples, T texts, K neighbours stored of a text, C samples a chunk.
A chunk grows from a seed by the sample that most stored edges lead to from what it holds. Every row is read once, so time
is linear in the edges, and memory in samples and texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from graphbuild.store.arrays import Ids, Int64
from graphbuild.store.neighbors import mapped_row

MOST_OF_ONE_TEXT = 2
"""Samples of one text in a chunk: more are no news to each other, because their similarity is 1."""
_HIGHEST_SCORE = 4095
_SCORE_BITS = 16
_MOST_ENTRIES = 1 << 20
LOOK_AHEAD = 64
"""Samples that are passed over in search of a seed, or of an exchange, before the rule of two is given up."""
_MOST_PASSED = 4096
_MOST_WALKED = 8
"""Samples of one text that are looked at in search of two without a chunk."""


class Links(NamedTuple):
    """Samples, texts and edges; nothing here changes."""

    text_offsets: Int64
    """Sample i has `texts[text_offsets[i]:text_offsets[i + 1]]`; (S + 1,)."""
    texts: Ids
    sample_offsets: Int64
    """The same the other way: samples of each text; (T + 1,)."""
    samples: Ids
    addresses: npt.NDArray[np.uintp]
    """Where the neighbour rows of each shard begin in memory."""
    starts: Int64
    """First text of each shard."""
    k: int
    """Neighbours stored a text."""
    first_rank: int
    """Edges of these ranks are followed, counted from 0."""
    last_rank: int
    """Exclusive."""


class State(NamedTuple):
    """What growth has done so far; its arrays change in place."""

    chunk_of: Ids
    """Chunk of each sample, -1 if it has none yet; (S,)."""
    score: Int64
    """Chunk and number of edges from it, in one number, so that an edge costs one look; -1 once assigned; (S,)."""
    used: Ids
    """Last chunk that holds a text, times 4, plus the samples of it there; (T,)."""
    first_free: Int64
    """Place in `samples` before which every sample of a text is assigned; (T,)."""
    seeds: Ids
    """Order in which samples are taken as seeds; (S,)."""
    next_seed: Int64
    """One number: the place in `seeds` before which every sample is assigned."""


def new_state(links: Links, seeds: Ids) -> State:
    """Return a state in which nothing is assigned yet."""
    samples, texts = len(links.text_offsets) - 1, len(links.sample_offsets) - 1
    return State(
        chunk_of=np.full(samples, -1, np.int32),
        score=np.zeros(samples, np.int64),
        used=np.full(texts, -4, np.int32),
        first_free=links.sample_offsets[:-1].copy(),
        seeds=seeds,
        next_seed=np.zeros(1, np.int64),
    )


@njit(nogil=True, cache=True)
def grow(links: Links, state: State, first_chunk: int, last_chunk: int, size: int) -> None:
    """Fill some chunks; call it for one range after another.

    Args:
        links: Samples, texts and edges.
        state: What was done so far; it goes on.
        first_chunk: From here,
        last_chunk: up to here, exclusive.
        size: Samples a chunk; the very last one takes what is left.
    """
    heads = np.full(_HIGHEST_SCORE + 1, -1, np.int32)
    entries = np.empty((_MOST_ENTRIES, 2), np.int32)
    counts = np.zeros(2, np.int64)
    for chunk in range(first_chunk, last_chunk):
        for _ in range(size):
            sample = _best(links, state, heads, entries, counts, chunk)
            if sample < 0:
                sample = _seed(links, state, chunk)
            if sample < 0:
                return
            _take(links, state, sample, chunk)
            _reach(links, state, heads, entries, counts, sample, chunk)
        heads[: counts[1] + 1] = -1
        counts[:] = 0


@njit(nogil=True, cache=True, boundscheck=False)
def _best(links: Links, state: State, heads: Ids, entries: Ids, counts: Int64, chunk: int) -> int:
    """The sample with the most edges from the chunk that may join it, or -1; the latest one first where several have as many."""
    while counts[1] > 0:
        entry = heads[counts[1]]
        if entry < 0:
            counts[1] -= 1
            continue
        heads[counts[1]] = entries[entry, 1]
        sample = entries[entry, 0]
        # An entry is stale once its sample was assigned, or entered again with a higher score.
        if state.score[sample] == (chunk << _SCORE_BITS) + counts[1] and _admissible(links, state, sample, chunk):
            return int(sample)
    return -1


@njit(nogil=True, cache=True, boundscheck=False)
def _seed(links: Links, state: State, chunk: int) -> int:
    """The next sample that has no chunk, if it can be one that keeps the rule of two; -1 if all are assigned."""
    place = state.next_seed[0]
    while place < len(state.seeds) and state.chunk_of[state.seeds[place]] >= 0:
        place += 1
    state.next_seed[0] = place
    if place == len(state.seeds):
        return -1
    tried = 0
    for other in range(place, len(state.seeds)):
        sample = state.seeds[other]
        if state.chunk_of[sample] < 0:
            if _admissible(links, state, sample, chunk):
                return int(sample)
            tried += 1
        # Bounded in both ways, because time must stay linear; `keep_rule_of_two` mends what this lets through.
        if tried == LOOK_AHEAD or other - place == _MOST_PASSED:
            break
    return int(state.seeds[place])


@njit(nogil=True, cache=True, boundscheck=False)
def _admissible(links: Links, state: State, sample: int, chunk: int) -> bool:
    for place in range(links.text_offsets[sample], links.text_offsets[sample + 1]):
        used = state.used[links.texts[place]]
        if used >> 2 == chunk and used & 3 >= MOST_OF_ONE_TEXT:
            return False
    return True


@njit(nogil=True, cache=True, boundscheck=False)
def _take(links: Links, state: State, sample: int, chunk: int) -> None:
    """Put a sample into a chunk."""
    state.chunk_of[sample] = chunk
    state.score[sample] = -1
    for place in range(links.text_offsets[sample], links.text_offsets[sample + 1]):
        text = links.texts[place]
        if _comes_before(links.texts, links.text_offsets[sample], place):
            continue
        used = state.used[text]
        state.used[text] = (chunk << 2) + (min((used & 3) + 1, 3) if used >> 2 == chunk else 1)


@njit(nogil=True, cache=True, boundscheck=False)
def _comes_before(texts: Ids, first: int, place: int) -> bool:
    """Whether a sample's text at `place` is one of those from `first` on: the same caption twice is one text."""
    return bool((texts[first:place] == texts[place]).any())


@njit(nogil=True, cache=True, boundscheck=False)
def _reach(links: Links, state: State, heads: Ids, entries: Ids, counts: Int64, sample: int, chunk: int) -> None:
    """Count one more edge for every sample that the sample's rows lead to."""
    for place in range(links.text_offsets[sample], links.text_offsets[sample + 1]):
        row = mapped_row(links.addresses, links.starts, links.k, links.texts[place])
        # Farthest first: what is entered last is taken first, so among equals the nearest.
        for rank in range(links.last_rank - 1, links.first_rank - 1, -1):
            text = row[rank]
            found = 0
            free = state.first_free[text]
            while free < links.sample_offsets[text + 1] and state.score[links.samples[free]] < 0:
                free += 1
            state.first_free[text] = free
            for index in range(free, min(free + _MOST_WALKED, links.sample_offsets[text + 1])):
                other = links.samples[index]
                if state.score[other] >= 0:
                    _enter(state.score, heads, entries, counts, other, chunk)
                    found += 1
                    if found == MOST_OF_ONE_TEXT:
                        break


@njit(nogil=True, cache=True, boundscheck=False)
def _enter(score: Int64, heads: Ids, entries: Ids, counts: Int64, sample: int, chunk: int) -> None:
    before = score[sample] & ((1 << _SCORE_BITS) - 1) if score[sample] >> _SCORE_BITS == chunk else 0
    value = min(before + 1, _HIGHEST_SCORE)
    if value == before or counts[0] == len(entries):
        return
    score[sample] = (chunk << _SCORE_BITS) + value
    entries[counts[0], 0] = sample
    entries[counts[0], 1] = heads[value]
    heads[value] = counts[0]
    counts[0] += 1
    counts[1] = max(counts[1], value)


@njit(nogil=True, cache=True, boundscheck=False)
def in_degrees(links: Links, degrees: Int64, first_text: int, last_text: int) -> None:
    """Add to each text the edges that lead to it from a range of texts."""
    for text in range(first_text, last_text):
        row = mapped_row(links.addresses, links.starts, links.k, text)
        for rank in range(links.first_rank, links.last_rank):
            degrees[row[rank]] += 1


@njit(nogil=True, cache=True, boundscheck=False)
def neighbors_inside(links: Links, order: Ids, size: int) -> float:
    """Count the stored neighbours per anchor within its chunk, expected where every sample shows one of its texts at random.

    Args:
        links: Samples, texts and edges; all ranks count.
        order: Samples, chunk after chunk; (S,).
        size: Samples a chunk.
    """
    stamp = np.full(len(links.sample_offsets) - 1, -1, np.int32)
    weight = np.zeros(len(stamp))
    total = 0.0
    for start in range(0, len(order), size):
        members = order[start : start + size]
        for sample in members:
            first, last = links.text_offsets[sample], links.text_offsets[sample + 1]
            for text in links.texts[first:last]:
                weight[text] = (weight[text] if stamp[text] == start else 0.0) + 1 / (last - first)
                stamp[text] = start
        for sample in members:
            first, last = links.text_offsets[sample], links.text_offsets[sample + 1]
            for text in links.texts[first:last]:
                row = mapped_row(links.addresses, links.starts, links.k, text)
                for neighbor in row:
                    if stamp[neighbor] == start:
                        own = 0.0
                        for mine in links.texts[first:last]:
                            own += 1 / (last - first) if mine == neighbor else 0.0
                        total += (weight[neighbor] - own) / (last - first)
    return total / max(len(order), 1)
