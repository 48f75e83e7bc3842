"""Kernels: similarities of metadata values, tile by tile, in float64. Every value has similarity 1 with itself.

Shape letters: N texts, r rows and c columns of a tile, C categories, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from graphbuild.exchange.relate.spec import KernelSpec
from graphbuild.exchange.relate.taxonomy import path_similarities
from graphbuild.exchange.relate.values import Values
from graphbuild.knn.blockwise import Rows, Similarity, Tile

_EARTH_KILOMETRES = 6371.0088
"""Mean radius (IUGG)."""
Embed = Callable[[str, str, list[str]], NDArray[np.float16]]
"""Unit vectors of some texts, by the encoder of a name at a precision."""


class Equal:
    """1 where two categories are equal, else 0."""

    least = 0.0

    def __init__(self, values: Values) -> None:
        _, self._codes_N = number(values)

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        equal: Tile = (self._codes_N[rows][:, None] == self._codes_N[columns]).astype(np.float64)
        return equal


class Table:
    """A similarity for each pair of categories."""

    def __init__(self, values: Values, similarities: Callable[[list[str]], Tile]) -> None:
        names, self._codes_N = number(values)
        self._table_CC = similarities(cast("list[str]", names))
        self.least = float(self._table_CC.min())

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        return self._table_CC[self._codes_N[rows][:, None], self._codes_N[columns]]


class Gaussian:
    """exp(-d^2 / 2 w^2) of the difference of two numbers; with a period, of the shorter way round."""

    least = 0.0

    def __init__(self, values: Values, width: float, period: float = 0.0) -> None:
        self._numbers_N = np.array(values, np.float64)
        self._width, self._period = width, period
        if period:
            self._numbers_N %= period

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        apart = np.subtract.outer(self._numbers_N[rows], self._numbers_N[columns])
        if self._period:
            np.abs(apart, out=apart)
            np.minimum(apart, self._period - apart, out=apart)
        return _bell(apart, self._width)


class Place:
    """exp(-d^2 / 2 w^2) of the great-circle distance of two places, on a sphere."""

    least = 0.0

    def __init__(self, values: Values, width: float) -> None:
        latitude_N, longitude_N = np.radians(np.array(values, np.float64)).T
        self._points_3N = np.stack(
            [np.cos(latitude_N) * np.cos(longitude_N), np.cos(latitude_N) * np.sin(longitude_N), np.sin(latitude_N)]
        )
        self._width = width / _EARTH_KILOMETRES

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        # By the chord, which keeps its digits where places are close and a product of coordinates is nearly 1.
        apart = sum(np.square(np.subtract.outer(axis_N[rows], axis_N[columns])) for axis_N in self._points_3N)
        half = np.minimum(np.sqrt(apart) / 2, 1.0)
        return _bell(2 * np.arcsin(half), self._width)


class Tags:
    """Jaccard similarity of two sets of tags, or the cosine of their IDF weights."""

    least = 0.0

    def __init__(self, values: Values, counts_N: NDArray[np.integer], *, idf: bool) -> None:
        """Enter the sets.

        Args:
            values: Tags of each text.
            counts_N: Samples of each text, among which a tag is rare or common.
            idf: Whether tags are weighted: ln((1 + S) / (1 + samples that have the tag)) + 1.
        """
        sets = cast("list[tuple[str, ...]]", values)
        _, codes = number([tag for one in sets for tag in one])
        starts = np.concatenate([[0], np.cumsum([len(one) for one in sets])])
        ones = scipy.sparse.csr_array((np.ones(len(codes)), codes, starts), shape=(len(sets), int(codes.max()) + 1))
        self._idf = idf
        weights = np.log((1 + counts_N.sum()) / (1 + ones.T @ counts_N)) + 1 if idf else np.ones(ones.shape[1])
        self._sets = scipy.sparse.csr_array((weights[codes], codes, starts), shape=ones.shape)
        self._sets.sort_indices()
        self._sizes_N = self._sets.multiply(self._sets).sum(axis=1)

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        shared: Tile = (self._sets[rows] @ self._sets[columns].T).toarray()
        of_rows, of_columns = self._sizes_N[rows], self._sizes_N[columns]
        whole = np.sqrt(np.multiply.outer(of_rows, of_columns)) if self._idf else np.add.outer(of_rows, of_columns) - shared
        shared /= whole
        return shared


class Inner:
    """Inner product of unit vectors, as stored in float16."""

    least = -1.0

    def __init__(self, vectors_CD: NDArray[np.float16], codes_N: NDArray[np.integer]) -> None:
        self._vectors_CD, self._codes_N = vectors_CD, codes_N

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        left, right = (self._vectors_CD[self._codes_N[one]].astype(np.float64) for one in (rows, columns))
        products: Tile = left @ right.T
        return products


class Mean:
    """Weighted mean of several similarities; weights sum to 1."""

    def __init__(self, parts: Sequence[Similarity], weights: Sequence[float]) -> None:
        self._parts, self._weights = parts, weights
        self.least = sum(weight * part.least for part, weight in zip(parts, weights, strict=True))

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        total: Any = 0.0
        for part, weight in zip(self._parts, self._weights, strict=True):
            total = total + weight * part.tile(rows, columns)
        return cast("Tile", total)


class Product:
    """Product of several similarities; a negative one, as texts may have, counts as 0."""

    least = 0.0

    def __init__(self, parts: Sequence[Similarity]) -> None:
        self._parts = parts

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        total: Any = 1.0
        for part in self._parts:
            total = total * np.maximum(part.tile(rows, columns), 0.0)
        return cast("Tile", total)


def number(values: Sequence[Any]) -> tuple[list[Any], NDArray[np.int32]]:
    """Return the distinct values by first appearance, and the number of each value among them."""
    places: dict[Any, int] = {}
    codes = np.fromiter((places.setdefault(value, len(places)) for value in values), np.int32, len(values))
    return list(places), codes


def _bell(apart: Tile, width: float) -> Tile:
    apart *= np.sqrt(0.5) / width
    np.square(apart, out=apart)
    np.negative(apart, out=apart)
    # Which underflows to 0 far away.
    return cast("Tile", np.exp(apart, out=apart))


def make_kernel(spec: KernelSpec, values: Values, counts_N: NDArray[np.integer], embed: Embed) -> Similarity:
    """Make the similarity of N texts by one column.

    Args:
        spec: Which kernel.
        values: The value of each text.
        counts_N: Samples of each text.
        embed: Makes the vectors of texts.

    Raises:
        SourceError: If a category is not in its taxonomy.
    """
    if spec.kind == "text":
        texts, codes_N = number(values)
        return Inner(embed(spec.detail, spec.precision, texts), codes_N)
    makers: Mapping[str, Callable[[], Similarity]] = {
        "category": lambda: Equal(values),
        "taxonomy": lambda: Table(values, lambda names: path_similarities(Path(spec.detail), names)),
        "tags": lambda: Tags(values, counts_N, idf=spec.detail == "idf"),
        "number": lambda: Gaussian(values, spec.width),
        "date": lambda: Gaussian(values, spec.width),
        "angle": lambda: Gaussian(values, spec.width, spec.period),
        "place": lambda: Place(values, spec.width),
    }
    return makers[spec.kind]()
