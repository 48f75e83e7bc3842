"""Images that cannot be read: what takes their places, the limit, and what must be read although it is unusual."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers_train import draw, encode, tiny_config, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from graphbuild.errors import SourceError
from graphbuild.system.pictures import UnreadablePicture
from graphbuild.targets.batches import Batch, NeighborBatches, RandomBatches
from train.data.base import decode
from train.data.prepare import TrainingData, prepare
from train.run.loop import settle
from train.run.trainer import Trainer

JPEG, PNG = encode(draw(0, height=48, width=64), "jpeg"), encode(draw(0, height=48, width=64), "png")


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from([JPEG, PNG]), cut=st.integers(0, 20_000), flips=st.lists(st.integers(0, 20_000), max_size=3))
def test_damaged_bytes_are_a_picture_or_unreadable_and_nothing_else(kind: bytes, cut: int, flips: list[int]) -> None:
    data = bytearray(kind[: max(1, len(kind) - cut)] if cut < len(kind) else kind)
    for place in flips:
        data[place % len(data)] ^= 0x55
    try:
        pixels, _ = decode(bytes(data), 16)
    except UnreadablePicture:
        return
    assert pixels.shape == (3, 16, 16)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("whole", [JPEG, PNG], ids=["jpeg", "png"])
def test_picture_cut_short_is_unreadable(whole: bytes, share: float) -> None:
    with pytest.raises(UnreadablePicture):
        decode(whole[: int(share * len(whole))], 16)


def test_png_with_wrong_bytes_is_unreadable() -> None:
    wrong = bytearray(PNG)
    start = PNG.index(b"IDAT") + 4
    wrong[start + 200 : start + 260] = bytes(60)
    with pytest.raises(UnreadablePicture):
        decode(bytes(wrong), 16)


def test_unusual_pictures_decode_to_what_they_show() -> None:
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    pictures = {
        "gray": Image.fromarray(ramp),
        "16 bit": Image.fromarray(ramp.astype(np.uint16) << 8),
        "palette": Image.fromarray(ramp).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=32),
        "alpha": Image.fromarray(ramp).convert("RGBA"),
    }
    for name, picture in pictures.items():
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        pixels, size = decode(stream.getvalue(), 32)
        assert size == (32, 32)
        assert np.abs(pixels.astype(int) - ramp).max() <= 8, name


def test_cmyk_jpeg_decodes_to_its_colours() -> None:
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    stream = io.BytesIO()
    red.save(stream, "JPEG", quality=95)
    pixels, _ = decode(stream.getvalue(), 16)
    assert np.abs(pixels.astype(int) - np.array([255, 0, 0])[:, None, None]).max() < 12


def test_sixteen_bit_colour_png_is_scaled() -> None:
    # Written by hand, for Pillow cannot: one red, half bright pixel of 16 bits a channel.
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">HHH", 0x8000, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixels, _ = decode(data + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""), 1)
    assert pixels.ravel().tolist() == [0x80, 0, 0]


def readable_twin(batches: RandomBatches, epoch: int, step: int, broken: set[int]) -> list[int]:
    """What a batch ends with, spelled out: walk on through the epoch at each place until a picture can be read."""
    result = []
    for place, sample in enumerate(batches.batch(epoch, step)):
        now = int(sample)
        later = step
        while now in broken:
            later = (later + 1) % batches.steps_per_epoch
            now = int(batches.batch(epoch, later)[place])
        result.append(now)
    return result


def data_of(path: Path, *, cache_gb: float, limit: int = 100) -> TrainingData:
    return prepare(tiny_config(objective="simclr", data=str(path), cache_gb=cache_gb, max_corrupt=limit))


@pytest.mark.parametrize("cache_gb", [0.0, 4.0])
def test_batch_stays_full_by_the_same_places_of_the_next_batches(tmp_path: Path, cache_gb: float) -> None:
    broken = {2, 3, 11, 17, 25, 26}
    data = data_of(write_images(tmp_path / "a.parquet", 45, broken=tuple(broken)), cache_gb=cache_gb)
    for batches in (RandomBatches(45, 8, 1), NeighborBatches(np.arange(45) // 4, 8, 1)):
        for epoch in range(2):
            # Backwards: nothing may depend on what was met before.
            for step in reversed(range(batches.steps_per_epoch)):
                batch = Batch(epoch, step, batches.batch(epoch, step))
                found = data.store.batch(batch.indices, batches.instead(batch))
                assert found.rows.tolist() == readable_twin(batches, epoch, step, broken)
                assert found.pixels.shape == (8, 3, 12, 12)
                for row, pixels in zip(found.rows, found.pixels.numpy(), strict=True):
                    assert np.array_equal(pixels, decode(encode(draw(int(row))), 12)[0])
    data.close()


def test_only_batch_of_an_epoch_is_filled_from_itself(tmp_path: Path) -> None:
    data = data_of(write_images(tmp_path / "a.parquet", 8, broken=(1, 2, 3, 4, 5, 6, 7)), cache_gb=0.0)
    batches = RandomBatches(8, 8, 0)
    batch = Batch(0, 0, batches.batch(0, 0))
    assert data.store.batch(batch.indices, batches.instead(batch)).rows.tolist() == [0] * 8
    data.close()


@pytest.mark.parametrize("count", [8, 16])
def test_no_readable_image_ends_and_does_not_loop(tmp_path: Path, count: int) -> None:
    data = data_of(write_images(tmp_path / "a.parquet", count, broken=tuple(range(count))), cache_gb=0.0)
    batches = RandomBatches(count, 8, 0)
    batch = Batch(0, 0, batches.batch(0, 0))
    with pytest.raises(SourceError, match=f"none of the {count} images can be read"):
        data.store.batch(batch.indices, batches.instead(batch))
    data.close()


def test_more_corrupt_images_than_allowed_end_a_run_that_reads_batch_by_batch(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.parquet", 40, broken=(1, 9, 20, 33))
    data = data_of(path, cache_gb=0.0, limit=3)
    trainer = Trainer(settle(data.opened.settle(tiny_config(objective="simclr", data=str(path), max_corrupt=3))), data)
    with pytest.raises(SourceError, match=r"4 images cannot be read \(the last one: img-\d+: .*more than --max-corrupt 3"):
        list(trainer.steps())
    assert len(data.events) == 4
    data.close()
