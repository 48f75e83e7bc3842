"""CC3M, CC12M and the output of img2dataset: what is read, and what goes wrong with them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from helpers_embed import column, embed, write_captions
from helpers_published import CRAWL, URLS, listed, sample_texts, write_shard, write_sidecar

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.manifest import Manifest
from train.data.sources import open_images, recorded_images

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
