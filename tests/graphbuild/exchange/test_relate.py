"""Graphs of metadata: every kernel and their combinations against a brute force of their formulas; and bad input."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import file_times
from sklearn.feature_extraction.text import TfidfVectorizer

from graphbuild.cli import cli
from graphbuild.embed.encoder import load_encoder
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.nearest import nearest_texts
from graphbuild.errors import ArtifactError, OptionError, SourceError
from graphbuild.exchange.relate.config import RelateConfig, RelateResult
from graphbuild.exchange.relate.stage import relate_columns
from graphbuild.exchange.subset import SubsetConfig, subset_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.inspect import summarize
from graphbuild.quality.status import graph_status
from graphbuild.quality.verify import verify_graph
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.targets.samples import batch_similarity

COUNT = 90
TREE = {"dog": "canine", "wolf": "canine", "canine": "animal", "cat": "animal", "car": "thing", "animal": "root", "thing": "root"}


def _columns() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = ["red", "green", "blue", "grey", "black"]
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=int(day)) for day in rng.integers(0, 400, COUNT)]
    return {
        "key": [f"key {i}" for i in range(COUNT)],
        "colour": [names[i] for i in rng.integers(0, 5, COUNT)],
        "kind": [["dog", "wolf", "cat", "car"][i] for i in rng.integers(0, 4, COUNT)],
        "tags": [[f"tag{one}" for one in rng.choice(12, size=rng.integers(1, 5), replace=False)] for _ in range(COUNT)],
        "year": rng.integers(1950, 2020, COUNT),
        "hour": rng.uniform(0, 24, COUNT),
        "day": days,
        "lat": rng.uniform(-90, 90, COUNT),
        "lon": rng.uniform(-180, 180, COUNT),
        "title": [f"title {i % 60} of {i}" for i in range(COUNT)],
    }


COLUMNS = _columns()


def _source(tmp_path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({**COLUMNS, **columns}), tmp_path / "rows.parquet")
    (tmp_path / "tree.tsv").write_text("".join(f"{child}\t{parent}\n" for child, parent in TREE.items()))
    return tmp_path / "rows.parquet"


def _relate(tmp_path: Path, *kernels: str, source: Path | None = None, **options: Any) -> RelateResult:
    source = source or _source(tmp_path)
    config = RelateConfig(sources=(str(source),), kernels=kernels, **{"id_column": "key", "shard_size": 40, **options})
    return relate_columns(tmp_path / "g", config)


def _pairs(function: Callable[[Any, Any], float], *names: str) -> np.ndarray:
    """A function of the values of two rows, for all pairs."""
    values = [tuple(COLUMNS[name][i] for name in names) if len(names) > 1 else COLUMNS[names[0]][i] for i in range(COUNT)]
    return np.array([[function(one, other) for other in values] for one in values])


def _bell(distance: float, width: float) -> float:
    return math.exp(-(distance**2) / (2 * width**2))


def _haversine(one: tuple[float, float], other: tuple[float, float]) -> float:
    (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, place)) for place in (one, other))
    part = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(min(1, part)))


def _path_similarity(one: str, other: str) -> float:
    def up(name: str) -> list[str]:
        return [name, *(up(TREE[name]) if name in TREE else [])]

    return max(1 / (1 + up(one).index(shared) + up(other).index(shared)) for shared in set(up(one)) & set(up(other)))


def _idf_cosine() -> np.ndarray:
    weights = TfidfVectorizer(analyzer=lambda tags: tags).fit_transform(COLUMNS["tags"]).toarray()
    return weights @ weights.T


def _titles() -> np.ndarray:
    encoder = load_encoder(find_encoder("hashing:24").with_precision("float32"))
    vectors = encoder.encode(encoder.tokenize(COLUMNS["title"])[0]).astype(np.float16).astype(np.float64)
    return vectors @ vectors.T


def _jaccard(one: list[str], other: list[str]) -> float:
    return len(set(one) & set(other)) / len(set(one) | set(other))


EXACT: dict[str, Callable[[], np.ndarray]] = {
    "colour=category": lambda: _pairs(lambda a, b: float(a == b), "colour"),
    "kind=taxonomy:{tmp}/tree.tsv": lambda: _pairs(_path_similarity, "kind"),
    "tags=tags": lambda: _pairs(_jaccard, "tags"),
    "tags=tags:idf": _idf_cosine,
    "year=number:5": lambda: _pairs(lambda a, b: _bell(float(a) - float(b), 5), "year"),
    "hour=angle:24:2": lambda: _pairs(lambda a, b: _bell(min(abs(a - b), 24 - abs(a - b)), 2), "hour"),
    "day=date:30d": lambda: _pairs(lambda a, b: _bell((a - b).days, 30), "day"),
    "lat,lon=place:2000km": lambda: _pairs(lambda a, b: _bell(_haversine(a, b), 2000), "lat", "lon"),
    "title=text:hashing:24": _titles,
}


def _check(graph_dir: Path, exact: np.ndarray, k: int) -> None:
    """The stored rows are those of a brute force over samples, of which equal ones are one text."""
    graph = Graph.open(graph_dir)
    texts = graph.sample_texts(COLUMNS["key"]).text_ids
    first = np.array([int(np.flatnonzero(texts == text)[0]) for text in range(graph.n_texts)])
    by_text = exact[np.ix_(first, first)]
    np.testing.assert_allclose(exact, by_text[np.ix_(texts, texts)], atol=1e-12)
    np.fill_diagonal(by_text, -np.inf)
    rows = graph.rows(np.arange(graph.n_texts))
    k = min(k, graph.n_texts - 1)
    assert graph.k == k
    kept = np.take_along_axis(by_text, rows.neighbor_ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(np.sort(kept, axis=1), np.sort(by_text, axis=1)[:, -k:], atol=1e-9)
    np.testing.assert_array_less(np.abs(rows.similarities - kept), np.spacing(np.abs(kept).astype(np.float16)) * 0.51 + 1e-12)
    # Ties go to the lower id, also about the last place.
    for row in range(graph.n_texts):
        rounded = np.round(by_text[row], 9)
        right = np.lexsort((np.arange(graph.n_texts), -rounded))[:k]
        assert set(rows.neighbor_ids[row]) == set(right)
    order = np.lexsort((rows.neighbor_ids, -rows.similarities.astype(np.float64)))
    assert np.array_equal(order, np.broadcast_to(np.arange(k), order.shape))


@pytest.mark.parametrize("kernel", EXACT)
def test_neighbours_by_a_kernel_are_those_of_a_brute_force(tmp_path: Path, kernel: str) -> None:
    _relate(tmp_path, kernel.format(tmp=tmp_path), k=7)
    _check(tmp_path / "g", EXACT[kernel](), 7)
    assert verify_graph(tmp_path / "g").method == "relate"


def test_weighted_mean_of_kernels_is_that_of_a_brute_force(tmp_path: Path) -> None:
    parts = [EXACT[kernel]() for kernel in EXACT]
    weights = np.arange(1.0, len(parts) + 1)
    _relate(tmp_path, *(kernel.format(tmp=tmp_path) for kernel in EXACT), weights=tuple(weights), k=9)
    _check(tmp_path / "g", np.tensordot(weights / weights.sum(), np.stack(parts), axes=1), 9)


def test_product_of_kernels_is_that_of_a_brute_force(tmp_path: Path) -> None:
    chosen = ("kind=taxonomy:{tmp}/tree.tsv", "year=number:5", "title=text:hashing:24")
    _relate(tmp_path, *(kernel.format(tmp=tmp_path) for kernel in chosen), rule="product", k=5)
    _check(tmp_path / "g", np.prod([np.maximum(EXACT[kernel](), 0) for kernel in chosen], axis=0), 5)


def test_more_texts_than_a_tile_has_columns_give_the_neighbours_of_a_brute_force(tmp_path: Path) -> None:
    count = 4500
    rng = np.random.default_rng(1)
    table = pa.table({"x": rng.integers(0, 3000, count), "c": rng.integers(0, 9, count)})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = tmp_path / "rows.parquet"
    _relate(tmp_path, "x=number:40", "c=category", source=source, id_column=None, shard_size=2000, k=20)
    graph = Graph.open(tmp_path / "g")
    samples = pq.read_table(sorted((tmp_path / "g" / "samples").iterdir()))
    first = np.unique(samples["text_id"].to_numpy(), return_index=True)[1]
    x, c = (samples[name].to_numpy()[first].astype(np.float64) for name in ("x", "c"))
    for row in (0, 129, 2001, graph.n_texts - 1):
        exact = 0.5 * np.exp(-((x - x[row]) ** 2) / (2 * 40**2)) + 0.5 * (c == c[row])
        exact[row] = -1
        right = np.lexsort((np.arange(len(x)), -np.round(exact, 9)))[:20]
        assert set(graph.rows([row]).neighbor_ids[0]) == set(right)


def test_close_places_keep_their_digits(tmp_path: Path) -> None:
    metres = np.array([0.0, 1.0, 2.0, 5.0])
    lat = 48.0 + metres / 111_194.93
    pq.write_table(pa.table({"key": list("abcd"), "at": [[one, 11.5] for one in lat]}), tmp_path / "rows.parquet")
    _relate(tmp_path, "at=place:2m", source=tmp_path / "rows.parquet")
    rows = Graph.open(tmp_path / "g").rows([0])
    np.testing.assert_allclose(rows.similarities[0], np.exp(-(metres[1:] ** 2) / 8), atol=1e-3)


def test_equal_samples_are_one_text_and_columns_are_kept(tmp_path: Path) -> None:
    result = _relate(tmp_path, "colour=category", keep_columns=("year",))
    assert result.counts == {"samples": COUNT, "texts": 5}
    samples = pq.read_table(sorted((tmp_path / "g" / "samples").iterdir()))
    assert samples["colour"].to_pylist() == COLUMNS["colour"]
    assert samples["year"].to_pylist() == COLUMNS["year"].tolist()
    graph = Graph.open(tmp_path / "g")
    assert graph.texts()[0].as_py() == f"colour {COLUMNS['colour'][0]}"
    target = batch_similarity(Graph.open(tmp_path / "g"), COLUMNS["key"][:20])
    assert np.array_equal(target, _pairs(lambda a, b: float(a == b), "colour")[:20, :20])


def test_absent_pairs_have_a_value_or_a_bound_and_the_sketch_trains(tmp_path: Path) -> None:
    result = _relate(tmp_path, "tags=tags", k=60)
    exact = EXACT["tags=tags"]()
    known = result.facts["absent_known_rows"]
    assert 0 < known <= result.facts["texts"]
    assert result.facts["absent_at_least"] == 0
    loose = _relate(tmp_path, "tags=tags", k=4, overwrite=True)
    assert "pairs that are not stored: 0 to " in loose.summary()
    # Absent pairs come from the sketch: no --absent is needed, and the target is near the exact one.
    target = batch_similarity(Graph.open(tmp_path / "g"), COLUMNS["key"])
    error = target - exact
    assert np.sqrt(np.square(error[~np.eye(COUNT, dtype=bool)]).mean()) < 0.03
    assert loose.facts["sketch_rms_error"] < 0.05


def test_equal_call_does_nothing_other_widths_are_refused_and_a_lost_shard_is_made_again(tmp_path: Path) -> None:
    assert not _relate(tmp_path, "year=number:5", k=4).already_done
    stamps = file_times(tmp_path / "g")
    again = _relate(tmp_path, "year=number:5", k=4)
    assert again.already_done
    assert "already done" in again.summary()
    with pytest.raises(OptionError, match="built with other options"):
        _relate(tmp_path, "year=number:6", k=4)
    path = sorted((tmp_path / "g" / "knn").glob("*.arrow"))[-1]
    held = path.read_bytes()
    path.unlink()
    _relate(tmp_path, "year=number:5", k=4)
    assert path.read_bytes() == held
    others = [one for one in stamps if one.suffix == ".arrow" and one != path]
    assert [file_times(tmp_path / "g")[one] for one in others] == [stamps[one] for one in others]


def test_csv_and_jsonl_give_the_graph_of_parquet(tmp_path: Path) -> None:
    names = [(f"{i:03}", f"{i % 7:03}", f"a{i % 3}, b{i % 5}", f"2024-05-{i % 28 + 1:02}") for i in range(40)]
    rows = [dict(zip(("key", "code", "tags", "day"), row, strict=True)) for row in names]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["key,code,tags,day", *(f'{row["key"]},{row["code"]},"{row["tags"]}",{row["day"]}' for row in rows)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    found = []
    for kind in ("parquet", "csv", "jsonl"):
        (tmp_path / kind).mkdir()
        _relate(tmp_path / kind, "code=category", "tags=tags", "day=date:1w", source=tmp_path / f"rows.{kind}", k=5)
        graph = Graph.open(tmp_path / kind / "g")
        rows_held = graph.rows(np.arange(graph.n_texts))
        found.append((graph.texts().to_pylist(), rows_held.neighbor_ids.tolist(), rows_held.similarities.tolist()))
    assert found[0] == found[1] == found[2]
    assert found[0][0][0] == "code 000 · tags a0, b0 · day 2024-05-01"


def test_command_line_relates_and_status_and_inspect_take_the_graph(tmp_path: Path) -> None:
    arguments = ["relate", "--source", str(_source(tmp_path)), "--id-column", "key", "--kernel", "tags=tags:idf"]
    arguments += ["--kernel", "lat,lon=place:500km", "--weights", "3,1", "--k", "6", "--graph-dir", str(tmp_path / "g"), "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["k"] == 6
    assert Manifest.load(tmp_path / "g").stages["knn"].config["weights"] == [0.75, 0.25]
    assert [stage.state for stage in graph_status(tmp_path / "g").stages] == ["done"] * 3
    certified = next(one for one in summarize(tmp_path / "g").health.measures if one.key == "certified")
    assert certified.value == 1


BAD_KERNELS = [
    ("colour", "give COLUMN=KIND"),
    ("colour=shape", "give COLUMN=KIND"),
    ("colour=category:5", "is not COLUMN=category"),
    ("kind=taxonomy", "is not COLUMN=taxonomy:FILE"),
    ("year=number", "is not COLUMN=number:WIDTH"),
    ("year=number:five", "is not COLUMN=number:WIDTH"),
    ("year=number:0", "Widths and periods are over zero"),
    ("year=number:-5", "Widths and periods are over zero"),
    ("year=number:1e999", "Widths and periods are over zero"),
    ("hour=angle:24", "is not COLUMN=angle:PERIOD:WIDTH"),
    ("hour=angle:0:2", "Widths and periods are over zero"),
    ("day=date:30", "is not COLUMN=date:WIDTH in"),
    ("lat,lon=place:50mi", "is not COLUMN=place:WIDTH in"),
    ("a,b,c=place:50km", "a place is one column of pairs, or two"),
]


@pytest.mark.parametrize(("kernel", "words"), BAD_KERNELS)
def test_kernel_that_says_nothing_usable_is_refused(tmp_path: Path, kernel: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        _relate(tmp_path, kernel)
    assert not (tmp_path / "g").exists()


BAD_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("size=number:5", {}, "no column 'size'; the columns are: key, colour"),
    ("title=number:5", {}, "column 'title' holds string, not numbers"),
    ("year=text", {}, "column 'year' holds int64, not text"),
    ("hour=category", {}, "column 'hour' holds double, not text or whole numbers"),
    ("year=date:30d", {}, "column 'year' holds int64, not dates"),
    ("year=tags", {}, "column 'year' holds int64, not lists of tags"),
    ("year=place:5km", {}, "column 'year' holds int64, not pairs of a latitude and a longitude"),
    ("x=number:5", {"x": [1.0] * 3 + [math.nan] + [2.0] * (COUNT - 4)}, "row 3 of column 'x' is NaN or infinity"),
    ("x=number:5", {"x": [1.0, None] * (COUNT // 2)}, "row 1 of column 'x' is empty"),
    ("x,lon=place:5km", {"x": [0.0] * 9 + [91.0] + [0.0] * (COUNT - 10)}, "row 9 of column 'x,lon' has the latitude 91, beyond 90"),
    ("x=place:5km", {"x": [[1.0, 2.0]] * 4 + [[1.0]] + [[1.0, 2.0]] * (COUNT - 5)}, "row 4 of column 'x' is no pair"),
    ("x=tags", {"x": [["a"]] * 2 + [[]] + [["b"]] * (COUNT - 3)}, "row 2 of column 'x' has no tag"),
    ("x=tags", {"x": ["a"] * 2 + [" , "] + ["b"] * (COUNT - 3)}, "row 2 of column 'x' has no tag"),
    ("x=text:hashing:8", {"x": ["a"] * 2 + ["  "] + ["b"] * (COUNT - 3)}, "row 2 of column 'x' is blank"),
    ("x=date:1d", {"x": ["2020-01-01", "yesterday"] * (COUNT // 2)}, "row 1 of column 'x' is 'yesterday', and no date"),
    ("x=taxonomy:{tmp}/tree.tsv", {"x": ["dog", "fish"] * (COUNT // 2)}, "1 of 2 categories are not in it, such as 'fish'"),
    ("kind=taxonomy:{tmp}/none.tsv", {}, r"none\.tsv: no such taxonomy"),
]


@pytest.mark.parametrize(("kernel", "columns", "words"), BAD_VALUES)
def test_value_that_cannot_be_compared_is_named_with_its_row(
    tmp_path: Path, kernel: str, columns: dict[str, Any], words: str
) -> None:
    with pytest.raises(SourceError, match=words):
        _relate(tmp_path, kernel.format(tmp=tmp_path), source=_source(tmp_path, **columns))


def test_taxonomy_with_a_circle_or_a_broken_line_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path)
    for text, words in (("dog\twolf\nwolf\tdog\ncat\tcar\n", "is its own ancestor"), ("dog wolf\n", "line 1 is not CATEGORY")):
        (tmp_path / "bad.tsv").write_text(text)
        with pytest.raises(SourceError, match=words):
            _relate(tmp_path, f"kind=taxonomy:{tmp_path}/bad.tsv", source=source)


def test_ids_that_repeat_weights_that_do_not_fit_and_other_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'key 1' comes twice, in row 1 of .* and row 2 of .*rows\.parquet"):
        _relate(tmp_path, "year=number:5", source=_source(tmp_path, key=["key 0", "key 1", "key 1", *COLUMNS["key"][3:]]))
    with pytest.raises(OptionError, match="2 for 1 kernels"):
        _relate(tmp_path, "year=number:5", weights=(1.0, 2.0))
    with pytest.raises(OptionError, match="--rule product has none"):
        _relate(tmp_path, "year=number:5", weights=(1.0,), rule="product")
    with pytest.raises(OptionError, match="relate needs --kernel"):
        _relate(tmp_path)
    with pytest.raises(OptionError, match="one is given twice"):
        _relate(tmp_path, "year=number:5", "year=number:5")


def test_commands_that_need_vectors_say_that_there_are_none(tmp_path: Path) -> None:
    _relate(tmp_path, "year=number:5", k=4)
    with pytest.raises(ArtifactError, match=r"has no vectors, which this command needs: .*`graphbuild relate`"):
        build_knn(tmp_path / "g", KnnConfig())
    with pytest.raises(ArtifactError, match="has no vectors"):
        subset_graph(tmp_path / "g", tmp_path / "s", SubsetConfig(keep=_source(tmp_path)))
    with pytest.raises(OptionError, match="only its own texts can be asked for"):
        nearest_texts(tmp_path / "g", "a dog")
    assert nearest_texts(tmp_path / "g", Graph.open(tmp_path / "g").texts()[3].as_py(), count=3).found[0].text_id == 3


def test_one_row_is_a_graph_without_neighbours(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "year": [1999]}), tmp_path / "rows.parquet")
    result = _relate(tmp_path, "year=number:5", source=tmp_path / "rows.parquet")
    assert (result.k, result.facts["complete"]) == (0, True)
    assert verify_graph(tmp_path / "g").k == 0
