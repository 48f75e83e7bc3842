"""`write_report` on real runs over hostile captions: what it shows, and what it refuses."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_train import draw, encode, tiny_config

import graphbuild
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import ArtifactError, OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.data.prepare import OpenData, open_data
from train.evaluate.options import EvalOptions
from train.evaluate.run import evaluate_run
from train.results.report.neighbors import find_neighborhoods
from train.results.report.runs import RunRecord, distinct_names, read_runs, results
from train.results.report.write import write_report
from train.run.loop import settle, train

HOSTILE = "<script>alert('x')</script> & {{ 7 * 7 }} <img src=http://evil.example/a.png>"


class _Reader(HTMLParser):
    """Collects tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def _write_pictures(path: Path, first: int, count: int, *, broken: int | None = None) -> Path:
    indices = range(first, first + count)
    columns = {
        "image": pa.array([b"no image" if i == broken else encode(draw(i)) for i in indices], pa.binary()),
        "id": [f"img-{i}" for i in indices],
        "caption": [f"{HOSTILE} number {i} of class {i % 5}" for i in indices],
        "label": [f"<b>class {i % 5}</b>" for i in indices],
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph, two runs (one evaluated), and held-out pictures; one picture of each side cannot be read."""
    root = tmp_path_factory.mktemp("report")
    data = _write_pictures(root / "train.parquet", 0, 48, broken=7)
    val = _write_pictures(root / "val.parquet", 48, 24, broken=50)
    config = EmbedConfig(dataset="parquet", sources=(str(data),), id_column="id", encoder="hashing:32", workers=0)
    build_embeddings(root / "graph", config)
    build_knn(root / "graph", KnnConfig())
    for objective in ("simclr", "xclr"):
        settings = tiny_config(objective=objective, graph_dir=str(root / "graph"), data=str(data), steps=3)
        train(settings, root / objective)
    evaluate_run(root / "simclr", EvalOptions(data=str(val), label_columns=("label",), device="cpu"))
    return root


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    write_report([folder / "simclr", folder / "xclr"], folder / "out/report.html", data=str(folder / "val.parquet"))
    return (folder / "out/report.html").read_text(encoding="utf-8")


def test_hostile_captions_are_text_and_make_no_tag(html: str) -> None:
    page = _Reader(html)
    assert "<script>alert('x')</script>" in page.text
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert all(str(attributes["src"]).startswith("data:image/png;base64,") for tag, attributes in page.tags if tag == "img")


def test_report_refers_to_nothing_outside_but_in_quoted_captions(html: str) -> None:
    addresses = set(re.findall(r"https?://[^\s\"<&]+", html))
    assert addresses <= {"http://evil.example/a.png"}
    assert not [tag for tag, _ in _Reader(html).tags if tag in ("link", "iframe", "object", "script")]


def test_report_shows_every_section_and_run(html: str) -> None:
    text = _Reader(html).text
    for words in ("Conditions", "Excess loss", "Hit rate", "Own-view mass", "correlation with the captions", "held-out images"):
        assert words in text, words
    assert {"simclr", "xclr", "untrained", "chance"} <= set(text.split())


def test_report_holds_no_path_of_this_machine(html: str, folder: Path) -> None:
    assert str(folder.parent) not in html


def test_matrices_name_the_classes_and_held_out_pictures_show_captions(html: str) -> None:
    page = _Reader(html)
    assert re.search(r"In this order: (<b>class \d</b>(, )?){5}", page.text)
    shown = [str(attributes["title"]) for tag, attributes in page.tags if tag == "div" and "title" in attributes]
    assert len(shown) == 6 * (2 + 3) * 8
    assert all(HOSTILE in caption for caption in shown)


def test_queries_have_neighbours_of_each_run_and_marks(html: str) -> None:
    """Among held-out images by two runs; among training images, which have texts, by the captions first."""
    page = _Reader(html)
    assert sum(attributes.get("class") == "query" for _, attributes in page.tags) == 6 * 2
    assert sum(attributes.get("class") == "strip" for _, attributes in page.tags) == 6 * (2 + 3)
    assert sum(attributes.get("class") == "marks" for _, attributes in page.tags) == 6 * (2 + 3) * 8
    assert sum(attributes.get("class") == "swatch texts" for _, attributes in page.tags) == 6


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[list[RunRecord], OpenData]:
    records = [replace(run, config=settle(run.config)) for run in read_runs([folder / "xclr"])]
    return records, open_data(records[0].config)


def test_the_row_of_captions_has_what_is_nearest_by_the_graph(trained: tuple[list[RunRecord], OpenData]) -> None:
    records, opened = trained
    (among,) = find_neighborhoods(records, records[0], opened, ["label"], None)
    edges = graphbuild.open(opened.graph.path if opened.graph else "").edges.collect()
    texts = opened.graph.texts_of(np.arange(opened.graph.n_texts)) if opened.graph else {}
    ids = {text: text_id for text_id, text in texts.items()}
    # One picture cannot be read, so that its text is nobody's neighbour here.
    broken = next(text_id for text, text_id in ids.items() if " number 7 " in text)
    for query in among.queries:
        row = edges.filter((pl.col("src") == ids[query.caption]) & (pl.col("dst") != broken)).sort("rank").head(8)
        similarity = dict(zip(row["dst"].to_list(), row["similarity"].to_list(), strict=True))
        assert query.rows[0].name == "captions"
        found = [ids[hit.caption] for hit in query.rows[0].hits]
        assert [similarity[text_id] for text_id in found] == sorted(similarity.values(), reverse=True)


def test_held_out_pictures_have_the_texts_of_their_classes_where_each_class_has_one(tmp_path: Path) -> None:
    captions = [f"class {i % 5}" for i in range(40)]
    columns = {"image": [encode(draw(i)) for i in range(40)], "id": [f"img-{i}" for i in range(40)], "label": captions}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    pq.write_table(pa.table({**columns, "id": [f"val-{i}" for i in range(40)]}), tmp_path / "val.parquet")
    data = str(tmp_path / "train.parquet")
    config = EmbedConfig(
        dataset="parquet", sources=(data,), id_column="id", caption_column="label", encoder="hashing:16", workers=0
    )
    build_embeddings(tmp_path / "graph", config)
    build_knn(tmp_path / "graph", KnnConfig())
    train(tiny_config(objective="xclr", graph_dir=str(tmp_path / "graph"), data=data, steps=1), tmp_path / "run")
    records = [replace(run, config=settle(run.config)) for run in read_runs([tmp_path / "run"])]
    (among,) = find_neighborhoods(records, records[0], open_data(records[0].config), ["label"], str(tmp_path / "val.parquet"))
    assert "held-out images, by the similarity of their captions" in among.how
    for query in among.queries:
        assert [hit.caption for hit in query.rows[0].hits[:7]] == [query.caption] * 7


def test_runs_of_different_images_are_all_shown_on_each(folder: Path, tmp_path: Path) -> None:
    other = _write_pictures(tmp_path / "other.parquet", 100, 24)
    train(tiny_config(objective="simclr", data=str(other), steps=1), tmp_path / "apart")
    write_report([folder / "xclr", folder / "simclr", tmp_path / "apart"], tmp_path / "report.html")
    page = _Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    # The pair on one graph is one place.
    assert sum(attributes.get("class") == "place" for _, attributes in page.tags) == 2
    rows = 6 * (1 + 3) + 6 * 3
    assert sum(attributes.get("class") == "strip" for _, attributes in page.tags) == rows


def record(name: str, knn: float, *, data: str = "val", images: int = 1000) -> RunRecord:
    scores = {"knn_top1": knn, "linear_top1": 0.5, "chance": 0.1, "n_train": 100.0}
    evaluated = {"data": data, "train_data": "train", "images": images, "train_images": 5000}
    return RunRecord(Path(name), name, tiny_config(), [], None, {"trained": {"label": scores}}, evaluated)


@pytest.mark.parametrize(
    ("other", "images", "bold"), [(0.25, 1000, True), (0.29, 1000, False), (0.29, 100_000, True), (0.3, 100_000, False)]
)
def test_the_best_is_bold_only_where_the_images_tell_it_apart(other: float, images: int, bold: bool) -> None:
    (table,) = results([record("one", 0.3, images=images), record("two", other, images=images)])
    cells = {row.name: [cell.best for cell in row.cells] for row in table.rows if not row.reference}
    assert cells == {"one": [bold, False], "two": [False, False]}


def test_a_single_run_has_nothing_to_be_better_than() -> None:
    (table,) = results([record("one", 0.3)])
    assert not any(cell.best for row in table.rows for cell in row.cells)


def test_runs_evaluated_on_different_data_stand_in_tables_of_their_own() -> None:
    tables = results([record("one", 0.3), record("two", 0.9, data="other"), record("three", 0.2)])
    shown = [[row.name for row in table.rows if not row.reference] for table in tables]
    assert shown == [["one", "three"], ["two"]]
    assert [row.color for row in tables[1].rows if not row.reference] == [1]
    assert "of other" in tables[1].how


def test_runs_whose_last_parts_agree_are_told_apart_by_as_much_of_the_path_as_it_takes() -> None:
    paths = [Path("/a/runs/xclr-1"), Path("/b/runs/xclr-1"), Path("/b/runs/simclr-1"), Path("/c/d/simclr-1")]
    assert distinct_names(paths) == ["a/runs/xclr-1", "b/runs/xclr-1", "runs/simclr-1", "d/simclr-1"]


def test_runs_of_one_name_are_told_apart_by_their_folders(folder: Path, tmp_path: Path) -> None:
    for parent in ("first", "second"):
        shutil.copytree(folder / "xclr", tmp_path / parent / "xclr")
    paths = [tmp_path / "first/xclr", tmp_path / "second/xclr"]
    assert [run.name for run in read_runs([*paths, paths[0]])] == ["first/xclr", "second/xclr"]


def test_report_without_evaluation_or_held_out_pictures_uses_training_ones(folder: Path, tmp_path: Path) -> None:
    settings = tiny_config(objective="simclr", data=str(folder / "train.parquet"), steps=1)
    train(settings, tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert "training images" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_error_without_a_run_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no run to report on"):
        write_report([], tmp_path / "report.html")


def test_error_for_a_folder_without_a_run_names_it(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing-here"):
        write_report([tmp_path / "nothing-here"], tmp_path / "report.html")


def test_error_for_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_text(tiny_config().to_toml())
    with pytest.raises(ArtifactError, match=r"not finished.*train run --config"):
        write_report([tmp_path / "run"], tmp_path / "report.html")


def test_error_for_a_damaged_eval_file_says_what_to_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "simclr", tmp_path / "run")
    (tmp_path / "run/eval.json").write_text("{")
    with pytest.raises(ArtifactError, match="train eval"):
        write_report([tmp_path / "run"], tmp_path / "report.html")
