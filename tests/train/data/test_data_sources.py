"""Image sources against plain reading of the same files, and decoding."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_train import CLASSES, draw, encode, write_images
from PIL import Image

from graphbuild.errors import OptionError, SourceError
from graphbuild.system.pictures import UnreadablePicture
from train.data.base import decode, short_side
from train.data.sources import open_images, recorded_images


def test_parquet_images_come_in_any_order_across_files_and_row_groups(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", 40, group=7)
    write_images(tmp_path / "b.parquet", 23, prefix="other", group=5)
    source = open_images(str(tmp_path), id_column="id")
    order = np.random.default_rng(0).permutation(63).tolist()
    plain = [cell for name in ("a", "b") for cell in pq.read_table(tmp_path / f"{name}.parquet")["image"].to_pylist()]
    assert source.encoded(order) == [plain[i] for i in order]
    assert list(source.sample_ids) == [f"img-{i}" for i in range(40)] + [f"other-{i}" for i in range(23)]


def test_parquet_ids_are_file_and_row_unless_a_column_is_named(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 3)))
    assert list(source.sample_ids) == ["a.parquet:0", "a.parquet:1", "a.parquet:2"]


def test_parquet_reads_the_image_struct_of_hugging_face(tmp_path: Path) -> None:
    cells = [{"bytes": encode(draw(i)), "path": f"{i}.png"} for i in range(4)]
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]}), tmp_path / "hf.parquet")
    source = open_images(str(tmp_path / "hf.parquet"))
    assert source.encoded([2, 0]) == [cells[2]["bytes"], cells[0]["bytes"]]


def test_parquet_labels_are_numbered_in_the_order_of_their_values(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 12)))
    labels = source.labels("label")
    assert labels.names == tuple(f"class {i}" for i in range(CLASSES))
    assert labels.codes.tolist() == [i % CLASSES for i in range(12)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_column": "photo"}, r"no column 'photo'; the columns are: image, id, label"),
        ({"image_column": "id"}, r"column 'id' holds string, not image bytes"),
        ({"id_column": "key"}, r"no column 'key'; the columns are: image, id, label"),
    ],
)
def test_error_for_a_missing_parquet_column_names_those_that_exist(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    path = write_images(tmp_path / "a.parquet", 3)
    with pytest.raises(SourceError, match=message):
        open_images(str(path), **arguments)  # type: ignore[arg-type]


def test_error_for_two_binary_columns_names_both(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match=r"several binary columns \(a, b\)\. Name the images with --image-column"):
        open_images(str(tmp_path / "two.parquet"))


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_unusable_parquet_is_one_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    if damage != "missing":
        write_images(path, 0 if damage == "empty" else 20)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match=str(path)):
        open_images(str(path))


def test_folder_ids_are_paths_and_classes_are_folders(tmp_path: Path) -> None:
    for name in ("n02/b.png", "n01/a.JPEG", "n01/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(1)).save(tmp_path / name)
    (tmp_path / "n01" / "notes.txt").write_text("no image")
    source = open_images(str(tmp_path))
    assert list(source.sample_ids) == ["n01/a.JPEG", "n01/deep/c.png", "n02/b.png"]
    assert source.class_ids() == ["n01", "n01", "n02"]
    assert source.labels("label").codes.tolist() == [0, 0, 1]
    assert source.encoded([2]) == [(tmp_path / "n02/b.png").read_bytes()]


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no image files"):
        open_images(str(tmp_path))


def test_image_column_for_a_folder_is_refused(tmp_path: Path) -> None:
    Image.fromarray(draw(1)).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match="--image-column 'image' is for Parquet files"):
        open_images(str(tmp_path), image_column="image")


def test_cifar_is_read_from_the_folder_layout_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    # The files' digests are those of the real data, which no test may download.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 3, 32, 32), dtype=np.uint8)
    for index in range(5):
        content = {"data": pixels[index : index + 1].reshape(1, -1), "labels": [index]}
        (folder / f"data_batch_{index + 1}").write_bytes(pickle.dumps(content))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels[5:].reshape(1, -1), "labels": [9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"name {i}" for i in range(10)]}))
    train, test = (open_images(f"cifar10:{tmp_path}", validation=flag) for flag in (False, True))
    assert (len(train), len(test)) == (5, 1)
    assert train.class_ids() == [f"name {i}" for i in range(5)]
    item = train.encoded([3])[0]
    assert isinstance(item, np.ndarray)
    assert np.array_equal(decode(item, 32)[0], pixels[3])


def test_recorded_images_are_relative_to_the_graph_only_inside_it(tmp_path: Path) -> None:
    images = {"kind": "parquet", "path": "images/train.parquet", "val": "/far/val.parquet", "image_column": "image"}
    dataset = {"images": images, "id_column": "id"}
    assert recorded_images(dataset, tmp_path) == {
        "data": str(tmp_path / "images/train.parquet"),
        "image_column": "image",
        "id_column": "id",
    }
    assert (recorded_images(dataset, tmp_path, validation=True) or {})["data"] == "/far/val.parquet"
    assert recorded_images({}, tmp_path) is None


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_every_mode_decodes_to_the_rgb_that_it_stands_for(mode: str) -> None:
    gray = Image.fromarray(np.full((6, 8), 255, np.uint8))
    pixels, size = decode(saved(gray.convert(mode), "PNG"), 4)
    assert size == (6, 8)
    assert pixels.shape == (3, 4, 4)
    assert (pixels == 255).all()


def test_sixteen_bit_grayscale_is_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(np.full((4, 4), 0x4000, np.uint16))
    assert (decode(saved(deep, "PNG"), 4)[0] == 0x40).all()


def test_cmyk_jpeg_decodes() -> None:
    pixels, _ = decode(saved(Image.fromarray(draw(0)).convert("CMYK"), "JPEG"), 12)
    assert np.abs(pixels.transpose(1, 2, 0).astype(int) - draw(0)).mean() < 40


@pytest.mark.parametrize(
    "item", [None, b"", b"not an image", encode(draw(0))[:60], encode(draw(0, height=64, width=64), "jpeg")[:400]]
)
def test_what_is_no_whole_image_is_unreadable(item: bytes | None) -> None:
    with pytest.raises(UnreadablePicture):
        decode(item, 8)


def test_short_side_is_read_from_the_header() -> None:
    assert short_side(encode(draw(0, height=20, width=30))) == 20
    assert short_side(b"nothing") is None
