"""The rule of two: at most two samples of a text in a chunk, kept by exchanges between chunks, in numba.

Shape letters: S samples.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from graphbuild.store.arrays import Ids
from graphbuild.targets.growth import LOOK_AHEAD, MOST_OF_ONE_TEXT, Links


@njit(nogil=True, cache=True, boundscheck=False)
def keep_rule_of_two(links: Links, order: Ids, size: int) -> int:
    """Exchange samples between chunks until no chunk holds more than two of one text.

    Args:
        links: Samples, texts and edges.
        order: Samples, chunk after chunk; (S,); changed in place.
        size: Samples a chunk.

    Returns:
        Samples for which no exchange was found: there are too many of their text.
    """
    failed, in_succession = 0, 0
    draw = np.uint64(1)
    for place in range(len(order)):
        if not _is_third(links, order, place, order[place], size, True):
            continue
        done = False
        for _ in range(LOOK_AHEAD if in_succession < LOOK_AHEAD else 0):
            # Knuth's linear congruential generator; its upper bits.
            draw = draw * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            other = int((draw >> np.uint64(33)) % np.uint64(len(order)))
            if other // size == place // size:
                continue
            mine, theirs = order[place], order[other]
            if not (_is_third(links, order, other, mine, size, False) or _is_third(links, order, place, theirs, size, False)):
                order[place], order[other] = theirs, mine
                done = True
                break
        failed += not done
        in_succession = 0 if done else in_succession + 1
    return failed


@njit(nogil=True, cache=True, boundscheck=False)
def _is_third(links: Links, order: Ids, place: int, sample: int, size: int, before_only: bool) -> bool:
    """Whether a sample, put at a place, would have a text that two others of the chunk (or of those before it) have."""
    start = place // size * size
    stop = place if before_only else min(start + size, len(order))
    for mine in range(links.text_offsets[sample], links.text_offsets[sample + 1]):
        count = 0
        for index in range(start, stop):
            if index != place:
                for theirs in range(links.text_offsets[order[index]], links.text_offsets[order[index] + 1]):
                    if links.texts[theirs] == links.texts[mine]:
                        count += 1
                        break
        if count >= MOST_OF_ONE_TEXT:
            return True
    return False
