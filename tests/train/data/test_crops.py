"""Crops of pictures that are decoded batch by batch, against torchvision's RandomResizedCrop."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_train import draw, encode, tiny_config, write_images
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from train.config import TrainConfig
from train.data.augment import Augmenter, normalise
from train.data.crops import Box, Crops, decode_crops
from train.data.prepare import open_data
from train.data.sources import open_images
from train.data.store import CorruptImages, ImageStore
from train.run.folder import open_run, read_run_config
from train.run.loop import train

CROPS = Crops(size=24, views=2, smallest=0.2, centred=False, place=(3, 0, 7, 0))


def photograph(height: int, width: int) -> Image.Image:
    """Edges, gradients and noise, so that every way of resampling gives other values."""
    rng = np.random.default_rng(height * width)
    down, right = np.mgrid[:height, :width]
    waves = 127 + 60 * np.sin(down / 7)[..., None] * np.cos(right[..., None] / np.array([3.0, 5.0, 11.0]))
    return Image.fromarray((waves + rng.normal(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, form, exif=exif)
    return stream.getvalue()


def published(content: bytes, box: Box, size: int) -> np.ndarray:
    """What RandomResizedCrop does once it has drawn a box."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    cropped = F.resized_crop(image, *box, size=[size, size], interpolation=InterpolationMode.BILINEAR)
    return np.asarray(cropped).transpose(2, 0, 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(
    ("height", "width", "orientation"), [(375, 500, 1), (500, 375, 1), (375, 500, 6), (333, 250, 8), (20, 31, 3)]
)
def test_crops_equal_torchvisions_to_the_pixel(height: int, width: int, orientation: int, size: int, form: str) -> None:
    content = saved(photograph(height, width), form, orientation)
    tall, wide = (width, height) if orientation in (6, 8) else (height, width)
    # The smallest is too small for a JPEG to be decoded at a fraction.
    boxes = [(0, 0, tall, wide), (tall // 3, wide // 4, tall // 2, wide // 2), (tall - 9, wide - 14, 9, 14), (1, 2, 17, 11)]
    found, shape = decode_crops(content, lambda *_: boxes, size)
    assert shape == (tall, wide)
    assert all(np.array_equal(view, published(content, box, size)) for view, box in zip(found, boxes, strict=True))


def test_large_jpeg_is_decoded_at_a_fraction_and_differs_by_about_a_grey_level() -> None:
    content = saved(photograph(1200, 1600), "JPEG")
    boxes = [(0, 0, 1200, 1600), (301, 203, 600, 701)]
    found, shape = decode_crops(content, lambda *_: boxes, 64)
    assert shape == (1200, 1600)
    expected = [published(content, box, 64) for box in boxes]
    gaps = [np.abs(view.astype(float) - other).mean() for view, other in zip(found, expected, strict=True)]
    assert 0 < max(gaps) < 1.5


def test_boxes_depend_on_the_place_in_the_run_and_nothing_else() -> None:
    boxes = CROPS.boxes(5, 300, 400)
    assert boxes == CROPS.boxes(5, 300, 400)
    others = [CROPS.boxes(6, 300, 400), *(replace(CROPS, place=place).boxes(5, 300, 400) for place in ((4, 0, 7, 0), (3, 0, 7, 1)))]
    assert all(boxes != other for other in others)
    assert boxes[0] != boxes[1]
    assert replace(CROPS, centred=True).boxes(5, 300, 401) == [(0, 50, 300, 300)] * 2


def test_batch_is_the_same_whichever_thread_decodes_and_whoever_stands_in_for_a_broken_image(tmp_path: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 12, broken=(2,))), id_column="id")
    rows, instead = np.array([4, 2, 9, 0, 7]), [np.array([1, 3, 5, 6, 8])]
    for workers in (1, 3):
        store = ImageStore(source, size=6, corrupt=CorruptImages("here", 9), workers=workers, cache_bytes=0)
        batch = store.batch(rows, instead, CROPS)
        assert batch.rows.tolist() == [4, 3, 9, 0, 7]
        for place, row in enumerate(batch.rows.tolist()):
            expected, _ = CROPS.decode(encode(draw(row)), place)
            assert np.array_equal(batch.pixels[place].numpy(), expected)
        store.close()


def test_augmentation_leaves_crops_as_they_are_but_for_mirror_and_colours() -> None:
    pixels = torch.randint(0, 256, (4, 2, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((4, 2), 40)
    plain = Augmenter("none", 12).two_views(pixels, sizes, seed=0, epoch=0, step=0)
    assert torch.equal(plain, normalise(torch.cat([pixels[:, 0], pixels[:, 1]]).float() / 255))
    coloured = Augmenter("simclr", 12, color_strength=0.0).two_views(pixels, sizes, seed=0, epoch=0, step=0)
    gray = coloured.amax(1) - coloured.amin(1) < 0.5
    upright, mirrored = ((coloured - view).abs().amax(dim=(1, 2, 3)) < 1e-5 for view in (plain, plain.flip(3)))
    assert bool((upright | mirrored | gray.flatten(1).float().mean(1).gt(0.5)).all())
    assert bool(upright.any() and mirrored.any())


def config_of(folder: Path, **changes: object) -> TrainConfig:
    data = write_images(folder / "images.parquet", 24)
    return replace(tiny_config(objective="simclr", data=str(data), epochs=1), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cache_gb", "expected"), [(4.0, "held"), (0.0, "original")])
def test_auto_cuts_from_the_originals_where_images_are_not_held(tmp_path: Path, cache_gb: float, expected: str) -> None:
    assert open_data(config_of(tmp_path, cache_gb=cache_gb)).config.crop_from == expected


def test_a_run_that_goes_on_keeps_what_it_cut_from(tmp_path: Path) -> None:
    config = config_of(tmp_path, cache_gb=0.0)
    train(config, tmp_path / "run")
    assert read_run_config(tmp_path / "run").crop_from == "original"
    settled = open_data(replace(config, cache_gb=4.0)).config
    folder = open_run(tmp_path / "again", config, replace(settled, crop_from="original", lr=0.1))
    folder.close()
    resumed = open_run(tmp_path / "again", replace(config, cache_gb=4.0), replace(settled, lr=0.1))
    assert (settled.crop_from, resumed.config.crop_from) == ("held", "original")
    resumed.close()


def test_configuration_of_a_run_from_before_the_choice_says_held(tmp_path: Path) -> None:
    lines = TrainConfig(objective="simclr").to_toml().splitlines()
    (tmp_path / "config.toml").write_text("\n".join(line for line in lines if not line.startswith("crop_from")))
    assert read_run_config(tmp_path).crop_from == "held"
