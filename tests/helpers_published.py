"""Files in the formats of publishers, and what a graph of them holds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from helpers_embed import column

from graphbuild.store.manifest import Manifest


def sample_texts(graph_dir: Path) -> list[tuple[str, str]]:
    """(sample id, its text) of every row of samples."""
    texts = column(graph_dir, "texts", "text")
    ids = column(graph_dir, "samples", "sample_id")
    return [(sample_id, texts[text_id]) for sample_id, text_id in zip(ids, column(graph_dir, "samples", "text_id"), strict=True)]


def listed(graph_dir: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = Manifest.load(graph_dir).stages["text"].facts["listed"]
    return found


URLS = [f"https://host.example/{name}.jpg?w=1&h=2" for name in "abcd"]


CRAWL = [
    {"url": URLS[0], "caption": "a dog", "key": "000000000", "status": "success", "error_message": None, "width": 256},
    {"url": URLS[1], "caption": "a cat", "key": "000000001", "status": "failed_to_download", "error_message": "404", "width": 0},
    {"url": URLS[2], "caption": None, "key": "000000002", "status": "success", "error_message": None, "width": 256},
    {
        "url": URLS[3],
        "caption": "<PERSON> 走路",
        "key": "000000003",
        "status": "success",
        "error_message": None,
        "width": 99,
    },
]


def write_sidecar(path: Path, rows: Sequence[Mapping[str, Any]] = CRAWL, **more: Any) -> Path:
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]} | more), path)
    return path


def write_shard(path: Path, rows: Sequence[Mapping[str, Any]] = CRAWL) -> Path:
    """A webdataset shard as img2dataset writes it: nothing of what failed; an empty .txt for a null caption."""
    with tarfile.open(path, "w") as tar:
        for row in rows:
            if row["status"] != "success":
                continue
            members = {"jpg": b"\xff\xd8\xff", "txt": (row["caption"] or "").encode(), "json": json.dumps(row).encode()}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{row['key']}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def coco(annotations: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]] | None = None) -> str:
    known = [{"license": 3, "file_name": f"{number:012d}.jpg", "height": 360, "id": number} for number in (9, 25)]
    info = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
    content = {"info": info, "licenses": [], "images": known if images is None else images, "annotations": list(annotations)}
    return json.dumps(content)
