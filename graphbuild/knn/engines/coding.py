"""Shortened vectors for the scoring pass: which of their products bound the similarity, and by how much.

Shape letters: N texts, n texts of a block, D vector width, P width of the codes.

With y = R^T x, R of P orthonormal columns, a text x is R y plus a rest that is orthogonal to R, and by Cauchy-Schwarz
<x, x'> <= <y, y'> + |rest| |rest'|. The codes c differ from y by e = |y - c|, measured for each text; as
<y, y'> - <c, c'> = <y - c, y'> + <c, y' - c'>, and |c| <= |y| + e, the error is at most (e + e') |x| + e e', and
e e' <= (e^2 + e'^2) / 2 splits it into a share of each of the two texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.kernels.selection import Codes, some

LONGEST = 1.01
"""Length of a vector, at most; the stage refuses longer ones."""
_EVALUATION = 2e-6
"""What evaluating the bound in float32 can lose: eight roundings of numbers below 2, and the two of this share's."""
_CHUNK = 1024
FORMATS = ("int8", "float32")


@dataclass(frozen=True)
class Coding:
    """A number format of codes, and how many leading coordinates they keep."""

    format: str
    """`int8`, with one scale a text, or `float32`."""
    basis_DP: NDArray[np.float64] | None = None
    """R; None keeps all coordinates as they are."""

    @cached_property
    def _lost(self) -> float:
        """What the basis itself adds to the error, at most."""
        return 0.0 if self.basis_DP is None else _defect(self.basis_DP)

    def width(self, dim: int) -> int:
        """Return the width P of the codes."""
        return dim if self.basis_DP is None else self.basis_DP.shape[1]

    def name(self, dim: int) -> str:
        """Return the name that the receipt records."""
        return self.format if self.basis_DP is None else f"{self.format}, {self.width(dim)} of {dim} coordinates"

    def new_scores(self, rows: int, columns: int) -> torch.Tensor:
        """Return memory for a tile of scores."""
        return torch.empty(rows, columns, dtype=torch.int32 if self.format == "int8" else torch.float32)

    def encode(self, vectors_nD: NDArray[np.float16]) -> tuple[torch.Tensor, Codes]:
        """Return the codes of some texts, (n, P), and what scoring takes beside them; text ids are left at -1."""
        codes_nP, facts = self.empty(vectors_nD)
        for start in range(0, len(vectors_nD), _CHUNK):
            rows = slice(start, start + _CHUNK)
            self.fill(codes_nP[rows], some(facts, rows))
        return codes_nP, facts

    def empty(self, vectors_nD: NDArray[np.float16]) -> tuple[torch.Tensor, Codes]:
        """Return memory for what `encode` does, to `fill` a part at a time."""
        count, dim = vectors_nD.shape
        codes_nP = torch.empty(count, self.width(dim), dtype=torch.int8 if self.format == "int8" else torch.float32)
        scales_n, rests_n, errors_n = np.empty((3, count), np.float32)
        return codes_nP, Codes(np.full(count, -1, np.int32), scales_n, rests_n, errors_n, vectors_nD.view(np.int16))

    def fill(self, codes_nP: torch.Tensor, facts: Codes) -> None:
        """Write the codes of some texts, whose vectors are among what scoring takes."""
        x_nD = torch.from_numpy(facts.bits.view(np.float16)).double()
        y_nP = x_nD
        facts.rests[:] = 0
        lost = self._lost
        if self.basis_DP is not None:
            y_nP = x_nD @ torch.from_numpy(self.basis_DP)
            squares_n = (x_nD.square().sum(1) - y_nP.square().sum(1)).clamp_(min=0) + 1e-12
            facts.rests[:] = np.nextafter(squares_n.sqrt().numpy().astype(np.float32), np.float32(2))
        if self.format == "int8":
            scales_n = (y_nP.abs().amax(1) / 127).clamp_(min=1e-30).float()
            facts.scales[:] = scales_n.numpy()
            wide_n = scales_n.double()[:, None]
            rounded_nP = torch.round(y_nP / wide_n)
            codes_nP.copy_(rounded_nP)
            error_n = (y_nP - rounded_nP.mul_(wide_n)).norm(dim=1)
        else:
            facts.scales[:] = 1
            codes_nP.copy_(y_nP)
            error_n = (y_nP - codes_nP.double()).norm(dim=1)
            lost += accumulation(y_nP.shape[1]) / 2
        facts.errors[:] = (error_n * LONGEST + error_n.square() / 2 + lost + _EVALUATION).numpy()


def multiply(rows_RP: torch.Tensor, columns_CP: torch.Tensor, out_RC: torch.Tensor) -> None:
    """Compute the inner products of codes: exact in int32 for int8."""
    if rows_RP.dtype == torch.int8:
        torch._int_mm(rows_RP, columns_CP.T, out=out_RC)
    else:
        torch.mm(rows_RP, columns_CP.T, out=out_RC)


def accumulation(width: int) -> float:
    """Return the most that a sum of so many float32 products can be wrong (Higham, Accuracy and Stability, section 3.1).

    D u / (1 - D u) |x| |y| with u = 2^-24, twice over for hardware that adds products in pairs before rounding.
    """
    return 2 * width * 2.0**-24 / (1 - width * 2.0**-24) * (LONGEST + 1e-6) ** 2


def _defect(basis_DP: NDArray[np.float64]) -> float:
    """How far the columns are from orthonormal: what that adds to a similarity, at most, twice over."""
    gram_PP = basis_DP.T @ basis_DP
    return 4 * float(np.linalg.norm(gram_PP - np.eye(len(gram_PP))))


def eigenvectors(sample_nD: NDArray[np.float16]) -> NDArray[np.float64]:
    """Return the eigenvectors of the second moments of some texts as columns, the largest eigenvalue first; (D, D)."""
    wide_nD = sample_nD.astype(np.float64)
    vectors_DD: NDArray[np.float64] = np.linalg.eigh(wide_nD.T @ wide_nD)[1][:, ::-1]
    return vectors_DD


def leading_basis(vectors_DD: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the first `width` of some orthonormal columns, turned at random among themselves; (D, P).

    Any orthonormal columns give a bound; leading eigenvectors leave the shortest rests. Turned, no coordinate dominates the
    scale of int8.
    """
    turn_PP, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))
    basis_DP: NDArray[np.float64] = vectors_DD[:, :width] @ turn_PP
    return basis_DP
