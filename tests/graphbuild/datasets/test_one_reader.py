"""What `embed` reads, `train` reads, and the other way round: names, shards, ids and what is left out."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed
from helpers_train import draw, encode

from graphbuild.errors import SourceError
from graphbuild.store.manifest import Manifest
from graphbuild.system.archives import DamagedArchive, Shard
from graphbuild.system.inputs import expand_braces, file_names, list_files
from train.data.base import ImageSource
from train.data.sources import open_images, recorded_images

Members = Mapping[str, bytes]


def tar_of(path: Path, samples: Sequence[tuple[str, Members]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for key, members in samples:
            for suffix, data in members.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


def pair(i: int, **record: Any) -> Members:
    return {"jpg": encode(draw(i), "jpeg"), "txt": f"caption {i}".encode()} | (
        {"json": json.dumps(record).encode()} if record else {}
    )


def trained_on(graph_dir: Path) -> ImageSource:
    recorded = recorded_images(Manifest.load(graph_dir).dataset, graph_dir)
    assert recorded is not None
    return open_images(**recorded)


def samples_of(graph_dir: Path) -> dict[str, str]:
    texts = column(graph_dir, "texts", "text")
    rows = zip(column(graph_dir, "samples", "sample_id"), column(graph_dir, "samples", "text_id"), strict=True)
    return {sample_id: texts[text_id] for sample_id, text_id in rows}


def test_a_pipe_is_refused_for_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(SourceError, match=r"a\.csv: is a pipe or a device"):
        list_files(str(tmp_path / "a.csv"), (".csv",))


@pytest.mark.parametrize("dataset", ["img2dataset", "webdataset"])
def test_keys_that_restart_in_every_shard_are_told_apart_by_the_shard(tmp_path: Path, dataset: str) -> None:
    for shard in range(2):
        tar_of(tmp_path / "s" / f"{shard:05d}.tar", [(f"{i:05d}", pair(10 * shard + i)) for i in range(3)])
    embed(tmp_path / "g", tmp_path / "s", dataset)
    expected = {f"{shard:05d}/{i:05d}": f"caption {10 * shard + i}" for shard in range(2) for i in range(3)}
    assert samples_of(tmp_path / "g") == expected
    assert list(trained_on(tmp_path / "g").sample_ids) == list(expected)


def test_key_that_comes_twice_in_a_shard_is_refused_by_both(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("0", pair(0)), ("1", pair(1)), ("0", pair(2))])
    for read in (lambda: embed(tmp_path / "g", path, "webdataset"), lambda: open_images(str(path))):
        with pytest.raises(SourceError, match=r"a\.tar: .*the key '0' comes twice"):
            read()
    # With ids of their own, keys may restart.
    path = tar_of(tmp_path / "b.tar", [("0", pair(0, url="u")), ("1", pair(1, url="v")), ("0", pair(2, url="w"))])
    assert list(open_images(str(path)).sample_ids) == ["u", "v", "w"]


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.8])
def test_damaged_shard_is_an_error_with_file_and_byte_wherever_it_is_damaged(tmp_path: Path, damage: str, at: float) -> None:
    path = tar_of(tmp_path / "a.tar", [(f"{i}", pair(i)) for i in range(20)])
    whole = path.read_bytes().rstrip(b"\0")
    place = int(len(whole) * at) // 512 * 512
    with tarfile.open(path) as archive:
        headers = [member.offset for member in archive]
    header = min(headers, key=lambda offset: abs(offset - place))
    path.write_bytes(
        whole[: place + 100] if damage == "cut" else whole[:header] + b"\x07" * 512 + whole[header + 512 :] + bytes(1024)
    )
    for read in (lambda: embed(tmp_path / "g", path, "webdataset"), lambda: open_images(str(path))):
        with pytest.raises(SourceError, match=r"a\.tar: .*byte [\d,]+"):
            read()


@pytest.mark.parametrize("dataset", ["img2dataset", "webdataset"])
def test_suffixes_in_capitals_marks_and_hidden_members_are_read_alike(tmp_path: Path, dataset: str) -> None:
    members = {"JPG": encode(draw(1), "jpeg"), "TXT": b"a caption", "JSON": b'\xef\xbb\xbf{"url": "u"}'}
    samples = [("0", members), ("._0", {"jpg": b"junk", "json": b"junk"}), ("__MACOSX/0", {"txt": b"junk"})]
    path = tar_of(tmp_path / "s" / "0.tar", samples)
    (path.parent / "._0.tar").write_bytes(b"junk")
    embed(tmp_path / "g", path.parent, dataset)
    source = trained_on(tmp_path / "g")
    assert samples_of(tmp_path / "g") == {"u": "a caption"}
    assert list(source.sample_ids) == ["u"]
    assert Manifest.load(tmp_path / "g").counts["hidden_files"] == 4
    assert {what: count for what, count in source.skipped.items() if count} == {"hidden members": 3, "hidden files": 1}  # type: ignore[attr-defined]


def test_lists_of_captions_in_json_are_several_captions(tmp_path: Path) -> None:
    record = {"url": "u", "caption": ["one", "two"], "coco": [{"raw": "three"}, {"raw": "four"}]}
    path = tar_of(tmp_path / "0.tar", [("0", {"jpg": b"x", "json": json.dumps(record).encode()})])
    embed(tmp_path / "g", path, "img2dataset")
    assert column(tmp_path / "g", "texts", "text") == ["one", "two"]
    embed(tmp_path / "h", path, "webdataset", caption_column="coco")
    assert column(tmp_path / "h", "texts", "text") == ["three", "four"]


def test_columns_of_shards_are_honoured_or_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "0.tar", [("0", {**pair(0, recaption="long text", name="n"), "cls": b"7"})])
    for dataset in ("img2dataset", "webdataset"):
        graph_dir = tmp_path / dataset
        embed(graph_dir, path, dataset, caption_column="recaption", id_column="name", keep_columns=("cls", "txt"))
        assert samples_of(graph_dir) == {"n": "long text"}
        assert (column(graph_dir, "samples", "cls"), column(graph_dir, "samples", "txt")) == (["7"], ["caption 0"])
        for options in ({"caption_column": "nothing"}, {"id_column": "nothing"}, {"keep_columns": ("nothing",)}):
            with pytest.raises(SourceError, match="no sample has 'nothing'; they have: recaption, name, jpg, txt, json, cls"):
                embed(tmp_path / "x", path, dataset, **options)


def test_status_of_others_is_not_that_of_a_download(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "0.tar", [("0", pair(0, url="u", status="approved")), ("1", pair(1, url="v", status="failed_to_resize"))]
    )
    embed(tmp_path / "g", path, "img2dataset")
    assert samples_of(tmp_path / "g") == {"u": "caption 0"}
    assert list(trained_on(tmp_path / "g").sample_ids) == ["u"]


def test_member_names_that_are_no_utf8_are_written_out_alike(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "0.tar", [("caf\xe9", pair(0))], format=tarfile.USTAR_FORMAT, encoding="latin-1")
    embed(tmp_path / "g", path, "webdataset")
    assert list(samples_of(tmp_path / "g")) == list(trained_on(tmp_path / "g").sample_ids) == ["0/caf\\xe9"]


def test_members_of_one_name_that_stand_together_are_refused() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("0.jpg"))
    with pytest.raises(DamagedArchive, match=r"two members are called 0\.jpg, at bytes 512 and 1,024"):
        list(Shard("s", stream, len(stream.getvalue())).samples())


def write_pictures(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(draw(1), "jpeg"))
    return root


def test_class_folders_are_listed_alike(tmp_path: Path) -> None:
    good = ("cat/a.jpg", "cat/b.JFIF", "dog_house/c.avif")
    junk = ("cat/._a.jpg", "cat/.ipynb_checkpoints/a.jpg", ".ipynb_checkpoints/a.jpg", "dog_house/notes.md")
    root = write_pictures(tmp_path / "pets", *good, *junk)
    embed(tmp_path / "g", root, "imagefolder")
    source = trained_on(tmp_path / "g")
    assert column(tmp_path / "g", "samples", "sample_id") == list(source.sample_ids) == list(good)
    assert column(tmp_path / "g", "texts", "text") == ["a photo of a cat", "a photo of a dog house"]
    counts = Manifest.load(tmp_path / "g").counts
    assert (counts["hidden_files"], counts["files_not_pictures"]) == (1, 1)
    assert source.skipped == {"hidden files": 1, "files that are no pictures": 1}  # type: ignore[attr-defined]


def test_folders_of_class_folders_are_no_classes(tmp_path: Path) -> None:
    names = [f"{split}/{name}/0.jpg" for split in ("test", "train") for name in ("cat", "dog")]
    with pytest.raises(SourceError, match=r"test, train hold no pictures but folders of them.*--source, such as .*data/test"):
        embed(tmp_path / "g", write_pictures(tmp_path / "data", *names), "imagefolder")
    # One folder below each class is how Tiny-ImageNet is unpacked.
    embed(tmp_path / "g", write_pictures(tmp_path / "tiny", "cat/images/0.jpg", "dog/images/0.jpg"), "imagefolder")


def test_files_of_img2dataset_are_trained_on_by_their_urls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_pictures(tmp_path / "out", *(f"00000/{i:09d}.jpg" for i in (0, 2)))
    statuses = ["success", "failed_to_download", "success", "success"]
    rows = {"url": [f"u{i}" for i in range(4)], "caption": [f"c{i}" for i in range(4)], "key": [f"{i:09d}" for i in range(4)]}
    pq.write_table(pa.table({**rows, "status": statuses}), out / "00000.parquet")
    embed(tmp_path / "g", out, "img2dataset")
    assert samples_of(tmp_path / "g") == {"u0": "c0", "u2": "c2", "u3": "c3"}
    for source in (trained_on(tmp_path / "g"), open_images(str(out))):
        assert list(source.sample_ids) == ["u0", "u2"]
        assert source.encoded([1]) == [(out / "00000/000000002.jpg").read_bytes()]
    assert "left out: 1 samples that were not downloaded, 1 samples without an image" in capsys.readouterr().err


def test_signs_of_patterns_in_folders_that_are_there_are_no_pattern(tmp_path: Path) -> None:
    tar_of(tmp_path / "crawl[v2]" / "0.tar", [("0", pair(0, url="u"))])
    for number, source in enumerate(("crawl[v2]", "crawl[v2]/*.tar", "crawl[v2]/{0..0}.tar")):
        embed(tmp_path / f"g[{number}]", tmp_path / source, "webdataset")
        assert list(trained_on(tmp_path / f"g[{number}]").sample_ids) == ["u"]


def test_pictures_inside_a_graph_directory_with_signs_in_its_name_are_found(tmp_path: Path) -> None:
    embed(tmp_path / "g[1]", "train=20,val=10,side=16", "scenes")
    assert len(trained_on(tmp_path / "g[1]")) == 20


def test_braces_stand_for_all_their_names() -> None:
    assert expand_braces("a/{008..010}.tar") == ["a/008.tar", "a/009.tar", "a/010.tar"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain") == ["plain"]


def test_folder_is_searched_through_all_levels_only_if_it_has_no_such_files_itself(tmp_path: Path) -> None:
    names = ("y/b.pq", "x/a.parquet", ".hidden/c.parquet", "_delta_log/d.parquet", "graph/texts/e.parquet", "x/f.txt", "x/.g.pq")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "graph/graph.json").touch()
    listing = list_files(str(tmp_path), (".parquet", ".pq"))
    assert ([path.relative_to(tmp_path).as_posix() for path in listing.paths], listing.hidden) == (["x/a.parquet", "y/b.pq"], 1)
    (tmp_path / "top.parquet").touch()
    assert list_files(str(tmp_path), (".parquet", ".pq")).paths == (tmp_path / "top.parquet",)


def test_files_are_called_by_their_names_unless_two_have_one() -> None:
    assert file_names(["/d/a.tar", "/d/e/b.tar"]) == ["a.tar", "b.tar"]
    assert file_names(["/d/x/a.tar", "/d/y/a.tar", "/d/b.tar"]) == ["x/a.tar", "y/a.tar", "b.tar"]


def test_images_option_records_where_the_pictures_are(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", "1.jpg", "2.jpg")
    (tmp_path / "captions.csv").write_text("file,caption\n1.jpg,one\n2.jpg,two\n")
    embed(tmp_path / "g", tmp_path / "captions.csv", "csv", id_column="file", images=str(folder))
    assert list(trained_on(tmp_path / "g").sample_ids) == ["1.jpg", "2.jpg"]
    with pytest.raises(SourceError, match=r"none of the first 2 samples is a file in it, such as 'captions\.csv:0'"):
        embed(tmp_path / "h", tmp_path / "captions.csv", "csv", images=str(folder))


def test_many_row_groups_are_read_by_footers_that_were_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [encode(draw(i)) for i in range(30)]
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet", row_group_size=1)
    source = open_images(str(tmp_path / "a.parquet"))
    without: list[Path] = []
    opened = pq.ParquetFile

    def count(path: Path, **options: Any) -> pq.ParquetFile:
        if options.get("metadata") is None:
            without.append(path)
        return opened(path, **options)

    monkeypatch.setattr(pq, "ParquetFile", count)
    order = np.random.default_rng(0).permutation(30).tolist()
    assert source.encoded(order) == [pictures[i] for i in order]
    assert not without


def break_json(path: Path, key: str) -> None:
    """Make the JSON of one sample of a shard no JSON, and leave its length."""
    data = bytearray(path.read_bytes())
    place = data.index(key.encode())
    data[place : place + len(key)] = b"\x00" * len(key)
    path.write_bytes(data)


def test_damaged_samples_and_the_rest_of_a_cut_shard_are_left_out_by_both_and_counted(tmp_path: Path) -> None:
    samples = [(f"{i:03d}", pair(i, url=f"http://x/{i}")) for i in range(6)]
    tar_of(tmp_path / "s" / "00000.tar", samples)
    whole = tar_of(tmp_path / "s" / "00001.tar", [(key, pair(10 + i, url=f"http://y/{i}")) for i, (key, _) in enumerate(samples)])
    break_json(tmp_path / "s" / "00000.tar", '"http://x/2"')
    whole.write_bytes(whole.read_bytes()[:-12_000])
    with pytest.raises(SourceError, match=r"00000\.tar"):
        embed(tmp_path / "g", tmp_path / "s", "webdataset")
    embed(tmp_path / "g", tmp_path / "s", "webdataset", skip_broken=True)
    manifest, found = Manifest.load(tmp_path / "g"), samples_of(tmp_path / "g")
    assert manifest.counts["broken_rows"] == 2
    assert [line.split(":")[0] for line in manifest.stages["text"].facts["broken_rows"]] == ["00000.tar", "00001.tar"]
    assert [f"http://x/{i}" in found for i in range(6)] == [True, True, False, True, True, True]
    assert 0 < sum(name.startswith("http://y") for name in found) < 6
    images = trained_on(tmp_path / "g")
    assert set(found) <= {*images.sample_ids}
    assert images.skipped["samples that are damaged"] == 2  # type: ignore[attr-defined]


def test_rows_without_an_id_and_damaged_row_groups_of_parquet_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ids = [None if i == 4 else f"id-{i}" for i in range(30)]
    table = pa.table({"id": ids, "caption": [f"caption number {i}" for i in range(30)]})
    pq.write_table(table, path, row_group_size=10, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(SourceError):
        embed(tmp_path / "g", path, "parquet", id_column="id")
    embed(tmp_path / "g", path, "parquet", id_column="id", skip_broken=True)
    assert samples_of(tmp_path / "g") == {f"id-{i}": f"caption number {i}" for i in [*range(4), *range(5, 10), *range(20, 30)]}
    assert Manifest.load(tmp_path / "g").counts["broken_rows"] == 11
