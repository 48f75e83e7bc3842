"""The report's page and figures: what comes from outside is escaped, and nothing outside is referred to."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from graphbuild.system.pages.charts import linear_axis
from train.results.report.figures import Curve, line_chart, matrix_image, off_diagonal_range, picture
from train.results.report.page import (
    Cell,
    CurveFigure,
    Hit,
    HitRow,
    MatrixFigure,
    Neighborhoods,
    Page,
    Place,
    Query,
    ResultRow,
    Results,
    RunHead,
    render_page,
)

HOSTILE = "<script>alert(1)</script> \"quoted' & {{ 7 * 7 }} </style> http://evil.example/x.png"


class _Tags(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _page(words: str) -> Page:
    pixels = np.zeros((3, 8, 8), np.uint8)
    chart = line_chart([Curve(words, 0, [0, 1, 2], [3.0, 2.0, 1.5])], x_label="step", y_label="nats")
    assert chart is not None
    hit = Hit(picture(pixels), words, (True, False))
    return Page(
        title=words,
        subtitle=words,
        runs=(RunHead(words, 0),),
        conditions=((words, (words,)),),
        remarks=(words,),
        results=(Results(words, ((words, (words,)),), (ResultRow(words, (Cell(words),), 0),)),),
        curves=(CurveFigure(words, chart, words),),
        places=(_place(words, hit, picture(pixels)),) * 2,
    )


def _place(words: str, hit: Hit, image: str) -> Place:
    rows = (HitRow(words, None, (hit,)), HitRow(words, 0, (hit,)))
    return Place(
        title=words,
        matrices=(MatrixFigure(words, matrix_image(np.eye(4, dtype=np.float32)), words),),
        matrices_how=words,
        matrices_order=words,
        neighborhoods=(Neighborhoods(words, (Query(image, words, rows),), (words,)),),
    )


def _parsed(page: Page) -> _Tags:
    tags = _Tags()
    tags.feed(render_page(page))
    return tags


def test_hostile_words_become_no_tag() -> None:
    hostile, harmless = _parsed(_page(HOSTILE)), _parsed(_page("plain"))
    assert hostile.tags == harmless.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in harmless.attributes]


def test_hostile_words_are_shown_as_they_stand() -> None:
    assert sum(HOSTILE in text for text in _parsed(_page(HOSTILE)).text) > 10


def test_page_refers_to_nothing_outside() -> None:
    html = render_page(_page("plain"))
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe", html)
    sources = [value for name, value in _parsed(_page("plain")).attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert sources
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)


def test_page_with_nothing_but_runs_is_complete() -> None:
    html = render_page(Page(title="t", subtitle="s", runs=(RunHead("one", 0),), conditions=()))
    assert html.rstrip().endswith("</html>")


def test_page_has_a_theme_for_dark_and_a_layout_for_phones() -> None:
    html = render_page(_page("plain"))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_chart_takes_its_colours_from_the_page() -> None:
    chart = line_chart([Curve("a", 0, [0, 1], [1, 2]), Curve("b", 3, [0, 1], [2, 1])], x_label="step", y_label="nats")
    assert chart is not None
    assert 'class="line run-0"' in chart
    assert 'class="line run-3"' in chart


def test_a_curve_of_one_point_is_a_dot_and_a_seventh_run_has_a_colour() -> None:
    chart = line_chart([Curve("a", 6, [5], [1])], x_label="step", y_label="nats")
    assert chart is not None
    assert 'class="dot run-0"' in chart


def test_a_constant_has_an_axis_of_its_own() -> None:
    axis = linear_axis("hit rate", 31, 31)
    assert (axis.low, axis.high, [text for _, text in axis.ticks]) == (31, 32, ["31", "32"])


def test_chart_of_a_long_run_stays_small() -> None:
    chart = line_chart([Curve("a", 0, range(100_000), np.random.default_rng(0).random(100_000).tolist())], x_label="x", y_label="y")
    assert chart is not None
    assert len(chart) < 100_000


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), float("nan")]])
def test_chart_without_a_finite_point_is_left_out(values: list[float]) -> None:
    assert line_chart([Curve("a", 0, range(len(values)), values)], x_label="x", y_label="y") is None


def test_picture_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7), dtype=np.uint8)
    decoded = Image.open(io.BytesIO(base64.b64decode(picture(pixels).split(",")[1])))
    assert np.array_equal(np.asarray(decoded).transpose(2, 0, 1), pixels)


def test_a_large_picture_is_made_smaller() -> None:
    decoded = Image.open(io.BytesIO(base64.b64decode(picture(np.zeros((3, 300, 600), np.uint8)).split(",")[1])))
    assert decoded.size == (112, 56)


def test_matrix_scale_leaves_the_diagonal_out() -> None:
    matrix = np.full((50, 50), 0.3, np.float32)
    matrix[0, 1] = matrix[1, 0] = 0.2
    np.fill_diagonal(matrix, 1.0)
    low, high = off_diagonal_range(matrix)
    assert high == pytest.approx(0.3)
    assert low >= 0.2
