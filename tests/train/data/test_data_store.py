"""The image store: in memory or batch by batch, the same pixels; unreadable images are counted, named and left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_train import draw, encode, write_images
from PIL import Image

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.arrays import Int64
from train.data.prefetch import read_ahead
from train.data.sources import open_images
from train.data.store import CorruptImages, ImageStore, choose_load_size


def store_of(
    path: Path, *, cache: bool, limit: int = 100, indices: Int64 | None = None
) -> tuple[ImageStore, list[tuple[str, str]]]:
    source = open_images(str(path), id_column="id")
    told: list[tuple[str, str]] = []
    corrupt = CorruptImages("here", limit, lambda name, reason: told.append((name, reason)))
    return ImageStore(source, size=6, corrupt=corrupt, indices=indices, cache_bytes=1 << 30 if cache else 0), told


@pytest.mark.parametrize("cache", [True, False])
def test_batch_holds_the_images_in_the_order_asked_for(tmp_path: Path, cache: bool) -> None:
    store, _ = store_of(write_images(tmp_path / "a.parquet", 30), cache=cache, indices=np.arange(10, 30))
    batch = store.batch(np.array([5, 0, 19]))
    expected = [np.asarray(Image.fromarray(draw(i)).resize((6, 6), Image.Resampling.BILINEAR)) for i in (15, 10, 29)]
    assert np.array_equal(batch.pixels.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    assert batch.sizes.tolist() == [[12, 12]] * 3
    assert store.cached is cache


@pytest.mark.parametrize("cache", [True, False])
def test_unreadable_images_are_named_once_and_left_out(tmp_path: Path, cache: bool) -> None:
    store, told = store_of(write_images(tmp_path / "a.parquet", 10, broken=(2, 7)), cache=cache)
    for _ in range(2):
        batch = store.batch(np.arange(10))
        assert batch.rows.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
        assert batch.pixels.shape == (8, 3, 6, 6)
    assert told == [("img-2", "no image of a known format"), ("img-7", "no image of a known format")]


def test_more_unreadable_images_than_allowed_are_an_error_with_both_numbers(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.parquet", 10, broken=(1, 2, 3))
    with pytest.raises(SourceError, match=r"here: 3 images cannot be read .*img-3.*more than --max-corrupt 2"):
        store_of(path, cache=True, limit=2)


@pytest.mark.parametrize(("side", "view", "expected"), [(24, 32, 32), (48, 32, 48), (500, 32, 64), (500, 224, 256), (64, 64, 64)])
def test_images_are_held_between_one_and_two_view_sizes(tmp_path: Path, side: int, view: int, expected: int) -> None:
    (tmp_path / "c").mkdir()
    for index in range(3):
        (tmp_path / "c" / f"{index}.png").write_bytes(encode(draw(index, height=side + 10, width=side)))
    assert choose_load_size(open_images(str(tmp_path)), view) == expected


def test_images_are_held_on_the_device_only_where_asked_or_where_it_is_a_gpu(tmp_path: Path) -> None:
    path, cpu = write_images(tmp_path / "a.parquet", 6, broken=(2,)), torch.device("cpu")
    held, _ = store_of(path, cache=True)
    before = held.batch(np.arange(6))
    assert [held.hold_on(cpu, choice) for choice in ("auto", "no", "yes")] == [False, False, True]  # type: ignore[arg-type]
    after = held.batch(np.arange(6))
    assert torch.equal(before.pixels, after.pixels)
    assert before.rows.tolist() == after.rows.tolist()
    read, _ = store_of(path, cache=False)
    assert not read.hold_on(cpu, "auto")
    with pytest.raises(OptionError, match=r"--images-on-device yes: decoded images take 0\.0 GB\. Raise --cache-gb"):
        read.hold_on(cpu, "yes")


def test_parquet_that_does_not_stay_in_memory_is_told_of(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 32, group=8)))
    assert source.random_order_note == ""  # type: ignore[attr-defined]
    source.keep_bytes = 1000  # type: ignore[attr-defined]
    assert "`train reshard` writes shards that are read by position" in source.random_order_note  # type: ignore[attr-defined]


def test_reading_ahead_gives_the_same_items_in_order() -> None:
    assert list(read_ahead(iter(range(50)), depth=3)) == list(range(50))


def test_error_of_the_reading_thread_comes_where_the_item_would() -> None:
    def items() -> object:
        yield 1
        raise SourceError("broken")

    ahead = read_ahead(items())  # type: ignore[arg-type]
    assert next(ahead) == 1
    with pytest.raises(SourceError, match="broken"):
        next(ahead)


def test_closing_the_reader_ends_the_thread() -> None:
    import threading

    before = threading.active_count()
    ahead = read_ahead(iter(range(1_000_000)))
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
