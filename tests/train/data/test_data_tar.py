"""Webdataset shards against tarfile's reading of them: any order, the index, what is damaged, and the join by URL."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers_forked import run_program
from helpers_train import CLASSES, draw, encode, tiny_config, write_tar_shards, write_tiny_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import OptionError, SourceError
from graphbuild.system.archives import read_members
from train.data import tar, tar_index
from train.data.prepare import open_data, prepare
from train.data.sources import open_images
from train.run.loop import train


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def shard_of(path: Path, samples: dict[str, dict[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for key, members in samples.items():
            for suffix, data in members.items():
                add(archive, f"{key}.{suffix}", data)
    return path


def test_any_order_gives_the_bytes_that_tarfile_reads(tmp_path: Path) -> None:
    folder = write_tar_shards(tmp_path / "shards", 43)
    plain: list[bytes] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            plain += [archive.extractfile(item).read() for item in archive if item.name.endswith(".jpg")]  # type: ignore[union-attr]
    source = open_images(str(folder))
    order = np.random.default_rng(0).permutation(43).tolist()
    assert source.encoded(order) == [plain[i] for i in order]
    assert list(source.sample_ids) == [f"img-{i}" for i in range(43)]
    assert [source.sample_ids[i] for i in (42, 0, -1)] == ["img-42", "img-0", "img-42"]


def test_more_shards_than_are_held_open_are_read_from_several_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    source = tar.TarImages(sorted(write_tar_shards(tmp_path, 40, per_shard=4).glob("*.tar")), open_files=2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: source.encoded([i % 40])[0], range(400)))
    assert found == [encode(draw(i % 40)) for i in range(400)]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0."), min_size=1, max_size=120)


@settings(deadline=None, max_examples=60)
@given(
    files=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5),
    tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_those_that_tarfile_finds(files: list[tuple[str, bytes]], tar_format: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as archive:
        archive.addfile(tarfile.TarInfo("folder"))
        for name, data in files:
            try:
                add(archive, f"folder/{name}.jpg", data)
            except ValueError:
                # Longer than ustar can hold.
                continue
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        expected = [(item.name, item.offset_data, item.size) for item in archive]
    found = [(item.name, item.offset, item.size) for item in read_members(stream, len(stream.getvalue()))]
    assert found == expected


def test_samples_without_an_image_or_marked_as_failed_are_counted_and_left_out(tmp_path: Path) -> None:
    good = {"jpg": encode(draw(1)), "json": b'{"url": "u", "status": "success"}'}
    failed = {"jpg": b"x", "json": b'{"url": "v", "status": "failed_to_resize"}'}
    shard_of(tmp_path / "0.tar", {"a": good, "b": failed, "c": {"txt": b"words"}, "d": {"webp": b"y"}})
    source = open_images(str(tmp_path / "0.tar"))
    # Without JSON the id is the shard and the key.
    assert list(source.sample_ids) == ["u", "0/d"]
    assert [count for count in source.skipped.values() if count] == [1, 1]  # type: ignore[attr-defined]


def test_id_column_names_a_key_of_the_json(tmp_path: Path) -> None:
    folder = write_tar_shards(tmp_path, 20)
    assert open_images(str(folder), id_column="key").sample_ids[17] == "000010001"
    with pytest.raises(SourceError, match=r"00000\.tar: sample 000000000 has no 'photo' in its JSON, which has caption, url, key"):
        open_images(str(folder), id_column="photo")


def test_labels_come_from_the_json(tmp_path: Path) -> None:
    source = open_images(str(write_tar_shards(tmp_path, 20)))
    assert source.label_columns() == ("caption", "url", "key", "status", "width", "height", "label")
    assert source.labels("label").codes.tolist() == [i % CLASSES for i in range(20)]
    with pytest.raises(SourceError, match="no label column 'colour'; there are: caption, url"):
        source.labels("colour")


@pytest.mark.parametrize("kept", [0, 300, 700, 5000, -1024, -20000])
def test_shard_cut_short_anywhere_is_an_error_that_names_it(tmp_path: Path, kept: int) -> None:
    folder = write_tar_shards(tmp_path, 32)
    path = folder / "00001.tar"
    whole = path.read_bytes()
    # Writers fill up to 10,240 bytes with zeros, all but the first of which may go.
    path.write_bytes(whole.rstrip(b"\0")[:kept] if kept < 0 else whole[:kept])
    with pytest.raises(SourceError, match=r"00001\.tar: cut short at byte [\d,]+.*Replace it, or move it away"):
        open_images(str(folder))


def test_shard_that_holds_something_else_is_an_error_that_names_it_and_the_place(tmp_path: Path) -> None:
    folder = write_tar_shards(tmp_path, 16)
    data = bytearray((folder / "00000.tar").read_bytes())
    data[3] ^= 1
    (folder / "00000.tar").write_bytes(data)
    with pytest.raises(SourceError, match=r"00000\.tar: no tar header at byte 0"):
        open_images(str(folder))


def test_broken_json_is_an_error_that_names_shard_and_member(tmp_path: Path) -> None:
    shard_of(tmp_path / "0.tar", {"a": {"jpg": b"x", "json": b"{"}})
    with pytest.raises(SourceError, match=r"0\.tar: a\.json is no JSON"):
        open_images(str(tmp_path / "0.tar"))


@pytest.mark.parametrize(
    ("name", "message"), [("*.tar", "no file matches"), ("shards", "nothing there"), ("a.zip", "webdataset shards")]
)
def test_what_is_no_shard_is_one_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(SourceError, match=message):
        open_images(str(tmp_path / name))


def test_image_column_for_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--image-column 'jpg' is for Parquet files"):
        open_images(str(write_tar_shards(tmp_path, 3)), image_column="jpg")


def scans(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many shards are read to open a folder."""
    seen: list[Path] = []
    scan = tar_index.scan_shard
    monkeypatch.setattr(tar_index, "scan_shard", lambda path, *rest: (seen.append(path), scan(path, *rest))[1])
    open_images(str(folder))
    monkeypatch.setattr(tar_index, "scan_shard", scan)
    return len(seen)


def test_index_is_built_once_and_again_when_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tar_shards(tmp_path / "shards", 32)
    assert [scans(folder, monkeypatch) for _ in range(2)] == [2, 0]
    write_tar_shards(tmp_path / "shards", 32, prefix="new")
    assert scans(folder, monkeypatch) == 2
    assert open_images(str(folder)).sample_ids[31] == "new-31"
    (index,) = (folder / tar_index.FOLDER).glob("*.arrow")
    index.write_bytes(index.read_bytes()[:-200])
    assert scans(folder, monkeypatch) == 2
    damaged = bytearray(index.read_bytes())
    damaged[damaged.index(b"new-31") + 5] ^= 1
    index.write_bytes(damaged)
    assert scans(folder, monkeypatch) == 2
    assert open_images(str(folder)).sample_ids[31] == "new-31"


def test_index_of_shards_that_cannot_be_written_beside_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tar_shards(tmp_path / "shards", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A file in the place of the folder: root may write anywhere.
    (folder / tar_index.FOLDER).write_text("")
    assert [scans(folder, monkeypatch) for _ in range(2)] == [1, 0]
    assert list((tmp_path / "cache").rglob("*.arrow"))


KILLED = """
import os, signal, sys
from pathlib import Path
from train.data.sources import open_images; from train.data import tar_index
scan = tar_index.scan_shard
def scan_and_die(path, *rest):
    if path.name == "00002.tar":
        os.kill(os.getpid(), signal.SIGKILL)
    return scan(path, *rest)
tar_index.scan_shard = scan_and_die
tar_index._THREADS = 1
open_images(sys.argv[1])
"""


def test_index_killed_in_the_middle_is_built_by_the_next_run(tmp_path: Path) -> None:
    folder = write_tar_shards(tmp_path / "shards", 60)
    died = run_program(KILLED, folder)
    assert died.returncode < 0, died.stderr
    assert list(open_images(str(folder)).sample_ids) == [f"img-{i}" for i in range(60)]
    assert len(list((folder / tar_index.FOLDER).glob("[!.]*"))) == 2, "the index and its lock"
    assert not list((folder / tar_index.FOLDER).rglob("*.tmp"))


def test_shards_join_the_graph_by_url_and_the_match_rate_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = write_tiny_graph(tmp_path / "graph", 48)
    opened = open_data(tiny_config(graph_dir=str(graph), data=str(write_tar_shards(tmp_path / "shards", 50)), id_column=None))
    assert opened.joined is not None
    assert opened.joined.text_ids.tolist() == [i % 40 for i in range(48)]
    assert "shards (4 shards): the graph knows 48 of 50 images (96.0%), by sample id" in capfd.readouterr().err


def test_run_over_shards_trains_and_their_removal_is_one_error(tmp_path: Path) -> None:
    graph, folder = write_tiny_graph(tmp_path / "graph", 40), write_tar_shards(tmp_path / "shards", 40)
    config = tiny_config(graph_dir=str(graph), data=str(folder), id_column=None, steps=3, cache_gb=0.0)
    assert train(config, tmp_path / "run").steps == 3
    source = open_images(str(folder))
    (folder / "00000.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"00000\.tar: shorter than it was when it was indexed"):
        source.encoded([0])
    assert json.loads((folder / "00000_stats.json").read_text())["count"] == 16


def test_samples_without_an_image_are_said_and_counted_in_the_runs_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for number in range(12):
            for suffix, content in (("png" if number % 3 else "doc", encode(draw(number))), ("txt", b"a caption")):
                entry = tarfile.TarInfo(f"{number:05d}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    data = prepare(tiny_config(objective="simclr", data=str(tmp_path / "00000.tar"), id_column=None))
    told = capsys.readouterr().err
    assert "left out: 4 samples without an image" in told
    assert [(line["event"], line["samples_without_an_image"]) for line in data.events] == [("samples_left_out", 4)]
    data.close()
