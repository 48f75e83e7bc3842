"""Downloading: resumed, checked against what the server states, from a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from helpers_embed import column, embed

from graphbuild.datasets.base import SourceOptions
from graphbuild.datasets.published import cc12m, download
from graphbuild.datasets.published.download import fetch
from graphbuild.datasets.registry import get_source
from graphbuild.errors import ArtifactError, SourceError
from graphbuild.store.manifest import Manifest

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


@dataclass
class Site:
    """What the server serves, and what it was asked for."""

    content: bytes = CONTENT
    etag: str = '"one"'
    hashes: str | None = None
    break_after: list[int] = field(default_factory=list)
    """For each request to come, the bytes after which the connection breaks."""
    status: int = 200
    content_range: str | None = None
    """Stated instead of the true one."""
    encodings: list[str | None] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    """A server of one file, with ranges and Google's hash header."""
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.ranges.append(asked)
            state.encodings.append(self.headers["Accept-Encoding"])
            partial = asked is not None and self.headers["If-Range"] == state.etag
            if partial and state.status == 416:
                self.send_error(416)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if partial else 0
            body = state.content[start:]
            self.send_response(state.status if state.status not in (200, 416) else 206 if partial else 200)
            if partial:
                last = len(state.content) - 1
                self.send_header("Content-Range", state.content_range or f"bytes {start}-{last}/{last + 1}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", state.etag)
            if state.hashes:
                self.send_header("x-goog-hash", state.hashes)
            self.end_headers()
            stop = state.break_after.pop(0) if state.break_after else len(body)
            self.wfile.write(body[:stop])
            self.close_connection = stop < len(body)

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}/cc12m.tsv"
        yield state
        server.shutdown()


def get(site: Site, path: Path) -> None:
    fetch(site.url, path, pause=lambda _: None)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def md5_of(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


@pytest.mark.parametrize("kind", ["md5", "crc32c"])
def test_hash_that_the_server_states_is_checked_and_recorded(tmp_path: Path, site: Site, kind: str) -> None:
    crc = google_crc32c.value(CONTENT)
    site.hashes = {"md5": f"md5={md5_of(CONTENT)}", "crc32c": f"crc32c={base64.b64encode(crc.to_bytes(4, 'big')).decode()}"}[kind]
    result = fetch(site.url, tmp_path / "a", pause=lambda _: None)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert (result.bytes, result.etag) == (len(CONTENT), '"one"')
    assert getattr(result, kind) == {"md5": hashlib.md5(CONTENT).hexdigest(), "crc32c": f"{crc:08x}"}[kind]
    assert files(tmp_path) == ["a", "a.json"]


def test_second_call_asks_for_nothing(tmp_path: Path, site: Site) -> None:
    get(site, tmp_path / "a")
    get(site, tmp_path / "a")
    assert site.ranges == [None]


def test_broken_connections_are_resumed_where_they_broke(tmp_path: Path, site: Site) -> None:
    site.break_after = [1_000_000, 500_000, 1]
    get(site, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500001-"]


def test_later_run_goes_on_where_a_failed_one_stopped(tmp_path: Path, site: Site) -> None:
    site.break_after = [2_000_000, *[0] * 5]
    with pytest.raises(SourceError, match=r"2 MB are here\. Run the command again.*--source a"):
        get(site, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    site.ranges.clear()
    get(site, tmp_path / "a")
    assert site.ranges == ["bytes=2000000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_file_that_changed_meanwhile_is_fetched_anew(tmp_path: Path, site: Site) -> None:
    site.break_after = [2_000_000, *[0] * 5]
    with pytest.raises(SourceError):
        get(site, tmp_path / "a")
    site.content, site.etag = CONTENT[::-1], '"two"'
    get(site, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("answer", ["416", "another place", "another size", "no range"])
def test_part_that_does_not_fit_what_is_here_is_dropped_and_fetched_anew(tmp_path: Path, site: Site, answer: str) -> None:
    site.break_after = [2_000_000, *[0] * 5]
    with pytest.raises(SourceError):
        get(site, tmp_path / "a")
    site.ranges.clear()
    if answer == "416":
        site.status = 416
    else:
        wrong = {"another place": "bytes 0-2999999/3000000", "another size": "bytes 2000000-2999999/4000000", "no range": "x"}
        site.content_range = wrong[answer]
    get(site, tmp_path / "a")
    assert site.ranges == ["bytes=2000000-", None]
    assert set(site.encodings) == {"identity"}
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_connection_that_gives_next_to_nothing_counts_as_broken() -> None:
    pace = download._Pace(0)
    pace._since -= 100
    with pytest.raises(TimeoutError, match="fewer than 1,000"):
        pace.check(50_000)
    pace._since = pace._since - 100
    pace.check(300_000)


def test_two_that_want_a_file_fetch_it_once(tmp_path: Path, site: Site) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: get(site, tmp_path / "a"), range(4)))
    assert site.ranges == [None]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_removed(tmp_path: Path, site: Site) -> None:
    site.hashes = f"crc32c=AAAAAA==,md5={md5_of(b'other')}"
    with pytest.raises(ArtifactError, match=r"md5 .* was received, but .* states"):
        get(site, tmp_path / "a")
    assert files(tmp_path) == []


def test_file_of_the_wrong_size_is_fetched_again(tmp_path: Path, site: Site) -> None:
    get(site, tmp_path / "a")
    (tmp_path / "a").write_bytes(CONTENT[:100])
    get(site, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_refusal_of_the_server_is_one_error_at_once(tmp_path: Path, site: Site) -> None:
    site.status = 403
    with pytest.raises(SourceError, match="HTTP Error 403"):
        get(site, tmp_path / "a")
    assert len(site.ranges) == 1


def test_server_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"could not be downloaded.*0 MB are here"):
        fetch("http://127.0.0.1:1/a", tmp_path / "a", pause=lambda _: None)


def test_file_that_is_not_the_published_one_is_kept_aside_and_named(tmp_path: Path, site: Site) -> None:
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    with pytest.raises(ArtifactError, match=rf"another file than the one that was published: its sha256 is {right}, not {wrong}"):
        fetch(site.url, tmp_path / "a", sha256=wrong, pause=lambda _: None)
    assert not (tmp_path / "a").exists()
    fetch(site.url, tmp_path / "a", sha256=right, pause=lambda _: None)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_cc12m_is_downloaded_once_and_recorded(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.content = b"https://host.example/1.jpg\ta dog and <PERSON>\n"
    publication = cc12m.SOURCE.publication
    monkeypatch.setattr(cc12m.SOURCE, "publication", type(publication)(columns=publication.columns, url=site.url, by_hand=""))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        embed(tmp_path / "g", None, "cc12m")
    assert len(site.ranges) == 1
    assert column(tmp_path / "g", "texts", "text") == ["a dog and person"]
    stated = Manifest.load(tmp_path / "g").stages["text"].facts["download"]
    assert (stated["url"], stated["bytes"]) == (site.url, len(site.content))
    assert get_source("cc12m").open(SourceOptions(), tmp_path).files[0].name == "cc12m.tsv"
