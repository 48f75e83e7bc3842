"""Number formats of scores: how wrong one can be.

Shape letters: N texts, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_CODES = 1 << 15
"""Non-negative numbers of 16 bits."""
_TRIAL_SHAPE = (512, 1024)


@dataclass(frozen=True, slots=True)
class Format:
    """A floating-point format for scores."""

    name: str
    dtype: torch.dtype
    integer: torch.dtype
    """Signed integers of the same width, which order as the non-negative floats do."""
    significand: int
    """Bits of precision, the implicit one included."""
    table: torch.dtype
    """The 16-bit format that the upper 16 bits are."""


FLOAT16 = Format("float16", torch.float16, torch.int16, 11, torch.float16)
FLOAT32 = Format("float32", torch.float32, torch.int32, 24, torch.bfloat16)


def score_error(values: NDArray[np.float64], form: Format, *, dim: int, longest: float, cast: float) -> NDArray[np.float64]:
    """Return the most that a score can differ from the exact similarity.

    |x| e + e (|x| + e) for casting both sides, half a unit in the last place of the score, and D u / (1 - D u) |x| |y| with
    u = 2^-24 for the accumulation in float32 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), taken
    twice over for hardware that adds products in pairs before rounding.

    Args:
        values: Scores, or exact similarities, at least 0.
        form: Format of the scores.
        dim: D.
        longest: Largest length of a vector.
        cast: Largest casting error of a vector.
    """
    unit = 2.0**-24
    accumulation = 2 * dim * unit / (1 - dim * unit) * (longest + cast) ** 2
    _, exponents = np.frexp(values)
    half_step = np.ldexp(1.0, exponents - 1 - form.significand) + 2.0**-25
    errors: NDArray[np.float64] = longest * cast + cast * (longest + cast) + accumulation + half_step
    return errors


@dataclass(frozen=True, slots=True)
class Bounds:
    """The error bound as tables over the upper 16 bits of a score."""

    lowered: NDArray[np.int16]
    """If k + 1 scores reach v, then no score at or below `lowered[v]` is among the k best."""
    ceiling: NDArray[np.float64]
    """Highest exact similarity that a score of v, or anything below, can stand for."""


def make_bounds(form: Format, *, dim: int, longest: float, cast: float) -> Bounds:
    """Make tables of `score_error` for one set of vectors."""
    codes = torch.arange(_CODES, dtype=torch.int16)
    # Infinity and what follows it are no scores of unit vectors.
    values = np.minimum(np.nan_to_num(codes.view(form.table).double().numpy(), nan=4.0), 4.0)
    errors = score_error(values, form, dim=dim, longest=longest, cast=cast)
    targets = np.maximum(values - 2 * errors, 0)
    cast_back = torch.from_numpy(targets).to(form.table)
    above = cast_back.double().numpy() >= targets
    lowered = np.maximum(cast_back.view(torch.int16).numpy() - above, 0).astype(np.int16)
    return Bounds(lowered, values + errors)


def products_hold(form: Format, dim: int, device: torch.device) -> bool:
    """Return whether the products of a device keep to the error bound; sums in half precision do not."""
    rows = _TRIAL_SHAPE[0]
    exact = _near_vectors(dim)
    vectors = torch.from_numpy(exact).to(device, form.dtype)
    found = (vectors[:rows] @ vectors[rows:].T)[:64].double().cpu().numpy()
    truth = exact[:64].astype(np.float64) @ exact[rows:].astype(np.float64).T
    allowed = score_error(truth, form, dim=dim, longest=1.01, cast=0.0)
    return bool((np.abs(found - truth) <= allowed).all())


def _near_vectors(dim: int) -> NDArray[np.float16]:
    """Vectors of one sign and near one another: similarities close to 1, where rounding is coarsest and sums are largest."""
    wide = np.random.default_rng(0).uniform(0.5, 1, (sum(_TRIAL_SHAPE), dim))
    vectors: NDArray[np.float16] = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)
    return vectors
