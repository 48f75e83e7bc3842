"""Sources: what is read, and what bad input is told."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed, write_captions

from graphbuild.datasets.base import SourceOptions
from graphbuild.datasets.registry import NAMES, get_source
from graphbuild.embed.sources import describe_all
from graphbuild.errors import OptionError, SourceError
from graphbuild.quality.verify import verify_graph
from graphbuild.store.manifest import Manifest
from train.data.sources import open_images, recorded_images


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_every_listed_data_set_can_be_described() -> None:
    assert tuple(entry["name"] for entry in describe_all().to_json()) == NAMES
    assert all(value for entry in describe_all().to_json() for value in entry.values() if isinstance(value, str))


def test_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        embed(tmp_path / "g", None, "cc99m")
    assert all(name in message(error) for name in NAMES)


@pytest.mark.parametrize("source", ["missing.parquet", "missing-*.parquet"])
def test_missing_file_or_pattern_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(SourceError) as error:
        embed(tmp_path / "g", tmp_path / source)
    assert source in message(error)


def test_missing_column_names_those_that_exist(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"words": ["x"], "url": ["y"]})
    with pytest.raises(SourceError) as error:
        embed(tmp_path / "g", path, caption_column="caption")
    assert "'caption'" in message(error)
    assert "words, url" in message(error)


def test_caption_column_is_guessed_only_if_one_name_fits(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x"], "title": ["y"]})
    with pytest.raises(SourceError, match="--caption-column"):
        embed(tmp_path / "g", path)
    embed(tmp_path / "h", write_captions(tmp_path / "b.parquet", {"caption": ["x"], "url": ["y"]}))
    assert Manifest.load(tmp_path / "h").dataset["caption_column"] == "caption"


def test_column_of_numbers_is_refused_as_captions(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="int64"):
        embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": [1, 2]}))


def test_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(SourceError, match=r"a\.parquet: not a Parquet file"):
        embed(tmp_path / "g", tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content"), [("a.tsv", ""), ("a.tsv", "caption\n"), ("a.csv", ""), ("a.jsonl", "\n"), ("a.parquet", None)]
)
def test_empty_data_set_is_refused(tmp_path: Path, name: str, content: str | None) -> None:
    path = tmp_path / name
    if content is None:
        pq.write_table(pa.table({"caption": pa.array([], pa.string())}), path)
    else:
        path.write_text(content)
    with pytest.raises(SourceError) as error:
        embed(tmp_path / "g", path, path.suffix[1:])
    assert name in message(error)


ODD = ["NA", "null", 'a lone " quote', "emoji \U0001f415 on a beach", "كلب على الشاطئ", "nan", "x " * 500_000]
KEPT = [caption[:100_000].strip() for caption in ODD]


def test_odd_captions_pass_through_tsv_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("caption\turl\n" + "".join(f"{caption}\tu{i}\n" for i, caption in enumerate(ODD)), encoding="utf-8")
    embed(tmp_path / "g", path, "tsv", id_column="url")
    assert column(tmp_path / "g", "texts", "text") == KEPT
    counts = Manifest.load(tmp_path / "g").counts
    assert (counts["truncated_texts"], counts["cut_captions"]) == (1, 1)


def test_odd_captions_pass_through_csv_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    quoted = ['"{}"'.format(caption.replace('"', '""')) for caption in ODD]
    path.write_text("caption,url\n" + "".join(f"{caption},u{i}\n" for i, caption in enumerate(quoted)), encoding="utf-8")
    embed(tmp_path / "g", path, "csv")
    assert column(tmp_path / "g", "texts", "text") == KEPT


def test_odd_captions_pass_through_jsonl_and_parquet_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in ODD))
    embed(tmp_path / "g", tmp_path / "a.jsonl", "jsonl")
    embed(tmp_path / "h", write_captions(tmp_path / "a.parquet", {"caption": ODD}))
    for graph_dir in (tmp_path / "g", tmp_path / "h"):
        assert column(graph_dir, "texts", "text") == KEPT


def test_null_and_blank_captions_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["one", None, "  \t", "two", "", "\u3000"]})
    embed(tmp_path / "g", path)
    manifest = Manifest.load(tmp_path / "g")
    assert (manifest.counts["null_captions"], manifest.counts["blank_captions"]) == (1, 3)
    assert manifest.stages["text"].facts["listed"] == {
        "null": ["a.parquet:1"],
        "blank": ["a.parquet:2", "a.parquet:4", "a.parquet:5"],
    }
    assert column(tmp_path / "g", "samples", "sample_id") == ["a.parquet:0", "a.parquet:3"]


def test_only_blank_captions_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no caption to embed"):
        embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": [None, " "]}))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_invalid_utf8_is_repaired_counted_and_named_by_row(tmp_path: Path, name: str) -> None:
    rows = [b"good", b"bad \xff\xfe one", b"last"]
    if name == "a.jsonl":
        content = b"".join(b'{"caption": "' + row + b'"}\n' for row in rows)
    else:
        content = b"caption\n" + b"".join(row + b"\n" for row in rows)
    (tmp_path / name).write_bytes(content)
    embed(tmp_path / "g", tmp_path / name, name[2:])
    manifest = Manifest.load(tmp_path / "g")
    assert column(tmp_path / "g", "texts", "text") == ["good", "bad \ufffd\ufffd one", "last"]
    assert manifest.counts["invalid_utf8_rows"] == 1
    assert manifest.stages["text"].facts["listed"]["invalid_utf8"] == [f"{name}:1"]


def test_invalid_utf8_in_parquet_is_repaired_and_counted(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xffno"], pa.binary()).buffers())
    pq.write_table(pa.table({"caption": broken}), tmp_path / "a.parquet")
    embed(tmp_path / "g", tmp_path / "a.parquet")
    assert column(tmp_path / "g", "texts", "text") == ["ok", "\ufffdno"]
    assert Manifest.load(tmp_path / "g").stages["text"].facts["listed"]["invalid_utf8"] == ["a.parquet:1"]


def test_lone_surrogate_in_json_is_repaired_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"caption": "half \\ud83d of an emoji"}\n{"caption": "whole \\ud83d\\udc15"}\n')
    embed(tmp_path / "g", tmp_path / "a.jsonl", "jsonl")
    assert column(tmp_path / "g", "texts", "text") == ["half \ufffd of an emoji", "whole \U0001f415"]
    assert Manifest.load(tmp_path / "g").counts["invalid_utf8_rows"] == 1


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '{"caption": 7}'])
def test_broken_json_line_is_an_error_with_file_and_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"caption": "fine"}}\n{line}\n')
    with pytest.raises(SourceError, match=r"a\.jsonl: line 2"):
        embed(tmp_path / "g", tmp_path / "a.jsonl", "jsonl")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_row_with_another_number_of_fields_is_an_error_with_its_line(tmp_path: Path, name: str) -> None:
    sign = {"a.tsv": "\t", "a.csv": ","}[name]
    (tmp_path / name).write_text(f"caption{sign}url\none{sign}u\ntwo\n")
    with pytest.raises(SourceError, match="line 3 has 1 fields, the header 2"):
        embed(tmp_path / "g", tmp_path / name, name[2:])


def test_list_columns_give_one_sample_row_per_caption(tmp_path: Path) -> None:
    path = write_captions(
        tmp_path / "a.parquet", {"captions": [["a dog", "the dog"], ["a cat", None], [], ["a dog"]], "file": ["1", "2", "3", "4"]}
    )
    embed(tmp_path / "g", path, id_column="file")
    assert column(tmp_path / "g", "samples", "sample_id") == ["1", "1", "2", "4"]
    assert column(tmp_path / "g", "samples", "text_id") == [0, 1, 2, 0]
    counts = Manifest.load(tmp_path / "g").counts
    assert (counts["samples"], counts["captions"], counts["null_captions"]) == (3, 4, 2)


def test_a_sample_that_repeats_a_caption_counts_once_and_its_captions_each(tmp_path: Path) -> None:
    # By a list, and by rows that share an id, in one shard of samples and in two.
    captions = {"captions": [["a dog"] * 5, ["a cat", "a dog", "A cat"], ["a bus"], ["a dog"]], "file": ["1", "2", "3", "1"]}
    path = write_captions(tmp_path / "a.parquet", captions)
    embed(tmp_path / "g", path, id_column="file", multi_caption=True, shard_size=2)
    assert column(tmp_path / "g", "counts", "sample_count") == [2, 1, 1]
    assert column(tmp_path / "g", "counts", "caption_count") == [7, 2, 1]
    verify_graph(tmp_path / "g")


def test_a_list_counts_its_sample_once_without_multi_caption(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"captions": [["a dog", "a dog"], ["a cat"]], "file": ["1", "2"]})
    embed(tmp_path / "g", path, id_column="file")
    assert column(tmp_path / "g", "counts", "sample_count") == [1, 1]
    assert column(tmp_path / "g", "counts", "caption_count") == [2, 1]


def test_an_appended_sample_counts_once_over_both_sources(tmp_path: Path) -> None:
    parts = [{"caption": ["a dog", "a cat"], "file": ["1", "1"]}, {"caption": ["a dog", "a dog"], "file": ["1", "2"]}]
    first, second = (write_captions(tmp_path / f"{i}.parquet", part) for i, part in enumerate(parts))
    embed(tmp_path / "g", first, id_column="file", multi_caption=True)
    embed(tmp_path / "g", second, id_column="file", multi_caption=True, append=True)
    assert column(tmp_path / "g", "counts", "sample_count") == [2, 1]
    assert column(tmp_path / "g", "counts", "caption_count") == [3, 1]


def test_repeated_sample_id_names_id_and_both_places(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x", "y", "z"], "file": ["p", "q", "p"]})
    with pytest.raises(SourceError) as error:
        embed(tmp_path / "g", path, id_column="file")
    assert all(part in message(error) for part in ("'p'", "a.parquet:0", "a.parquet:2", "--multi-caption"))


def test_multi_caption_allows_repeated_ids(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x", "y", "z"], "file": ["p", "q", "p"]})
    embed(tmp_path / "g", path, id_column="file", multi_caption=True)
    assert column(tmp_path / "g", "samples", "sample_id") == ["p", "q", "p"]
    assert Manifest.load(tmp_path / "g").counts["samples"] == 2


def test_null_id_names_its_row(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x", "y"], "file": ["p", None]})
    with pytest.raises(SourceError, match="row 1 has no id in column 'file'"):
        embed(tmp_path / "g", path, id_column="file")


def test_kept_columns_stay_aligned_with_captions(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"captions": [["a", "b"], [None], ["c"]], "label": [7, 8, 9]})
    embed(tmp_path / "g", path, keep_columns=("label",))
    assert column(tmp_path / "g", "samples", "label") == [7, 7, 9]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        write_captions(tmp_path / "data" / folder / "x.parquet", {"caption": [f"one {folder}"], "image": [b"x"]})
    for name, source in (("g", f"{tmp_path}/data/*/x.parquet"), ("h", tmp_path / "data")):
        embed(tmp_path / name, source)
        assert column(tmp_path / name, "samples", "sample_id") == ["a/x.parquet:0", "b/x.parquet:0"]
        recorded = recorded_images(Manifest.load(tmp_path / name).dataset, tmp_path / name)
        assert list(open_images(**(recorded or {})).sample_ids) == ["a/x.parquet:0", "b/x.parquet:0"]


def test_parquet_with_one_binary_column_is_recorded_as_image_source(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x"], "file": ["p"], "image": [b"\x89PNG"], "label": [1]})
    embed(tmp_path / "g", path, id_column="file")
    assert Manifest.load(tmp_path / "g").dataset["images"] == {
        "kind": "parquet",
        "path": str(path),
        "image_column": "image",
        "id_column": "file",
        "label_column": "label",
        "val": None,
    }


def image_folders(root: Path, *classes: str) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for picture in ("a.JPEG", "b.png"):
            (root / name / picture).write_bytes(b"")
    (root / classes[0] / "notes.txt").write_text("not a picture")
    return root


def test_image_folder_maps_pictures_onto_class_prompts(tmp_path: Path) -> None:
    embed(tmp_path / "g", image_folders(tmp_path / "pets", "cat", "dog"), "imagefolder")
    assert column(tmp_path / "g", "texts", "text") == ["a photo of a cat", "a photo of a dog"]
    assert column(tmp_path / "g", "samples", "sample_id") == ["cat/a.JPEG", "cat/b.png", "dog/a.JPEG", "dog/b.png"]
    assert column(tmp_path / "g", "samples", "label") == [0, 0, 1, 1]
    manifest = Manifest.load(tmp_path / "g")
    assert manifest.dataset["images"]["kind"] == "imagefolder"
    assert manifest.counts["files_not_pictures"] == 1


@pytest.mark.parametrize("classes", [("Crane", "crane"), ("a crane", "a  crane")])
def test_two_class_folders_of_one_name_are_named(tmp_path: Path, classes: tuple[str, str]) -> None:
    with pytest.raises(SourceError) as error:
        embed(tmp_path / "g", image_folders(tmp_path / "birds", *classes), "imagefolder")
    assert "two classes of one name" in message(error)
    assert all(name in message(error) for name in classes)


def test_two_labels_of_one_name_in_parquet_are_named(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"name": ["crane", "dog", "crane"], "label": [134, 1, 517]})
    with pytest.raises(SourceError, match="label 134 is 'crane', and label 517 is 'crane'"):
        embed(tmp_path / "g", path, templates=("a photo of a {}",), keep_columns=("label",))


def test_imagenet_has_a_thousand_prompts_with_wnids_as_ids(tmp_path: Path) -> None:
    embed(tmp_path / "g", None, "imagenet")
    assert len(set(column(tmp_path / "g", "texts", "text"))) == 1000
    assert column(tmp_path / "g", "texts", "text")[0] == "a photo of a tench"
    assert column(tmp_path / "g", "samples", "sample_id")[:2] == ["n01440764", "n01443537"]


def test_imagenet_folders_map_onto_the_prompts(tmp_path: Path) -> None:
    embed(tmp_path / "g", image_folders(tmp_path / "train", "n01443537", "n01440764"), "imagenet")
    assert column(tmp_path / "g", "samples", "sample_id")[0] == "n01440764/a.JPEG"
    assert column(tmp_path / "g", "samples", "label") == [0, 0, 1, 1]


def test_folder_that_is_no_wnid_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'cats' is no wnid"):
        embed(tmp_path / "g", image_folders(tmp_path / "train", "n01443537", "cats"), "imagenet")


CIFAR_NAMES = ["airplane", "pickup_truck"]


def write_cifar(root: Path) -> dict[str, bytes]:
    """Files in CIFAR-10's layout: two batches of two pictures; returns their content by name."""
    contents = {
        name: pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})
        for name in ("data_batch_1", "data_batch_2", "test_batch")
    }
    contents["batches.meta"] = pickle.dumps({"label_names": CIFAR_NAMES})
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for name, content in contents.items():
        (root / "cifar-10-batches-py" / name).write_bytes(content)
    return contents


def test_cifar_gives_readable_class_names_and_the_trainers_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    contents = write_cifar(tmp_path / "data")
    digests = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    # torchvision knows the digests of the real files, which are too large for a test.
    monkeypatch.setattr(CIFAR10, "train_list", [[name, digests[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    embed(tmp_path / "g", tmp_path / "data", "cifar10")
    assert column(tmp_path / "g", "texts", "text") == ["a photo of a airplane", "a photo of a pickup truck"]
    assert column(tmp_path / "g", "samples", "sample_id") == ["train/0", "train/1", "train/2", "train/3"]
    assert column(tmp_path / "g", "samples", "label") == [0, 1, 0, 1]


def test_damaged_cifar_is_refused_by_its_digest(tmp_path: Path) -> None:
    write_cifar(tmp_path / "data")
    with pytest.raises(SourceError, match="cifar10 is not here, or damaged"):
        embed(tmp_path / "g", tmp_path / "data", "cifar10")


def test_file_formats_need_a_source(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--source"):
        embed(tmp_path / "g", None, "tsv")


def test_parquet_is_read_in_small_batches(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x"] * 20_000})
    opened = get_source("parquet").open(SourceOptions(sources=(str(path),)), tmp_path)
    sizes = [len(batch.sample_ids) for batch in opened.read()]
    assert sum(sizes) == 20_000
    assert max(sizes) <= 8_192


def test_tiny_imagenet_gives_two_hundred_prompts(tmp_path: Path, shared_data: Path) -> None:
    embed(
        tmp_path / "g",
        f"{shared_data}/tiny_imagenet/val.parquet",
        caption_column="name",
        id_column="file",
        keep_columns=("label", "wnid"),
        templates=("a photo of a {}",),
    )
    counts = Manifest.load(tmp_path / "g").counts
    assert (counts["texts"], counts["samples"]) == (200, 10_000)
