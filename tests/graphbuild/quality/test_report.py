"""`report`: one file that is safe whatever the captions hold, complete, and looks right in a browser."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph
from PIL import Image

from graphbuild.cli import cli
from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.explore.write import ExploreConfig, write_map
from graphbuild.quality.report.map import draw_map
from graphbuild.quality.report.worst import find_worst, rows_that_hold
from graphbuild.quality.report.write import write_report
from graphbuild.quality.view import GraphView
from graphbuild.store.frames import Frames
from graphbuild.system.pages.charts import Line, chart, linear_axis, log_axis

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "</style><style>*{display:none}</style>",
    "<svg/onload=alert(5)>",
    "javascript:alert(6)",
    "{{ 7 * 7 }} {% raw %}",
    "<!-- --><iframe src=//evil.example>",
    "\u202egnippilf & &lt;script&gt;",
    "<math><mi//xlink:href='data:x,alert(7)'>",
    "a very " + "long" * 400,
]
N = 60


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twins, hostile captions, a picture for every other sample, and a broken one."""
    folder = tmp_path_factory.mktemp("report") / "<b>graph</b>"
    vectors = clustered_vectors(N, 16)
    vectors[: len(HOSTILE)] = vectors[0]
    texts = [*HOSTILE, *(f"caption {i}" for i in range(len(HOSTILE), N))]
    ids = [f"sample-{i}-0" for i in range(N)]
    manifest = write_graph(folder, vectors, texts=texts)
    pictures = [b"no picture" if i == 2 else jpeg(i) for i in range(N)]
    pq.write_table(pa.table({"file": ids[::2], "image": pictures[::2]}), folder / "pictures.parquet")
    manifest.dataset = {
        "name": "<script>alert(8)</script>",
        "images": {"kind": "parquet", "path": "pictures.parquet", "image_column": "image", "id_column": "file"},
    }
    manifest.counts["blank_captions"] = 3
    manifest.save(folder)
    build_knn(folder, KnnConfig(k=15))
    return folder


@pytest.fixture(scope="module")
def page(graph_dir: Path) -> str:
    """With the map that `graphbuild explore` left."""
    write_map(graph_dir, ExploreConfig(images=False))
    return write_report(graph_dir, batch_size=32).out.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every element with its attributes, and the text outside style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """So few texts that hubs, isolated texts and neighbourhoods list them all."""
    folder = tmp_path_factory.mktemp("hostile")
    write_graph(folder, clustered_vectors(len(HOSTILE), 8), texts=HOSTILE)
    build_knn(folder, KnnConfig(k=5))
    return write_report(folder, batch_size=8).out.read_text(encoding="utf-8")


@pytest.mark.parametrize("fixture", ["page", "hostile_page"])
def test_no_caption_becomes_an_element_or_an_attribute(fixture: str, request: pytest.FixtureRequest) -> None:
    tags = Tags(request.getfixturevalue(fixture)).found
    assert not {name for name, _ in tags} & {"script", "iframe", "math", "object", "embed", "link"}
    assert not [key for _, attributes in tags for key in attributes if key.startswith("on")]
    assert sum(name == "style" for name, _ in tags) == 1


def test_every_hostile_caption_is_shown_as_it_is(hostile_page: str) -> None:
    shown = Tags(hostile_page).text
    assert all(caption in shown for caption in HOSTILE)


def test_hostile_names_of_the_graph_are_escaped(page: str) -> None:
    assert html.escape("<script>alert(8)</script>") in page
    assert html.escape("<b>graph</b>") in page


def test_the_page_asks_for_nothing_outside_itself(page: str) -> None:
    for _, attributes in Tags(page).found:
        for key in ("src", "href", "srcset", "xlink:href", "action"):
            assert (attributes.get(key) or "data:").startswith("data:"), attributes
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_pictures_are_shown_where_there_are_some_and_missing_ones_counted(page: str) -> None:
    assert page.count('src="data:image/jpeg;base64,') > 3
    assert re.search(r"\d+ of \d+ pictures could not be read\.", page)


def test_warnings_come_before_figures_and_name_what_was_left_out(page: str) -> None:
    assert page.index("3 captions are blank and were left out") < page.index("<h2>Key figures</h2>")


def test_metrics_hold_every_figure_of_the_page(graph_dir: Path, page: str) -> None:
    metrics = json.loads((graph_dir / "report/metrics.json").read_text())
    assert len(metrics["measures"]) > 8
    assert all(one["title"] in Tags(page).text for one in metrics["measures"])


def test_fidelity_has_a_row_for_every_choice_of_storage(graph_dir: Path, page: str) -> None:
    metrics = json.loads((graph_dir / "report/metrics.json").read_text())["fidelity"]
    table = page.split("<h2>Fidelity of the target</h2>")[1].split("</table>")[0]
    rows = [re.findall(r">([\d.,]+)</td>", row) for row in table.split("<tr>")[3:]]
    for choice in metrics["storage"]:
        (row,) = [row for row in rows if row[:2] == [str(choice["k"]), str(choice["sketch_dim"])]]
        at = 3 + 2 * sorted({one["tau_s"] for one in metrics["storage"]}).index(choice["tau_s"])
        assert row[at : at + 2] == [f"{choice['kl_random']:.4f}", f"{choice['kl_neighbors']:.4f}"]
    assert "KL(dense || assembled) in nats at tau_s 0.1" in page


def test_a_graph_of_a_handful_of_samples_has_a_report_without_fidelity(hostile_page: str) -> None:
    assert "Fidelity of the target" not in hostile_page


def test_the_command_tells_warnings_first(graph_dir: Path, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(cli, ["report", "--no-map", "--graph-dir", str(graph_dir), "--out", str(tmp_path / "r.html")])
    assert outcome.exit_code == 0
    assert outcome.output.startswith("warning: ")
    assert (tmp_path / "metrics.json").exists()


def test_a_complete_graph_without_pictures_has_a_report(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(30, 8))
    build_knn(tmp_path, KnnConfig(k="all"))
    # What a killed process leaves that was writing it.
    left = tmp_path / "report/.metrics.json.99999999-0a1b2c3d.tmp"
    left.parent.mkdir()
    left.write_text("half")
    written = write_report(tmp_path, chart=False, batch_size=16).out.read_text(encoding="utf-8")
    assert "The manifest names no pictures" in written
    assert "every pair stored" in written
    assert "<h2>Map</h2>" not in written
    assert not left.exists()


def test_the_map_stands_on_top_with_hubs_numbered_and_says_how_true_it_is(graph_dir: Path, page: str) -> None:
    top = page.split("<h2>Worst cases</h2>")[0]
    assert top.count('src="data:image/png;base64,') == 1
    assert "are among its 15 nearest on the map" in Tags(top).text
    health = GraphView(graph_dir).health(batch_size=32)
    numbered = re.findall(r"<b style=[^>]*>(\d)</b>", top)
    assert sorted(numbered) == [str(number + 1) for number in range(len(find_worst(GraphView(graph_dir), health).hubs))]


def test_the_map_of_other_texts_is_not_shown(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for number, folder in enumerate(folders):
        write_graph(folder, clustered_vectors(40, 8, seed=number), texts=[f"{number} {i}" for i in range(40)])
        build_knn(folder, KnnConfig(k=8))
    write_map(folders[0], ExploreConfig(images=False))
    shutil.copytree(folders[0] / "explore", folders[1] / "explore")
    captions = [figure.caption for folder in folders if (figure := draw_map(GraphView(folder), [], seed=0)[0])]
    assert captions[0].startswith("A map of all 40 texts")
    assert captions[1].startswith("By UMAP, of all 40 texts")


def test_without_umap_the_sketch_draws_the_map_and_without_either_there_is_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphbuild.quality.report.map.find_spec", lambda _name: None)
    for sketch_dim in (8, 0):
        folder = tmp_path / str(sketch_dim)
        write_graph(folder, clustered_vectors(40, 8))
        build_knn(folder, KnnConfig(k=8, sketch_dim=sketch_dim))
        figure, note = draw_map(GraphView(folder), [0], seed=0)
        assert (figure is None) == (sketch_dim == 0)
        assert "pip install" in (note if figure is None else figure.caption)


def test_every_point_of_the_map_lies_in_its_frame_and_labels_do_not_overlap(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(400, 16), texts=[f"a caption of some length, number {i}" for i in range(400)])
    build_knn(tmp_path, KnnConfig(k=16))
    figure, _ = draw_map(GraphView(tmp_path), [3, 5], seed=0)
    assert figure is not None
    assert [mark.text for mark in figure.hubs] == ["2", "1"]
    assert all(0 <= mark.left <= 100 and 0 <= mark.top <= 100 for mark in (*figure.labels, *figure.hubs))
    assert len({(round(mark.left, 1), round(mark.top, 1)) for mark in figure.labels}) == len(figure.labels) > 2


def test_hubs_show_the_rows_that_hold_them(graph_dir: Path) -> None:
    view = GraphView(graph_dir)
    found = find_worst(view, view.health(batch_size=32))
    edges = Frames(graph_dir).edges.collect()
    for hub, members in found.hubs.items():
        rows = edges.filter(pl.col("dst") == hub)
        similarity = dict(zip(rows["src"].to_list(), rows["similarity"].to_list(), strict=True))
        assert all(similarity[row] == value for row, value in members)
        assert {value for _, value in members} >= {max(similarity.values()), min(similarity.values())}
        assert [value for _, value in members] == sorted((value for _, value in members), reverse=True)


def test_of_a_complete_graph_only_near_rows_hold_a_hub(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(30, 8))
    build_knn(tmp_path, KnnConfig(k="all"))
    (rows, _), (others, _) = rows_that_hold(Frames(tmp_path).graph, [3, 4])
    edges = Frames(tmp_path).edges.filter(pl.col("rank") <= 10).collect()
    assert set(rows.tolist()) == set(edges.filter(pl.col("dst") == 3)["src"].to_list())
    assert set(others.tolist()) == set(edges.filter(pl.col("dst") == 4)["src"].to_list())


def test_commands_of_the_worst_cases_run_as_they_stand(graph_dir: Path, page: str, tmp_path: Path) -> None:
    commands = [html.unescape(line) for line in re.findall(r"<code[^>]*>(graphbuild [^<]*)</code>", page)]
    assert len({line.split()[1] for line in commands} & {"neighbors", "inspect", "dedup", "outliers", "subset"}) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for number, command in enumerate(commands):
            line, _, target = command.replace("NEW_GRAPH", f"graph-{number}").partition(" > ")
            outcome = CliRunner().invoke(cli, shlex.split(line)[1:])
            assert outcome.exit_code == 0, (command, outcome.output)
            if target:
                Path(target).write_text(outcome.stdout, encoding="utf-8")
    kept = {path.name: Frames(path).texts.collect() for path in tmp_path.glob("graph-*")}
    assert len(kept) == 3
    assert all(len(texts) < N for texts in kept.values())


def test_ids_stand_beside_every_text(graph_dir: Path, page: str) -> None:
    texts = Frames(graph_dir).texts.collect()["text"].to_list()
    worst = page.split("<h2>Worst cases</h2>")[1].split("<h2>Key figures</h2>")[0]
    shown = re.findall(r"caption \d+ <i>id (\d+)</i>", worst)
    assert len(shown) > 10
    assert all(f"{html.escape(texts[int(text_id)])} <i>id {text_id}</i>" in worst for text_id in shown)


def test_charts_put_larger_values_higher_and_further_right() -> None:
    axes = (log_axis("x", [1, 100]), linear_axis("y", 0, 1))
    svg = chart(*axes, lines=[Line("<i>", "a", [1, 10, 100], [0.1, 0.5, 0.9])])
    points = re.search(r'points="([^"]*)"', svg)
    assert points is not None
    across, up = np.array([[float(v) for v in pair.split(",")] for pair in points[1].split()]).T
    assert (np.diff(across) > 0).all()
    assert (np.diff(up) < 0).all()
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert "&lt;i&gt;" in svg


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: the report was not opened in a browser (`apt-get install chromium`)")
    return found


PROBE = """
<script>
addEventListener("error", event => document.documentElement.setAttribute("data-error", event.message));
addEventListener("load", () => {
  const box = element => element.getBoundingClientRect();
  const seen = name => [...document.querySelectorAll(name)].every(one => box(one).width > 40 && box(one).height > 10);
  const style = getComputedStyle(document.body);
  document.documentElement.setAttribute("data-probe", JSON.stringify({
    tables: seen("table"), plots: seen("figure svg") && document.querySelectorAll("figure svg").length,
    overflow: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
    pictures: [...document.images].every(image => image.complete && image.naturalWidth > 0),
    paper: style.backgroundColor, ink: style.color,
  }));
});
</script>
"""


def run_browser(chromium: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    return subprocess.run([chromium, *fixed, *arguments], capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 500], ids=["wide", "narrow"])
def test_the_report_opens_in_a_browser(chromium: str, page: str, tmp_path: Path, width: int, dark: bool) -> None:
    # The page itself allows no script: the copy that is measured leaves that rule out and adds a probe.
    probed = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", PROBE, page)
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    # 0 is dark in Blink's setting, 1 is light.
    colours = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    arguments = [colours, f"--window-size={width},900", "--dump-dom", f"file://{tmp_path / 'probed.html'}"]
    dom = run_browser(chromium, arguments, tmp_path).stdout
    match = re.search(r'data-probe="([^"]*)"', dom)
    assert match is not None, dom[:500]
    probe = json.loads(html.unescape(match[1]))
    assert 'data-error="' not in dom
    assert probe["tables"]
    assert probe["plots"] >= 5
    assert probe["pictures"]
    assert probe["overflow"] <= 0, probe
    paper, ink = (sum(int(part) for part in re.findall(r"\d+", probe[key])[:3]) for key in ("paper", "ink"))
    assert (paper < ink) == dark


def test_the_page_as_written_gives_no_console_message(chromium: str, page: str, graph_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    address = f"file://{tmp_path / 'report.html'}"
    shot = tmp_path / "shot.png"
    done = run_browser(chromium, ["--enable-logging=stderr", "--v=0", f"--screenshot={shot}", address], tmp_path)
    assert "CONSOLE" not in done.stderr, done.stderr
    with Image.open(shot) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10, "an empty page"


def test_metrics_of_others_are_not_replaced(graph_dir: Path, tmp_path: Path) -> None:
    for content in ('{"loss": 1}', "no json"):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(OptionError, match=r"metrics\.json: is there already, and no report wrote it"):
            write_report(graph_dir, tmp_path / "page.html", chart=False)
        assert (tmp_path / "metrics.json").read_text() == content
