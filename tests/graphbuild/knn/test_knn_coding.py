"""Shortened vectors: the bound holds for every pair, and no coding changes the graph."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_graph import brute_force, clustered_vectors, unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.knn.engines import widths
from graphbuild.knn.engines.coding import FORMATS, Coding, eigenvectors, leading_basis, multiply
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.store.files import shard_ranges


def upper_bounds(coding: Coding, vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """The bound of every pair, in float32, as the kernel evaluates it up to the order of its roundings."""
    codes, facts = coding.encode(vectors)
    scores = coding.new_scores(len(vectors), len(vectors))
    multiply(codes, codes, scores)
    scaled = scores.numpy().astype(np.float32) * facts.scales * facts.scales[:, None]
    return scaled + facts.rests * facts.rests[:, None] + facts.errors + facts.errors[:, None]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_upper_bound_holds_for_every_pair(data: st.DataObject) -> None:
    dim = data.draw(st.sampled_from([4, 32, 63, 384]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # From flat spectra to ones that a few coordinates hold.
    decay = data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    vectors = unit_rows(rng.standard_normal((120, dim)) * np.arange(1, dim + 1) ** -decay + data.draw(st.sampled_from([0.0, 0.3])))
    form, width = data.draw(st.sampled_from(FORMATS)), data.draw(st.integers(1, dim))
    # Of other vectors, too: any orthonormal columns give a bound.
    basis = leading_basis(eigenvectors(data.draw(st.sampled_from([vectors, unit_rows(rng.standard_normal((50, dim)))]))), width)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    for coding in (Coding(form), Coding(form, basis)):
        assert (upper_bounds(coding, vectors) >= exact).all()


def test_bound_of_int8_is_close() -> None:
    vectors = clustered_vectors(300, 384)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    assert (upper_bounds(Coding("int8"), vectors) - exact).max() < 0.04


def adversarial(name: str, rng: np.random.Generator) -> NDArray[np.float16]:
    plain = rng.standard_normal((900, 48)) * np.arange(1, 49) ** -1.0
    if name == "duplicates":
        plain[rng.permutation(900)[:400]] = plain[0]
    elif name == "hub":
        plain = plain - plain.mean(axis=0)
        plain[0] = plain[1:200].sum(axis=0) + 3 * rng.standard_normal(48)
        plain[1:200] += 0.5 * plain[0]
    elif name == "orthogonal to the prefix":
        plain[:, 24:] = 0
        plain[600:, :24], plain[600:, 24:] = 0, rng.standard_normal((300, 24))
    elif name == "flat":
        plain = rng.standard_normal((900, 48))
    elif name == "fewer than the width":
        plain = plain[:30]
    return unit_rows(plain)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["duplicates", "hub", "orthogonal to the prefix", "flat", "fewer than the width"])
def test_no_format_or_width_changes_the_graph(form: str, name: str) -> None:
    vectors = adversarial(name, np.random.default_rng(0))
    expected = brute_force(vectors, 20)
    # From the first half, so that the second is what no prefix was made for.
    columns = eigenvectors(vectors[: len(vectors) // 2])
    for basis in (None, *(leading_basis(columns, width) for width in (1, 16, 40, 48))):
        engine = TileEngine(vectors, k=20, memory_limit=10**9, precision=Coding(form, basis))
        (found,) = engine.search(shard_ranges(len(vectors), len(vectors)))
        np.testing.assert_array_equal(found.ids_nK, expected[0])
        np.testing.assert_array_equal(found.similarities_nK, expected[1])


def test_coding_of_few_texts_keeps_all_coordinates_and_names_itself() -> None:
    vectors = clustered_vectors(500, 64)
    coding = widths.choose_coding(vectors, 10).coding
    assert coding.name(64) == widths.fastest_format(64)
    assert Coding("int8", leading_basis(eigenvectors(vectors), 32)).name(64) == "int8, 32 of 64 coordinates"


def test_coding_of_vectors_in_few_dimensions_keeps_those() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.standard_normal((9000, 48)) @ rng.standard_normal((48, 384)))
    coding = widths.choose_coding(vectors, 100, count=10**6).coding
    assert coding.width(384) <= 192
