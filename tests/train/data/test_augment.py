"""Augmentations against torchvision's, one image at a time, and their repeatability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from train.data import augment, colours
from train.data.augment import Augmenter, centre_views, seeded
from train.data.colours import Colours, blur_matrix
from train.data.resampling import centre_boxes, random_boxes, resized_crop


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed))


def sizes_of(count: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([[height, width]], dtype=torch.int32).expand(count, 2)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (90, 40), (20, 100)])
def test_crop_boxes_are_distributed_as_torchvision_draws_them(height: int, width: int) -> None:
    ours = random_boxes(sizes_of(20_000, height, width), seeded(1), scale=(0.2, 1.0)).numpy()
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(6_000)])
    for column in range(4):
        # Whole pixels have ties, which make the test conservative: a p-value this low is no accident.
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_crop_boxes_lie_within_their_images() -> None:
    sizes = torch.randint(1, 200, (5_000, 2), generator=seeded(3), dtype=torch.int32)
    top, left, tall, wide = random_boxes(sizes, seeded(4), scale=(0.08, 1.0)).unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (tall >= 1) & (wide >= 1)).all())
    assert bool(((top + tall <= sizes[:, 0]) & (left + wide <= sizes[:, 1])).all())


@pytest.mark.parametrize("size", [16, 48, 80])
def test_resized_crop_equals_torchvision_up_and_down(size: int) -> None:
    pictures = images(6, 48)
    boxes = random_boxes(sizes_of(6, 48, 48), seeded(2), scale=(0.1, 1.0))
    ours = resized_crop(pictures, boxes, sizes_of(6, 48, 48), size)
    for picture, box, view in zip(pictures, boxes.int().tolist(), ours, strict=True):
        expected = F.resized_crop(picture, *box, size=[size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
        assert torch.allclose(view, expected, atol=1e-5)


def test_flip_mirrors_the_crop() -> None:
    pictures = images(2, 16)
    boxes = centre_boxes(sizes_of(2, 16, 16))
    plain, flipped = (resized_crop(pictures, boxes, sizes_of(2, 16, 16), 16, flips=torch.tensor([False, f])) for f in (False, True))
    assert torch.equal(plain[0], flipped[0])
    assert torch.allclose(plain[1].flip(-1), flipped[1], atol=1e-6)


def test_centre_view_of_a_wide_image_is_its_middle_square() -> None:
    wide = torch.zeros(1, 3, 32, 64)
    wide[..., 16:48] = 1.0
    # Held as a 32 x 32 square, as the store squeezes it.
    held = F.resize(wide, [32, 32], antialias=True).mul(255).round().to(torch.uint8)
    view = centre_views(held, sizes_of(1, 32, 64), 16)
    white = augment.normalise(torch.ones(1, 3, 16, 16))
    assert torch.allclose(view[..., 1:-1], white[..., 1:-1], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", F.adjust_brightness),
        ("contrast", F.adjust_contrast),
        ("saturation", F.adjust_saturation),
        ("hue", F.adjust_hue),
    ],
)
def test_colour_operation_equals_torchvision(name: str, reference: object) -> None:
    pictures = images(6, 9, seed=5)
    low, high = (-0.1, 0.1) if name == "hue" else (0.6, 1.4)
    factors = torch.linspace(low, high, 6)
    ours = colours.OPERATIONS[name](pictures, factors[:, None, None, None])
    for picture, factor, view in zip(pictures, factors.tolist(), ours, strict=True):
        assert torch.allclose(view, reference(picture, factor), atol=2e-4)  # type: ignore[operator]


def test_blur_equals_a_gaussian_convolution_away_from_the_border() -> None:
    picture = images(1, 40)
    weights = blur_matrix(torch.tensor([0.3]), 40)
    ours = weights @ picture @ weights.transpose(1, 2)
    expected = F.gaussian_blur(picture, kernel_size=[5, 5], sigma=[0.3, 0.3])
    assert torch.allclose(ours[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], atol=1e-5)


def test_colour_parameters_have_the_paper_s_probabilities() -> None:
    drawn = Colours.draw(50_000, 64, seeded(9))
    assert drawn.gray.mean().item() == pytest.approx(0.2, abs=0.01)
    assert (drawn.sigma > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    for name, neutral in (("brightness", 1.0), ("hue", 0.0)):
        assert (drawn.factors[name] != neutral).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert 0.6 <= drawn.factors["contrast"].min() < 0.61
    assert 0.099 < drawn.factors["hue"].max() <= 0.1


@pytest.mark.parametrize("name", ["simclr", "autoaugment"])
def test_views_repeat_for_the_same_step_and_differ_for_another(name: str) -> None:
    pixels = images(20, 24).mul(255).to(torch.uint8)
    make = Augmenter(name, 16)  # type: ignore[arg-type]
    one, again, other = (make.two_views(pixels, sizes_of(20, 24, 24), seed=3, epoch=1, step=s) for s in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[:20], one[20:])


def test_autoaugment_leaves_the_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    Augmenter("autoaugment", 8).two_views(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), sizes_of(4, 8, 8), seed=0, epoch=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


def test_autoaugment_gives_groups_of_images_policies_of_their_own() -> None:
    pixels = images(1, 16).mul(255).to(torch.uint8).expand(400, 3, 16, 16)
    views = Augmenter("autoaugment", 16, crop_min=1.0).two_views(pixels, sizes_of(400, 16, 16), seed=0, epoch=0, step=0)
    # Crops of the whole image alone would leave the mean as it is, up to resizing.
    assert len({round(value, 2) for value in views.mean(dim=(1, 2, 3)).tolist()}) > 15


def test_without_augmentation_both_views_are_the_centre() -> None:
    pixels = images(3, 12).mul(255).to(torch.uint8)
    views = Augmenter("none", 12).two_views(pixels, sizes_of(3, 12, 12), seed=0, epoch=0, step=0)
    assert torch.equal(views[:3], views[3:])
    assert torch.allclose(views[:3], centre_views(pixels, sizes_of(3, 12, 12), 12), atol=1e-6)


def figures(views: torch.Tensor) -> dict[str, np.ndarray]:
    """What a view looks like, in numbers: brightness, colourfulness, hue, which side is brighter, sharpness, contrast."""
    red, green, blue = views.mean(dim=(2, 3)).unbind(1)
    half = views.shape[-1] // 2
    found = {
        "brightness": views.mean(dim=(1, 2, 3)),
        "colourfulness": views.std(dim=1).mean(dim=(1, 2)),
        "hue": torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue),
        "side": (views[..., :half] - views[..., -half:]).mean(dim=(1, 2, 3)),
        "sharpness": views.diff(dim=-1).abs().mean(dim=(1, 2, 3)),
        "contrast": views.mean(dim=1).std(dim=(1, 2)),
    }
    return {name: values.double().numpy() for name, values in found.items()}


def test_views_are_distributed_as_those_of_torchvision_one_image_at_a_time() -> None:
    size, count = 32, 1_500
    line = torch.linspace(0, 1, 40)
    waves = 0.3 + 0.3 * torch.sin(9 * line)[:, None].expand(40, 40)
    picture = torch.stack([line.expand(40, 40), (line[:, None] * line).sqrt(), waves])
    picture = picture.mul(255).round().to(torch.uint8)
    width = size / 224
    theirs = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1 * width, 2 * width))], p=0.5),
            v2.Normalize(augment.MEAN, augment.STD),
        ]
    )
    torch.manual_seed(1)
    expected = figures(torch.stack([theirs(picture) for _ in range(count)]))

    def least_p_value(crop_min: float) -> float:
        pixels, sizes, make = picture.expand(30, 3, 40, 40), sizes_of(30, 40, 40), Augmenter("simclr", size, crop_min=crop_min)
        # Small batches, for the order of the jitter is drawn once for all views of one.
        views = [make.two_views(pixels, sizes, seed=3, epoch=0, step=step) for step in range(count // 60)]
        found = figures(torch.cat(views))
        return min(float(stats.ks_2samp(found[name], expected[name]).pvalue) for name in expected)

    assert least_p_value(0.2) > 1e-3
    assert least_p_value(0.5) < 1e-6, "the test would not notice other crops"


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_colours_reach_as_far_as_simclrs_at_their_strength(strength: float) -> None:
    found = Colours.draw(20_000, 32, torch.Generator().manual_seed(0), strength=strength)
    # get_color_distortion of arXiv 2002.05709, appendix A: 0.8 s, 0.8 s, 0.8 s and 0.2 s.
    for name, most in (("brightness", 0.8), ("contrast", 0.8), ("saturation", 0.8), ("hue", 0.2)):
        neutral = 0.0 if name == "hue" else 1.0
        assert float((found.factors[name] - neutral).abs().max()) == pytest.approx(most * strength, rel=1e-2)
