"""What an encoder sees in an evaluation, against torchvision's own transforms."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from graphbuild.system.backbones import MEAN, STD
from train.data.augment import centre_views
from train.data.base import decode_centre


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Edges, gradients and noise, so that every way of resampling gives other values."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:height, :width]
    waves = 127 + 60 * np.sin(down / 7)[..., None] * np.cos(right[..., None] / np.array([3.0, 5.0, 11.0]))
    return Image.fromarray((waves + rng.normal(0, 30, (height, width, 3))).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (1080, 1920), (224, 224), (225, 224), (20, 31), (64, 64)])
def test_views_equal_resize_and_center_crop(height: int, width: int, size: int, form: str) -> None:
    stream = io.BytesIO()
    photograph(height, width, height + width).save(stream, form)
    published = transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    expected = published(Image.open(io.BytesIO(stream.getvalue())).convert("RGB"))
    pixels, shape = decode_centre(stream.getvalue(), size)
    found = centre_views(torch.from_numpy(pixels)[None], torch.tensor([shape]), size)[0]
    assert float((found - expected).abs().max()) < 1e-5
