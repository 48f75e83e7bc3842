"""Data sets in their publishers' own formats: what is read, and what goes wrong with them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed, graphbuild, write_captions

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.manifest import Manifest
from train.data.sources import open_images, recorded_images


def sample_texts(graph_dir: Path) -> list[tuple[str, str]]:
    """(sample id, its text) of every row of samples."""
    texts = column(graph_dir, "texts", "text")
    ids = column(graph_dir, "samples", "sample_id")
    return [(sample_id, texts[text_id]) for sample_id, text_id in zip(ids, column(graph_dir, "samples", "text_id"), strict=True)]


def listed(graph_dir: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = Manifest.load(graph_dir).stages["text"].facts["listed"]
    return found


URLS = [f"https://host.example/{name}.jpg?w=1&h=2" for name in "abcd"]
CAPTIONS = ['a "lone quote', "NA", "<PERSON> and <PERSON> at the beach", "كلب على الشاطئ"]


def test_cc12m_reads_url_tab_caption_with_urls_as_ids_and_persons_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv"
    path.write_text("".join(f"{url}\t{caption}\n" for url, caption in zip(URLS, CAPTIONS, strict=True)), encoding="utf-8")
    embed(tmp_path / "g", path, "cc12m")
    expected = [caption.replace("<PERSON>", "person") for caption in CAPTIONS]
    assert sample_texts(tmp_path / "g") == list(zip(URLS, expected, strict=True))
    manifest = Manifest.load(tmp_path / "g")
    assert manifest.dataset["replacements"] == [["<PERSON>", "person"]]
    assert manifest.stages["text"].facts["replaced"] == {"<PERSON>": 1}
    assert (manifest.dataset["id_column"], manifest.dataset["caption_column"]) == ("url", "caption")


def test_replace_option_goes_before_the_placeholder_of_cc12m(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv"
    path.write_text(f"{URLS[0]}\t<PERSON> sees <PERSON>\n{URLS[1]}\ta dog\n")
    embed(tmp_path / "g", path, "cc12m", replacements=("<PERSON>=someone", "dog=cat"))
    assert column(tmp_path / "g", "texts", "text") == ["someone sees someone", "a cat"]
    assert Manifest.load(tmp_path / "g").stages["text"].facts["replaced"] == {"<PERSON>": 1, "dog": 1}
    embed(tmp_path / "h", path, "cc12m", replacements=("<PERSON>=<PERSON>",))
    assert column(tmp_path / "h", "texts", "text") == ["<PERSON> sees <PERSON>", "a dog"]


def test_url_with_several_captions_in_cc12m_is_one_sample(tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_text(f"{URLS[0]}\tone\n{URLS[1]}\ttwo\n{URLS[0]}\tthree\n")
    embed(tmp_path / "g", tmp_path / "cc12m.tsv", "cc12m")
    counts = Manifest.load(tmp_path / "g").counts
    assert (counts["samples"], counts["captions"]) == (2, 3)


def test_invalid_utf8_in_cc12m_is_named_by_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_bytes(b"https://a/1\tfine\nhttps://a/2\tbad \xff\xfe one\n")
    embed(tmp_path / "g", tmp_path / "cc12m.tsv", "cc12m")
    assert column(tmp_path / "g", "texts", "text") == ["fine", "bad \ufffd\ufffd one"]
    assert listed(tmp_path / "g") == {"invalid_utf8": ["cc12m.tsv:1"]}


def test_columns_in_the_wrong_order_are_told_by_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "Train_GCC-training.tsv").write_text(f"a dog\t{URLS[0]}\n")
    with pytest.raises(SourceError, match="'a dog' where a URL should be; the file should be url<TAB>caption"):
        embed(tmp_path / "g", tmp_path / "Train_GCC-training.tsv", "cc12m")


def test_line_without_a_tab_is_an_error_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_text(f"{URLS[0]}\ta dog\n{URLS[1]} a cat\n")
    with pytest.raises(SourceError, match=r"cc12m\.tsv: line 2 has 1 fields, not 2"):
        embed(tmp_path / "g", tmp_path / "cc12m.tsv", "cc12m")


def test_cc3m_reads_caption_tab_url_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text("".join(f"{caption}\t{url}\n" for url, caption in zip(URLS, CAPTIONS, strict=True)), encoding="utf-8")
    embed(tmp_path / "g", path, "cc3m")
    assert sample_texts(tmp_path / "g") == list(zip(URLS, CAPTIONS, strict=True))


def test_cc3m_without_a_source_says_where_the_publisher_offers_it(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"Train_GCC-training\.tsv at https://ai\.google\.com"):
        embed(tmp_path / "g", None, "cc3m")


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


def test_sidecars_of_img2dataset_give_what_was_downloaded_by_url(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    write_sidecar(crawl / "00000.parquet")
    write_shard(crawl / "00000.tar")
    embed(tmp_path / "g", crawl, "img2dataset", keep_columns=("width",))
    assert sample_texts(tmp_path / "g") == [(URLS[0], "a dog"), (URLS[3], "<PERSON> 走路")]
    manifest = Manifest.load(tmp_path / "g")
    assert (manifest.counts["failed_downloads"], manifest.counts["null_captions"]) == (1, 1)
    # The row in the file, not among those that were taken.
    assert listed(tmp_path / "g") == {"null": ["00000.parquet:2"]}
    assert column(tmp_path / "g", "samples", "width") == [256, 99]
    assert manifest.dataset["images"] == {
        "kind": "webdataset",
        "path": str(crawl),
        "image_column": None,
        "id_column": None,
        "label_column": None,
        "val": None,
    }


def test_trainer_finds_the_pictures_of_a_crawl_by_the_graphs_ids(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    write_shard(tmp_path / "crawl/00000.tar")
    embed(tmp_path / "g", tmp_path / "crawl", "cc12m")
    recorded = recorded_images(Manifest.load(tmp_path / "g").dataset, tmp_path / "g")
    assert recorded is not None
    images = open_images(**recorded)
    assert list(images.sample_ids) == [URLS[0], URLS[2], URLS[3]]
    assert set(column(tmp_path / "g", "samples", "sample_id")) <= set(images.sample_ids)


def test_shards_without_sidecars_give_the_same_samples(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.tar")
    embed(tmp_path / "g", tmp_path / "00000.tar", "img2dataset", keep_columns=("width",))
    assert sample_texts(tmp_path / "g") == [(URLS[0], "a dog"), (URLS[3], "<PERSON> 走路")]
    assert column(tmp_path / "g", "samples", "width") == ["256", "99"]
    assert listed(tmp_path / "g") == {"blank": ["00000.tar:1"]}


@pytest.mark.parametrize("dataset", ["cc3m", "cc12m"])
def test_crawls_are_recognised_for_cc3m_and_cc12m(tmp_path: Path, dataset: str) -> None:
    write_sidecar(tmp_path / "00000.parquet")
    write_shard(tmp_path / "00001.tar", CRAWL[:1])
    embed(tmp_path / "g", f"{tmp_path}/0000*", dataset)
    person = {"cc3m": "<PERSON>", "cc12m": "person"}[dataset]
    # A URL that comes twice is one sample.
    assert sample_texts(tmp_path / "g") == [(URLS[0], "a dog"), (URLS[3], f"{person} 走路"), (URLS[0], "a dog")]


def test_parquet_output_of_img2dataset_is_its_own_image_source(tmp_path: Path) -> None:
    pictures = pa.array([b"\xff\xd8\xff", None, b"\xff\xd8\xff", b"\xff\xd8\xff"], pa.binary())
    write_sidecar(tmp_path / "00000.parquet", jpg=pictures)
    embed(tmp_path / "g", tmp_path / "00000.parquet", "img2dataset")
    images = Manifest.load(tmp_path / "g").dataset["images"]
    assert (images["kind"], images["path"], images["image_column"]) == ("parquet", str(tmp_path / "00000.parquet"), "jpg")


def test_table_that_is_no_crawl_names_the_missing_column(tmp_path: Path) -> None:
    write_captions(tmp_path / "a.parquet", {"url": ["u"], "caption": ["c"]})
    with pytest.raises(SourceError, match=r"a\.parquet \(img2dataset's output\?\): no column 'status'"):
        embed(tmp_path / "g", tmp_path / "a.parquet", "img2dataset")


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    content = write_shard(tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[:1800])
    with pytest.raises(SourceError, match=r"00000\.tar: not a whole tar file: cut short at byte 1,800"):
        embed(tmp_path / "g", tmp_path / "00000.tar", "img2dataset")


def test_shard_whose_json_is_broken_names_the_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        member = tarfile.TarInfo("000000007.json")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"{bad"))
    with pytest.raises(SourceError, match=r"000000007\.json is no JSON object"):
        embed(tmp_path / "g", tmp_path / "00000.tar", "img2dataset")


def coco(annotations: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]] | None = None) -> str:
    known = [{"license": 3, "file_name": f"{number:012d}.jpg", "height": 360, "id": number} for number in (9, 25)]
    info = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
    content = {"info": info, "licenses": [], "images": known if images is None else images, "annotations": list(annotations)}
    return json.dumps(content)


def test_coco_captions_find_their_pictures_file_name(tmp_path: Path) -> None:
    annotations = [
        {"image_id": 25, "id": 1, "caption": "A giraffe mother with its baby in the forest.\n"},
        {"image_id": 9, "id": 2, "caption": 'Closeup of bins of food, {[}]" included.'},
        {"image_id": 25, "id": 3, "caption": "Two giraffes standing in a tree filled area."},
    ]
    (tmp_path / "captions_train2017.json").write_text(coco(annotations))
    embed(tmp_path / "g", tmp_path / "captions_train2017.json", "coco", keep_columns=("image_id",))
    names = {9: "000000000009.jpg", 25: "000000000025.jpg"}
    expected = [(names[int(str(one["image_id"]))], " ".join(str(one["caption"]).split())) for one in annotations]
    assert sample_texts(tmp_path / "g") == expected
    assert column(tmp_path / "g", "samples", "image_id") == ["25", "9", "25"]
    assert Manifest.load(tmp_path / "g").counts["samples"] == 2


def test_coco_is_streamed_whatever_the_order_of_its_parts(tmp_path: Path) -> None:
    # Longer than what is read at a time.
    content = json.loads(coco([{"image_id": 9, "id": i, "caption": f"caption {i} " + i * "of "} for i in range(400)]))
    turned = {name: content[name] for name in ("annotations", "info", "images", "licenses")}
    (tmp_path / "captions_val2017.json").write_text(json.dumps(turned, indent=1))
    embed(tmp_path / "g", tmp_path / "captions_val2017.json", "coco")
    assert column(tmp_path / "g", "texts", "text") == [f"caption {i} {i * 'of '}".strip() for i in range(400)]


def test_invalid_utf8_in_coco_is_named_by_its_row(tmp_path: Path) -> None:
    text = coco([{"image_id": 9, "id": 1, "caption": "fine"}, {"image_id": 9, "id": 2, "caption": "bad ## one"}])
    (tmp_path / "captions.json").write_bytes(text.encode().replace(b"##", b"\xff\xfe"))
    embed(tmp_path / "g", tmp_path / "captions.json", "coco")
    assert column(tmp_path / "g", "texts", "text") == ["fine", "bad \ufffd\ufffd one"]
    assert listed(tmp_path / "g") == {"invalid_utf8": ["captions.json:1"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (coco([{"image_id": 1, "id": 1, "caption": "x"}]), "annotation 0 is of picture 1, which is not among its images"),
        (coco([{"image_id": 9, "id": 1, "caption": "x"}])[:-9], "ends too early"),
        ('{"images": [], "info": {}}', "it has no list 'annotations'"),
        ("[1, 2]", "it has no list 'annotations'"),
        ('{"annotations": [3]}', "'annotations' holds int, not objects"),
        ("", "ends too early"),
    ],
)
def test_broken_coco_is_one_clear_error(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(SourceError, match=words) as error:
        embed(tmp_path / "g", tmp_path / "captions.json", "coco")
    assert "captions.json" in str(error.value)


FLICKR = {
    "results_20130124.token": """1000092795.jpg#0\tTwo young guys , "laughing" .
1000092795.jpg#1\tTwo men .
36979.jpg#0\tA group | of people .
""",
    "captions.txt": """image,caption
1000092795.jpg,"Two young guys , ""laughing"" ."
1000092795.jpg,Two men .
36979.jpg,A group | of people .
""",
    # The row without its second bar is the publisher's.
    "results.csv": """image_name| comment_number| comment
1000092795.jpg| 0| Two young guys , "laughing" .
1000092795.jpg| 1   Two men .
36979.jpg| 0| A group | of people .
""",
}


@pytest.mark.parametrize("name", FLICKR)
def test_flickr_files_in_each_form_give_the_same_captions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FLICKR[name])
    embed(tmp_path / "g", tmp_path / name, "flickr")
    assert sample_texts(tmp_path / "g") == [
        ("1000092795.jpg", 'Two young guys , "laughing" .'),
        ("1000092795.jpg", "Two men ."),
        ("36979.jpg", "A group | of people ."),
    ]
    assert Manifest.load(tmp_path / "g").counts["samples"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [("1.jpg#0\tone\n2.jpg two\n", "line 2 is not <file>, number, caption"), ("photo;text\n1;x\n", "no Flickr captions: line 1")],
)
def test_broken_flickr_file_names_the_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "results.token").write_text(content)
    with pytest.raises(SourceError, match=words):
        embed(tmp_path / "g", tmp_path / "results.token", "flickr")


def test_lines_are_captions_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b'a\t"tab" and, commas\n\nNA\r\nbad \xff\nlast without an end')
    embed(tmp_path / "g", tmp_path / "a.txt", "lines")
    assert sample_texts(tmp_path / "g") == [
        ("a.txt:0", 'a "tab" and, commas'),
        ("a.txt:2", "NA"),
        ("a.txt:3", "bad \ufffd"),
        ("a.txt:4", "last without an end"),
    ]
    assert listed(tmp_path / "g") == {"blank": ["a.txt:1"], "invalid_utf8": ["a.txt:3"]}


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
