"""Pictures of samples, from every kind of place that a manifest can name."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from graphbuild.quality.pictures import picture_bytes
from graphbuild.store.manifest import Manifest

COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 200)}


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def show(folder: Path, images: dict[str, str | None], ids: list[str], **dataset: str) -> tuple[dict[str, tuple[int, ...]], str]:
    """The mean colour of each picture that was found, and the note."""
    manifest = Manifest(dataset={"name": "test", "images": images, **dataset}, counts={}, stages={})
    found, note = picture_bytes(folder, manifest, ids, pixels=16)
    means = {name: np.asarray(Image.open(io.BytesIO(data))).mean(axis=(0, 1)) for name, data in found.items()}
    return {name: tuple(int(value) for value in mean.round(-1)) for name, mean in means.items()}, note


def nearest(mean: tuple[int, ...]) -> str:
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], mean, strict=True)))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("own_ids", [False, True], ids=["shard and key", "id in the JSON"])
def test_webdataset_shards_show_the_samples_that_are_asked_for(tmp_path: Path, own_ids: bool) -> None:
    for shard, colours in (("00000", ("red", "green")), ("00001", ("blue",))):
        members: dict[str, bytes] = {}
        for number, colour in enumerate(colours):
            members[f"k{number}.png"] = png(COLOURS[colour])
            members[f"k{number}.json"] = json.dumps({"url": f"http://{colour}"} if own_ids else {}).encode()
        write_tar(tmp_path / f"{shard}.tar", members)
    ids = ["http://green", "http://blue"] if own_ids else ["00000/k1", "00001/k0"]
    found, note = show(tmp_path, {"kind": "webdataset", "path": str(tmp_path)}, [*ids, "gone"])
    assert {name: nearest(mean) for name, mean in found.items()} == dict(zip(ids, ("green", "blue"), strict=True))
    assert note == "1 of 3 pictures could not be read."


def test_folders_of_img2dataset_show_what_their_tables_name(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    for key, colour in (("000000000", "red"), ("000000001", "blue")):
        (tmp_path / f"00000/{key}.png").write_bytes(png(COLOURS[colour]))
    columns = {
        "key": ["000000000", "000000001", "../secret"],
        "url": ["http://red", "http://blue", "http://outside"],
        "status": ["success", "failed_to_download", "success"],
    }
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    (tmp_path / "secret.png").write_bytes(png(COLOURS["green"]))
    found, note = show(tmp_path, {"kind": "img2dataset", "path": str(tmp_path)}, columns["url"])
    assert {name: nearest(mean) for name, mean in found.items()} == {"http://red": "red"}
    assert note.startswith("2 of 3")


def test_cifar_shows_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda _self: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "red", "green"), start=1):
        row = np.repeat(np.array(COLOURS[colour], np.uint8), 1024)[None]
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps({"data": row, "labels": [0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["thing"]}))
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    found, _ = show(tmp_path, {"kind": "cifar10", "path": str(tmp_path)}, ["train/1", "train/2", "train/99"])
    assert {name: nearest(mean) for name, mean in found.items()} == {"train/1": "green", "train/2": "blue"}


def test_a_place_that_is_gone_is_said(tmp_path: Path) -> None:
    found, note = show(tmp_path, {"kind": "webdataset", "path": str(tmp_path / "gone")}, ["a"])
    assert found == {}
    assert note.startswith("Pictures could not be read (SourceError)")
