"""A hub on this machine: what `huggingface_hub` asks of a server, for repositories that are folders, and for uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def commit_of(name: str, revision: str) -> str:
    return hashlib.sha1(f"{name}@{revision}".encode(), usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """What the server holds and was told."""

    repositories: dict[tuple[str, str], Path] = field(default_factory=dict)
    """Folder of each (repository, revision)."""
    asked: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Point `huggingface_hub` at a server on the loopback interface while the block runs."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._get(body=True)

        def do_HEAD(self) -> None:
            self._get(body=False)

        def _get(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
                self._describe("/".join(parts[2:4]), parts[4] if parts[4:] else "revision", "/".join(parts[5:]) or "main")
            elif parts[0] == "datasets" and "resolve" in parts:
                at = parts.index("resolve")
                self._file("/".join(parts[1:at]), parts[at + 1], "/".join(parts[at + 2 :]), body=body)
            else:
                self._answer({"error": "not here"}, 404)

        def _describe(self, name: str, what: str, revision: str) -> None:
            found = [
                (at, path)
                for (held, at), path in hub.repositories.items()
                if held == name and revision in (at, commit_of(held, at))
            ]
            if not found:
                self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            at, folder = found[0]
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            if what == "tree":
                self._answer(
                    [{"type": "file", "path": one, "size": (folder / one).stat().st_size, "oid": "0" * 40} for one in names], 200
                )
                return
            siblings = [{"rfilename": one, "size": (folder / one).stat().st_size, "blobId": "0" * 40} for one in names]
            self._answer(
                {"_id": "1", "id": name, "sha": commit_of(name, at), "siblings": siblings, "private": False, "tags": []}, 200
            )

        def _file(self, name: str, revision: str, filename: str, *, body: bool) -> None:
            for (held, at), folder in hub.repositories.items():
                commit = commit_of(held, at)
                if held == name and revision in (at, commit) and (folder / filename).is_file():
                    content = (folder / filename).read_bytes()
                    headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
                    self._send(content if body else b"", 200, headers, length=len(content))
                    return
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        def do_POST(self) -> None:
            hub.asked.append(self.path)
            hub.tokens.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
            content = self._content()
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(content))
                asked = hub.created[-1]
                place = f"{'datasets/' if asked.get('type') == 'dataset' else ''}{asked['organization']}/{asked['name']}"
                self._answer({"url": f"http://{self.headers['Host']}/{place}"}, 200)
            elif "/preupload/" in self.path:
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(content)["files"]
                ]
                self._answer({"files": files}, 200)
            elif "/commit/" in self.path:
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        hub.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                place = self.path.removeprefix("/api/").removeprefix("models/").partition("/commit/")[0]
                address = f"http://{self.headers['Host']}/{place}/commit/{COMMIT}"
                self._answer({"success": True, "commitOid": COMMIT, "commitUrl": address}, 200)
            else:
                self._answer({"type": "dataset"}, 200)

        def _content(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def _answer(self, value: Any, status: int, headers: dict[str, str] | None = None) -> None:
            self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

        def _send(self, content: bytes, status: int, headers: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    return Handler
