"""Number formats of the scoring pass: how wrong a score can be, and which format is fastest here.

Shape letters: N texts, D vector width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.engines.threads import threads

_CODES = 1 << 15
"""Non-negative numbers of 16 bits."""
_CALIBRATION_SECONDS = 0.05
_CALIBRATION_SHAPE = (512, 1024)
_ADVANTAGE = 1.2
"""How much faster a coarser format must be: its wider error bound lets more candidates through to re-ranking."""


@dataclass(frozen=True, slots=True)
class Format:
    """A floating-point format for scores."""

    name: str
    dtype: torch.dtype
    integer: torch.dtype
    """Signed integers of the same width, which order as the non-negative floats do."""
    significand: int
    """Bits of precision, the implicit one included."""
    shift: int
    """Bits by which a score exceeds 16; tables see the upper 16."""
    table: torch.dtype
    """The 16-bit format that the upper 16 bits are."""


FLOAT16 = Format("float16", torch.float16, torch.int16, 11, 0, torch.float16)
BFLOAT16 = Format("bfloat16", torch.bfloat16, torch.int16, 8, 0, torch.bfloat16)
FLOAT32 = Format("float32", torch.float32, torch.int32, 24, 16, torch.bfloat16)
FORMATS = {one.name: one for one in (FLOAT16, BFLOAT16, FLOAT32)}


def casting_error(vectors_nD: NDArray[np.float16], form: Format) -> float:
    """Largest distance between a vector and its cast, measured; 0 for formats that hold float16."""
    if form is not BFLOAT16:
        return 0.0
    wide = torch.from_numpy(vectors_nD).float()
    return float((wide - wide.to(torch.bfloat16).float()).norm(dim=1).max()) * (1 + 1e-5) if len(wide) else 0.0


def score_error(values: NDArray[np.float64], form: Format, *, dim: int, longest: float, cast: float) -> NDArray[np.float64]:
    """Most that a score can differ from the exact similarity.

    |x| e + e (|x| + e) for casting both sides, half a unit in the last place of the score, and D u / (1 - D u) |x| |y| with
    u = 2^-24 for the accumulation in float32 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), taken
    twice over for hardware that adds products in pairs before rounding.

    Args:
        values: Scores, or exact similarities, at least 0.
        form: Format of the scores.
        dim: D.
        longest: Largest length of a vector.
        cast: Largest casting error of a vector, from `casting_error`.
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
    """Tables of `score_error` for one set of vectors."""
    codes = torch.arange(_CODES, dtype=torch.int16)
    # Infinity and what follows it are no scores of unit vectors.
    values = np.minimum(np.nan_to_num(codes.view(form.table).double().numpy(), nan=4.0), 4.0)
    errors = score_error(values, form, dim=dim, longest=longest, cast=cast)
    targets = np.maximum(values - 2 * errors, 0)
    cast_back = torch.from_numpy(targets).to(form.table)
    above = cast_back.double().numpy() >= targets
    lowered = np.maximum(cast_back.view(torch.int16).numpy() - above, 0).astype(np.int16)
    return Bounds(lowered, values + errors)


def limits_of(kth_n: NDArray[np.float16], form: Format, bounds: Bounds) -> NDArray[Any]:
    """For each row, the highest score that certainly stands for less than its exact K-th similarity; at least 0.

    Args:
        kth_n: The K-th similarities, as stored: rounded to float16.
        form: Format of the scores.
        bounds: Its tables.
    """
    # One step of float16 down, the exact similarity is surely larger; so it is of what the table's format cuts off.
    below = torch.from_numpy(np.maximum(np.nextafter(kth_n, np.float16(-1)), np.float16(0)))
    codes = below.float().view(torch.int32) >> 16 if form.table is torch.bfloat16 else below.view(torch.int16)
    width = np.dtype(f"int{8 * form.integer.itemsize}")
    limits: NDArray[Any] = bounds.lowered[codes.numpy()].astype(width) << width.type(form.shift)
    return limits


@cache
def fastest_format(dim: int) -> Format:
    """The format whose matrix product is fastest on this machine, by a short measurement.

    Half precision is slower than float32 where the hardware lacks it, on some machines a hundred times. A format whose
    products break the error bound (sums in half precision, on some machines) is never chosen.
    """
    seconds: dict[str, float] = {}
    with threads(1) as pool:
        # On one core, as the tiles will be: products that span cores stall where another process is at work.
        pool.run(FORMATS.values(), lambda _thread, form: seconds.update({form.name: _product_seconds(form, dim)}))
    best = FLOAT32
    for form in (FLOAT16, BFLOAT16):
        if seconds[form.name] * _ADVANTAGE < seconds[best.name]:
            best = form
    return best


def _product_seconds(form: Format, dim: int) -> float:
    """Seconds of one product of a tile: the fastest of as many as fit the time, at least two; infinite if it is too wrong."""
    if not products_hold(form, dim, torch.device("cpu")):
        return float("inf")
    rows, columns = _CALIBRATION_SHAPE
    vectors = torch.from_numpy(_near_vectors(dim)).to(form.dtype)
    out = torch.empty(rows, columns, dtype=form.dtype)
    best, started = np.inf, time.perf_counter()
    while best == np.inf or time.perf_counter() - started < _CALIBRATION_SECONDS:
        before = time.perf_counter()
        torch.mm(vectors[:rows], vectors[rows:].T, out=out)
        best = min(best, time.perf_counter() - before)
    return best


def products_hold(form: Format, dim: int, device: torch.device) -> bool:
    """Whether the products of a device keep to the error bound; sums in half precision do not."""
    rows = _CALIBRATION_SHAPE[0]
    exact = _near_vectors(dim)
    vectors = torch.from_numpy(exact).to(device, form.dtype)
    found = (vectors[:rows] @ vectors[rows:].T)[:64].double().cpu().numpy()
    truth = exact[:64].astype(np.float64) @ exact[rows:].astype(np.float64).T
    allowed = score_error(truth, form, dim=dim, longest=1.01, cast=casting_error(exact, form))
    return bool((np.abs(found - truth) <= allowed).all())


def _near_vectors(dim: int) -> NDArray[np.float16]:
    """Vectors of one sign and near one another: similarities close to 1, where rounding is coarsest and sums are largest."""
    wide = np.random.default_rng(0).uniform(0.5, 1, (sum(_CALIBRATION_SHAPE), dim))
    vectors: NDArray[np.float16] = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)
    return vectors
