"""Folders as on the Hugging Face hub, remote files, and published prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed, graphbuild, write_captions
from helpers_published import coco, sample_texts, write_shard

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.manifest import Manifest


def write_hub_folder(folder: Path, *splits: str) -> Path:
    """Parquet files named and typed as on the Hugging Face hub."""
    (folder / "data").mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in splits:
        for part in range(2):
            image = pa.array([{"bytes": b"\x89PNG", "path": f"{split}{part}.png"}], kind)
            table = pa.table({"image": image, "caption": [f"{split} caption {part}"]})
            pq.write_table(table, folder / "data" / f"{split}-{part:05d}-of-00002-0123456789abcdef.parquet")
    return folder


def test_folder_of_the_hub_is_read_from_its_data_folder(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path / "pictures", "train")
    embed(tmp_path / "g", folder)
    assert column(tmp_path / "g", "texts", "text") == ["train caption 0", "train caption 1"]
    images = Manifest.load(tmp_path / "g").dataset["images"]
    assert (images["image_column"], images["path"]) == ("image", str(folder / "data"))


def test_folder_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path / "pictures", "train", "test")
    with pytest.raises(SourceError, match=r"holds the splits test, train.*data/train-\*\.parquet"):
        embed(tmp_path / "g", folder)
    embed(tmp_path / "g", f"{folder}/data/train-*.parquet")
    assert Manifest.load(tmp_path / "g").counts["texts"] == 2


def test_unknown_url_and_missing_remote_file_are_one_line(tmp_path: Path) -> None:
    for source, words in (
        ("nowhere://bucket/a.parquet", "no reader for this kind of URL"),
        ("memory://no/a.parquet", "no such file"),
    ):
        answer = graphbuild("embed", "--dataset", "parquet", "--source", source, cwd=tmp_path)
        assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
        assert words in answer.stderr


@pytest.mark.parametrize("dataset", ["parquet", "tsv", "csv", "jsonl", "lines", "img2dataset", "coco"])
def test_remote_files_give_the_bytes_of_local_ones(tmp_path: Path, dataset: str) -> None:
    import fsspec

    files: dict[str, bytes] = {
        "parquet": write_captions(tmp_path / "a.parquet", {"caption": ["one", "two"]}).read_bytes(),
        "tsv": b"caption\tx\none\t1\ntwo\t2\n",
        "csv": b'caption\n"one"\ntwo\n',
        "jsonl": b'{"caption": "one"}\n{"caption": "two"}\n',
        "lines": b"one\ntwo\n",
        "img2dataset": write_shard(tmp_path / "a.tar").read_bytes(),
        "coco": coco([{"image_id": 9, "id": 1, "caption": "one"}]).encode(),
    }
    suffix = {"lines": "txt", "img2dataset": "tar", "coco": "json"}.get(dataset, dataset)
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{tmp_path.name}/part.{suffix}", files[dataset])
    (tmp_path / f"part.{suffix}").write_bytes(files[dataset])
    embed(tmp_path / "near", tmp_path / f"part.{suffix}", dataset)
    embed(tmp_path / "far", f"memory://{tmp_path.name}/*.{suffix}", dataset)
    embed(tmp_path / "whole", f"memory://{tmp_path.name}", dataset)
    assert sample_texts(tmp_path / "near") == sample_texts(tmp_path / "far") == sample_texts(tmp_path / "whole")
    files_of = [Manifest.load(tmp_path / name).dataset["files"] for name in ("near", "far", "whole")]
    assert files_of[0] == files_of[1] == files_of[2]
    assert sample_texts(tmp_path / "near")


def test_clip80_averages_eighty_prompts(tmp_path: Path, shared_data: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"name": ["dog", "cat"]})
    published = shared_data / "classes/clip_imagenet_templates.json"
    embed(tmp_path / "g", path, templates=("clip80",))
    embed(tmp_path / "h", path, templates=(str(published),))
    assert Manifest.load(tmp_path / "g").dataset["templates"] == json.loads(published.read_text())
    for name in ("text_hash", "embedding"):
        assert column(tmp_path / "g", "embeddings", name) == column(tmp_path / "h", "embeddings", name)


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), ("{bad", "not JSON"), ("[]", "a list of templates")])
def test_broken_template_file_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "prompts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OptionError, match=rf"prompts\.json: .*{words}"):
        embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"name": ["dog"]}), templates=(str(path),))
