"""Sample ids that repeat: refused, left out, or told apart by numbers that `embed` and `train` count alike."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed
from helpers_train import draw, encode
from hypothesis import given
from hypothesis import strategies as st

from graphbuild.errors import OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.hashes import hash_strings
from graphbuild.store.manifest import Manifest
from graphbuild.store.repeats import occurrences
from train.config import TrainConfig
from train.data.prepare import open_data
from train.data.sources import open_images, recorded_images

IDS = ["a", "b", "a", "c", "b", "a"]
FIRST = {"a": "caption 0", "b": "caption 1", "c": "caption 3"}
SUFFIX = {"a": "caption 0", "b": "caption 1", "a#2": "caption 2", "c": "caption 3", "b#2": "caption 4", "a#3": "caption 5"}


def write(folder: Path, form: str) -> Path:
    rows = [{"id": one, "caption": f"caption {row}"} for row, one in enumerate(IDS)]
    if form == "csv":
        lines = ["id,caption", *(f"{row['id']},{row['caption']}" for row in rows)]
        (folder / "a.csv").write_text("\n".join(lines) + "\n")
    elif form == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        images = [encode(draw(row), "png") for row in range(len(rows))]
        pq.write_table(pa.Table.from_pylist(rows).append_column("image", pa.array(images)), folder / "a.parquet")
    else:
        with tarfile.open(folder / "a.tar", "w") as archive:
            for row, one in enumerate(IDS):
                members = {
                    "jpg": encode(draw(row), "jpeg"),
                    "json": json.dumps({"url": one}).encode(),
                    "txt": f"caption {row}".encode(),
                }
                for suffix, data in members.items():
                    entry = tarfile.TarInfo(f"{row:03d}.{suffix}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    return next(folder.glob("a.*"))


def samples_of(graph_dir: Path) -> dict[str, str]:
    texts = column(graph_dir, "texts", "text")
    rows = zip(column(graph_dir, "samples", "sample_id"), column(graph_dir, "samples", "text_id"), strict=True)
    return {sample_id: texts[text_id] for sample_id, text_id in rows}


def build(folder: Path, form: str, rule: str | None, **options: Any) -> Path:
    dataset = {"tar": "webdataset"}.get(form, form)
    id_column = None if form == "tar" else "id"
    embed(folder / "g", write(folder, form), dataset, id_column=id_column, on_duplicate=rule, **options)
    return folder / "g"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "tar"])
@pytest.mark.parametrize(("rule", "expected"), [("first", FIRST), ("suffix", SUFFIX)])
def test_repeated_ids_are_left_out_or_numbered_in_every_reader_and_counted(
    tmp_path: Path, form: str, rule: str, expected: dict[str, str]
) -> None:
    manifest = Manifest.load(build(tmp_path, form, rule))
    assert samples_of(tmp_path / "g") == expected
    assert manifest.dataset["on_duplicate"] == rule
    assert sum(manifest.counts.get(name, 0) for name in ("duplicate_ids_left_out", "duplicate_ids_numbered")) == 3
    assert [place.rsplit(": ")[1] for place in manifest.stages["text"].facts["duplicate_ids"]] == ["a", "b", "a"]


@pytest.mark.parametrize("form", ["parquet", "tar"])
@pytest.mark.parametrize(("rule", "expected"), [("first", FIRST), ("suffix", SUFFIX)])
def test_images_of_repeated_ids_meet_their_own_captions(tmp_path: Path, form: str, rule: str, expected: dict[str, str]) -> None:
    graph_dir = build(tmp_path, form, rule)
    recorded = recorded_images(Manifest.load(graph_dir).dataset, graph_dir)
    assert recorded is not None
    source = open_images(**recorded)
    kind = {"parquet": "png", "tar": "jpeg"}[form]
    pictures = {encode(draw(row), kind): f"caption {row}" for row in range(len(IDS))}
    items = zip(source.sample_ids, source.encoded(range(len(source))), strict=True)
    found = {sample_id: pictures[bytes(item)] for sample_id, item in items if item is not None}
    assert found == expected


def test_images_whose_id_has_more_captions_than_images_are_left_out(tmp_path: Path) -> None:
    graph_dir = build(tmp_path, "tar", "suffix")
    build_knn(graph_dir, KnnConfig(k=2))
    path = tmp_path / "fewer.tar"
    with tarfile.open(tmp_path / "a.tar") as old, tarfile.open(path, "w") as new:
        for entry in old:
            if entry.name != "002.jpg":
                new.addfile(entry, old.extractfile(entry))
    opened = open_data(TrainConfig(objective="xclr", graph_dir=str(graph_dir), data=str(path), allow_missing=True))
    assert sorted(opened.source.sample_ids) == ["b", "b#2", "c"]
    assert opened.left_out["images whose id has more captions than images"] == 2


@given(st.lists(st.sampled_from("abcde")))
def test_occurrences_equal_those_of_a_counter(ids: list[str]) -> None:
    seen: Counter[str] = Counter()
    expected = []
    for one in ids:
        expected.append(seen[one])
        seen[one] += 1
    assert occurrences(hash_strings(ids)).tolist() == expected


def test_data_set_whose_rows_share_ids_is_refused_where_the_user_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    rows = {"url": ["u", "u"], "caption": ["one", "two"], "status": ["success"] * 2}
    pq.write_table(pa.table(rows), path)
    embed(tmp_path / "g", path, "img2dataset")
    assert column(tmp_path / "g", "samples", "sample_id") == ["u", "u"]
    with pytest.raises(SourceError, match="'u' comes twice"):
        embed(tmp_path / "h", path, "img2dataset", on_duplicate="error")
    embed(tmp_path / "i", path, "img2dataset", on_duplicate="suffix")
    assert column(tmp_path / "i", "samples", "sample_id") == ["u", "u#2"]


def test_number_that_is_an_id_already_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,caption\na,one\na,two\na#2,three\n")
    with pytest.raises(SourceError, match="'a#2' comes twice"):
        embed(tmp_path / "g", tmp_path / "a.csv", "csv", id_column="id", on_duplicate="suffix")


@pytest.mark.parametrize("options", [{"multi_caption": True}, {"append": True}])
def test_rule_that_contradicts_other_options_is_refused(tmp_path: Path, options: dict[str, bool]) -> None:
    with pytest.raises(OptionError, match="--on-duplicate"):
        embed(tmp_path / "g", write(tmp_path, "csv"), "csv", id_column="id", on_duplicate="suffix", **options)


def test_vectors_of_repeated_ids_keep_their_rows(tmp_path: Path) -> None:
    vectors = np.eye(4, 8, dtype=np.float32)
    pq.write_table(
        pa.table({"id": ["a", "b", "a", "a"], "emb": pa.array(list(vectors), pa.list_(pa.float32()))}), tmp_path / "v.parquet"
    )
    options: dict[str, Any] = {"id_column": "id", "encoder": "all-MiniLM-L6-v2"}
    embed(tmp_path / "g", tmp_path / "v.parquet", "vectors", on_duplicate="suffix", **options)
    assert column(tmp_path / "g", "samples", "sample_id") == ["a", "b", "a#2", "a#3"]
    np.testing.assert_array_equal(np.array(column(tmp_path / "g", "embeddings", "embedding")), vectors)
    with pytest.raises(OptionError, match="each row is a vector"):
        embed(tmp_path / "h", tmp_path / "v.parquet", "vectors", on_duplicate="first", **options)
