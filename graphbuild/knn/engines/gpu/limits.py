"""What a candidate's score must exceed: limits by rank in a random sample, and how many candidates a row then lists.

Shape letters: N texts, K neighbours kept.

Of a row's K + 1 nearest texts (itself among them), a random share f of all texts holds Poisson(f (K + 1)) or fewer. The limit
is a step below the r-th best score of that share, where r is the smallest rank that this number reaches in fewer than `RARE` of
all rows. The data do not matter: the limit's true rank is r / f on average, with a standard deviation of sqrt(r) / f.
"""

from __future__ import annotations

import math

RARE = 1e-5
"""Share of rows whose limit may start too high by chance: the certificate finds them, and they are searched another way."""
_CHECKPOINTS = (1 / 64, 1 / 8)
"""Shares of the texts after which limits are raised; the texts of the last one come in random order."""
_SAMPLE = 16_384
_SAMPLE_SHARE = 16
"""The sample for first limits is at most a sixteenth of the texts."""
_ALIGNED = 16


def rank_for(mean: float) -> int:
    """Return the smallest rank that a sample with so many of the nearest, on average, reaches in fewer than `RARE` of the rows."""
    term, below, rank = math.exp(-mean), 0.0, 0
    if term == 0.0:
        # Far out, Poisson is normal, and five deviations are rarer than `RARE`.
        return math.ceil(mean + 5 * math.sqrt(mean))
    while 1 - below > RARE:
        below += term
        rank += 1
        term *= mean / rank
    return rank


def first_sample(count: int) -> int:
    """Return the number of texts from which first limits are taken, of N: the first of the random order."""
    return min(_SAMPLE, count // _SAMPLE_SHARE) // _ALIGNED * _ALIGNED


def checkpoints(count: int) -> list[int]:
    """Return positions, of N, before which all texts are a random sample; limits are raised there."""
    return [min(count, math.ceil(share * count / _ALIGNED) * _ALIGNED) for share in _CHECKPOINTS]


def room(k: int, *, deviations: float) -> int:
    """Return how many candidates a row needs room for: those above a limit of the last checkpoint, and some deviations more."""
    rank = rank_for((k + 1) * _CHECKPOINTS[-1])
    listed = (rank + deviations * math.sqrt(rank)) / _CHECKPOINTS[-1]
    return -(-math.ceil(listed) // 64) * 64
