"""Every fenced command and snippet of the README runs, in order, in one fresh folder with a user's captions in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS = re.compile(r"<!-- needs (a GPU|a download|make|your loop) -->\s*$")


def blocks() -> list[tuple[str, str]]:
    """(language, code) of every fenced block that is not marked as needing something that is not here."""
    found = []
    for match in re.finditer(r"^```(sh|python)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL):
        if not NEEDS.search(README[: match.start()]):
            found.append((match.group(1), match.group(2)))
    return found


@pytest.fixture
def user_folder(tmp_path: Path, shared_data: Path) -> Path:
    table = pq.read_table(shared_data / "flickr8k/flickr8k_96.parquet").slice(0, 400)
    pq.write_table(table, tmp_path / "captions.parquet", row_group_size=100)
    return tmp_path


@pytest.mark.slow
def test_every_command_and_snippet_of_the_readme_runs(user_folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    found = blocks()
    assert {language for language, _ in found} == {"sh", "python"}
    for language, code in found:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=user_folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_readme_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 80


def anchors_of(page: Path) -> set[str]:
    """The names that links give to the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "pipelines/README.md", "benchmarks/RESULTS.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors_of(linked), f"{name} links to {target}"
