"""The map in a real browser: it asks for nothing outside, shows points, finds a caption and shows its neighbours."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_graph import clustered_vectors, write_graph

from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.explore.write import ExploreConfig, write_map

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SOFTWARE_DRAWING = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

VIEWER = "embedding-atlas<0.24"
"""The last versions that draw with WebGL, which a browser without a GPU has."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output free of requests."""


@pytest.fixture(scope="module")
def viewer_on_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The viewer in an environment of its own, as a user would install a program: its dependencies are many."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("no uv here to install the viewer with")
    folder = tmp_path_factory.mktemp("viewer")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", folder / "venv/bin/python", VIEWER]
    subprocess.run(install, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([str(folder / "venv/bin"), os.environ["PATH"]]))
        yield


@pytest.fixture(scope="module")
def address(viewer_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    graph = tmp_path_factory.mktemp("graph")
    texts = [f"a painted {('boat', 'lamp', 'bird')[i % 3]} number {i}" for i in range(120)]
    write_graph(graph, clustered_vectors(120, 16, clusters=6), texts=texts)
    build_knn(graph, KnnConfig(k=24))
    site = tmp_path_factory.mktemp("out") / "site"
    write_map(graph, ExploreConfig(site=site))
    assert str(graph) not in (site / "data/metadata.json").read_text()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_site_shows_points_finds_a_caption_and_its_neighbours_without_a_request_outside(address: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SOFTWARE_DRAWING)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_text("How true this map is").wait_for(timeout=120_000)
        page.locator("canvas").first.wait_for(timeout=60_000)
        page.get_by_text("120 points").first.wait_for(timeout=60_000)
        page.get_by_label("Search").first.click()
        page.locator("input[type=search]").fill("lamp number 40")
        page.locator("input[type=search]").press("Enter")
        page.get_by_text("a painted lamp number 40").first.click(timeout=60_000)
        page.get_by_text("Nearest Neighbors").first.click(timeout=60_000)
        page.get_by_text("20 results").first.wait_for(timeout=60_000)
        page.screenshot(path=tmp_path / "map.png")
        browser.close()
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
