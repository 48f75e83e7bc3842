"""Two random views of every image of a batch, computed on whole tensors with parameters of their own for each image.

Shape letters: n images, L height and width at which they are held, S height and width of a view.
Cropping, resizing, flipping and blurring are matrix products: a view is A x B^T with an (S, L) matrix for rows and one
for columns, which is what antialiased bilinear resizing is, on a CPU as on a GPU. All parameters come from one CPU
generator, seeded by (seed, epoch, step), so a resumed run and another device draw the same ones.

SimCLR's recipe is that of arXiv 2002.05709, appendix A; by default with the colour strength of its CIFAR experiments (0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphbuild.system.backbones import MEAN, STD
from train.config import AugmentName

_ATTEMPTS = 10
_RATIO = (3 / 4, 4 / 3)
_JITTER_SHARE, _GRAY_SHARE, _BLUR_SHARE = 0.8, 0.2, 0.5
_STRENGTHS = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
"""At a colour strength of 1."""
_BLUR_SIGMA = (0.1 / 224, 2.0 / 224)
"""In view widths: the paper's 0.1 to 2 pixels at 224."""
_LEAST_BLUR = 0.3
"""Pixels; a narrower Gaussian changes nothing."""
_LUMA = (0.2989, 0.587, 0.114)
_POLICY_GROUP = 8
_CACHED_NUMBERS = 1 << 18


@dataclass(frozen=True, slots=True)
class Colours:
    """SimCLR's colour parameters of n views; a factor of 1, a shift of 0 and a width of 0 change nothing."""

    order: tuple[str, ...]
    """In which the four jitter operations follow one another, for all views of the batch."""
    factors: dict[str, Tensor]
    """Of each operation; (n,)."""
    gray: Tensor
    """1 for views that lose their colours, else 0; (n,)."""
    sigma: Tensor
    """Width of the blur in pixels; (n,)."""

    @classmethod
    def draw(cls, count: int, size: int, generator: torch.Generator, *, strength: float = 0.5) -> Colours:
        """Draw the parameters of all views.

        Args:
            count: n.
            size: S.
            generator: On the CPU.
            strength: Of the jitter; the paper has 1 for ImageNet, 0.5 for CIFAR.
        """
        jittered = torch.rand(count, generator=generator) < _JITTER_SHARE
        factors = {}
        for name, most in _STRENGTHS.items():
            neutral = 0.0 if name == "hue" else 1.0
            # No image is picked out, which a GPU would have to wait for: the others get what changes nothing.
            drawn = neutral + strength * most * (2 * torch.rand(count, generator=generator) - 1)
            factors[name] = torch.where(jittered, drawn, neutral)
        # One order for the batch: each image's own order is as uniform as if it were drawn alone.
        order = tuple(list(factors)[index] for index in torch.randperm(len(factors), generator=generator).tolist())
        gray = (torch.rand(count, generator=generator) < _GRAY_SHARE).float()
        blurred = torch.rand(count, generator=generator) < _BLUR_SHARE
        low, high = (sigma * size for sigma in _BLUR_SIGMA)
        sigma = low + (high - low) * torch.rand(count, generator=generator)
        return cls(order, factors, gray, torch.where(blurred, sigma, 0.0))

    def part(self, which: slice) -> Colours:
        """Those of some of the views."""
        factors = {name: values[which] for name, values in self.factors.items()}
        return Colours(self.order, factors, self.gray[which], self.sigma[which])

    def apply(self, view: Tensor) -> Tensor:
        """Jitter, grayscale and blur; (n, 3, S, S) in [0, 1] gives the same."""
        for name in self.order:
            view = _COLOUR_OPERATIONS[name](view, _spread(self.factors[name], view))
        view = torch.lerp(view, luma(view).expand_as(view), _spread(self.gray, view))
        return blur(view, self.sigma)


@dataclass(frozen=True, slots=True)
class Augmenter:
    """Makes the views of a batch."""

    name: AugmentName
    size: int
    """S."""
    crop_min: float = 0.2
    """Smallest share of an image's area that a crop keeps."""
    color_strength: float = 0.5
    """Of SimCLR's colour jitter."""

    def two_views(
        self, pixels: Tensor, sizes: Tensor, *, seed: int, epoch: int, step: int, rank: int = 0, count: int = 2
    ) -> Tensor:
        """Return both views of a batch, or one.

        Args:
            pixels: uint8, (n, 3, L, L), on the device where the views are wanted; or crops, (n, count, 3, S, S), which are not
                cropped again.
            sizes: Height and width of the originals, on the CPU; (n, 2).
            seed: The run's seed.
            epoch: Epoch number.
            step: Step number within it.
            rank: Which process of the job this is; each draws for its own images.
            count: Views of each image.

        Returns:
            Normalised float32 views, channels_last; (2n, 3, S, S), first views before second views; (n, 3, S, S) of one.
        """
        generator = seeded(seed, epoch, step, *([rank] if rank else []))
        views = torch.empty((count * len(pixels), 3, self.size, self.size), device=pixels.device)
        views = views.contiguous(memory_format=torch.channels_last)
        cut = pixels.ndim == 5
        for number, view in enumerate(torch.split(views, len(pixels))):
            self._fill(view, pixels[:, number] if cut else pixels, None if cut else sizes, generator)
        return views

    def _fill(self, out: Tensor, pixels: Tensor, sizes: Tensor | None, generator: torch.Generator) -> None:
        """Write one view of every image; without sizes, the images are crops already."""
        count = len(pixels)
        boxes, flips, colours = self._boxes(sizes, generator), torch.zeros(count, dtype=torch.bool), None
        if self.name != "none":
            flips = torch.rand(count, generator=generator) < 0.5
        if self.name == "simclr":
            colours = Colours.draw(count, self.size, generator, strength=self.color_strength)
        for which in _chunks(pixels, self.size):
            images = pixels[which].float().div_(255)
            if sizes is None or boxes is None:
                view = torch.where(_spread(flips[which], images), images.flip(3), images)
            else:
                view = resized_crop(images, boxes[which], sizes[which], self.size, flips=flips[which])
            out[which] = normalise(colours.part(which).apply(view)) if colours else view
        if self.name == "autoaugment":
            out.copy_(_auto_augment(out, generator))
        if colours is None:
            out.copy_(normalise(out))

    def _boxes(self, sizes: Tensor | None, generator: torch.Generator) -> Tensor | None:
        if sizes is None:
            return None
        return centre_boxes(sizes) if self.name == "none" else random_boxes(sizes, generator, scale=(self.crop_min, 1.0))


def _chunks(pixels: Tensor, size: int) -> list[slice]:
    """Parts of a batch that stay in a CPU core's cache over the thirty passes that a view takes; a GPU takes it whole."""
    most = max(1, _CACHED_NUMBERS // (3 * max(size, pixels.shape[-1]) ** 2)) if pixels.device.type == "cpu" else len(pixels)
    return [slice(start, start + most) for start in range(0, len(pixels), most)]


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """One number an image, on the images' device; (n, 1, 1, 1)."""
    return values.to(images.device, non_blocking=True)[:, None, None, None]


def seeded(*numbers: int) -> torch.Generator:
    """Return a CPU generator for a tuple of numbers, unrelated to that of any other tuple."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def normalise(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation; (n, 3, S, S) in [0, 1]."""
    # Made on the CPU and sent: made on a GPU, they would be waited for.
    mean, std = (torch.tensor(values).to(images.device, non_blocking=True).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def centre_views(pixels: Tensor, sizes: Tensor, size: int) -> Tensor:
    """Return the largest centred square of every image, as evaluation sees it: normalised float32, channels_last, (n, 3, S, S).

    Args:
        pixels: uint8, (n, 3, L, L).
        sizes: Height and width of the originals, on the CPU; (n, 2).
        size: S.
    """
    views = resized_crop(pixels.float().div_(255), centre_boxes(sizes), sizes, size)
    return normalise(views).contiguous(memory_format=torch.channels_last)


def centre_boxes(sizes: Tensor) -> Tensor:
    """Largest centred square of each image: top, left, height, width in pixels of the original; float32 (n, 4)."""
    height, width = sizes.float().unbind(1)
    side = torch.minimum(height, width)
    return torch.stack([(height - side) / 2, (width - side) / 2, side, side], dim=1)


def random_boxes(sizes: Tensor, generator: torch.Generator, *, scale: tuple[float, float]) -> Tensor:
    """Crop boxes distributed as `torchvision.transforms.RandomResizedCrop.get_params` draws them, for all images at once.

    Ten attempts at an area and an aspect ratio (log-uniform in 3/4 to 4/3); if none fits, the largest centred box.

    Args:
        sizes: Height and width of the originals; (n, 2).
        generator: On the CPU.
        scale: Smallest and largest share of the area.

    Returns:
        Top, left, height, width in whole pixels of the original; float32 (n, 4).
    """
    height, width = sizes.float().unbind(1)
    draws = torch.rand((4, _ATTEMPTS, len(sizes)), generator=generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = torch.exp(low + (high - low) * draws[1])
    wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    # argmax gives the first of equal values: the first attempt that fits.
    first = fits.int().argmax(dim=0, keepdim=True)
    wide, tall, down, right = (values.gather(0, first)[0] for values in (wide, tall, draws[2], draws[3]))
    top, left = (down * (height - tall + 1)).floor(), (right * (width - wide + 1)).floor()
    drawn = torch.stack([top, left, tall, wide], dim=1)
    return torch.where(fits.any(dim=0)[:, None], drawn, _fallback_boxes(height, width))


def _fallback_boxes(height: Tensor, width: Tensor) -> Tensor:
    tall = torch.minimum(height, (width / _RATIO[0]).round())
    wide = torch.minimum(width, (height * _RATIO[1]).round())
    return torch.stack([((height - tall) / 2).floor(), ((width - wide) / 2).floor(), tall, wide], dim=1)


def resized_crop(images: Tensor, boxes: Tensor, sizes: Tensor, size: int, *, flips: Tensor | None = None) -> Tensor:
    """Crop a box from every image and resize it, bilinear and antialiased; equal to torchvision's where L is the original size.

    Args:
        images: (n, 3, L, L) float.
        boxes: Top, left, height, width in pixels of the originals, on the CPU; (n, 4).
        sizes: Height and width of the originals, on the CPU; (n, 2).
        size: S.
        flips: Which views are mirrored; bool (n,).

    Returns:
        Views; (n, 3, S, S).
    """
    held = images.shape[-1]
    # Four numbers a box travel to a GPU, which spreads them out itself: the matrices are thousands of times as many.
    boxes, sizes = boxes.to(images.device, non_blocking=True), sizes.to(images.device, non_blocking=True)
    # The held square is the whole original, squeezed: boxes squeeze with it.
    to_held = held / sizes.float()
    rows = _resampling(boxes[:, 0] * to_held[:, 0], boxes[:, 2] * to_held[:, 0], held, size)
    columns = _resampling(boxes[:, 1] * to_held[:, 1], boxes[:, 3] * to_held[:, 1], held, size)
    if flips is not None:
        columns = torch.where(flips.to(images.device, non_blocking=True)[:, None, None], columns.flip(1), columns)
    return _sandwich(rows, images, columns)


def _sandwich(rows: Tensor, images: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T for every image and channel; (n, S, L), (n, 3, L, L), (n, S, L) -> (n, 3, S, S).

    With channels between rows and columns in memory both products are plain batched ones: nothing is broadcast or
    transposed, and the result has the same layout, so what follows finds it as it needs it.
    """
    count, size, held = rows.shape
    lines = images.permute(0, 2, 1, 3).reshape(count, held * 3, held)
    narrow = torch.bmm(lines, columns.transpose(1, 2)).view(count, held, 3 * size)
    return torch.bmm(rows, narrow).view(count, size, 3, size).permute(0, 2, 1, 3)


def _resampling(start: Tensor, extent: Tensor, held: int, size: int) -> Tensor:
    """Weights (n, S, L) that resize [start, start + extent) of a line of L pixels to S: a triangle as wide as a new pixel.

    As Pillow does it: at least one old pixel wide, cut off at the ends of the crop, each row summing to 1.
    """
    step = (extent / size)[:, None]
    centres = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step
    pixels = torch.arange(held, dtype=torch.float32, device=start.device)
    distance = (pixels + 0.5 - centres[:, :, None]).abs() / step.clamp(min=1.0)[:, :, None]
    inside = (pixels + 1 > start[:, None]) & (pixels < (start + extent)[:, None])
    weights = (1 - distance).clamp_(min=0).mul_(inside[:, None, :])
    return weights / weights.sum(dim=2, keepdim=True)


def luma(images: Tensor) -> Tensor:
    """Brightness of every pixel, as torchvision weighs the channels; (n, 1, S, S)."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _brighten(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(luma(images).mean(dim=(1, 2, 3), keepdim=True), images, factor).clamp_(0, 1)


def _saturate(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(luma(images), images, factor).clamp_(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of a full circle, at the same saturation and value (HSV); (n, 3, S, S) in [0, 1]."""
    red, green, blue = images.unbind(1)
    value, spread = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)
    divisor = torch.where(spread > 0, spread, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = sector + 6 * shift[:, 0]
    hue = hue - 6 * (hue / 6).floor()
    # How much of the spread each channel keeps: all within one sector of its own hue, none beyond two.
    kept = torch.stack([(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()], dim=1).clamp_(0, 1)
    return (value - spread)[:, None] + spread[:, None] * kept


_COLOUR_OPERATIONS = {"brightness": _brighten, "contrast": _contrast, "saturation": _saturate, "hue": shift_hue}


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image by its own width, in pixels; nothing happens where all widths are narrow."""
    size = images.shape[-1]
    if size * _BLUR_SIGMA[1] < _LEAST_BLUR:
        return images
    weights = blur_matrix(sigma.to(images.device, non_blocking=True), size)
    return _sandwich(weights, images, weights)


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian weights (n, S, S) of a line of S pixels, out to four widths; each row sums to 1: nothing lies beyond an end."""
    radius, line = min(size - 1, math.ceil(4 * size * _BLUR_SIGMA[1])), torch.arange(size, device=sigma.device)
    near = torch.exp(-0.5 * (line[: radius + 1] / sigma.clamp(min=0.05)[:, None]) ** 2)
    near = torch.cat([near, near.new_zeros(len(sigma), 1)], dim=1)
    weights = near[:, (line[:, None] - line[None, :]).abs().clamp_(max=radius + 1)]
    return weights / weights.sum(dim=2, keepdim=True)


def _auto_augment(view: Tensor, generator: torch.Generator) -> Tensor:
    """AutoAugment's ImageNet policy (arXiv 1805.09501); groups of eight random images share a sub-policy, for speed."""
    policy = _policy()
    order = torch.randperm(len(view), generator=generator)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    images = view.mul(255).round_().clamp_(0, 255).to(torch.uint8)
    # torchvision draws from the global generator of the CPU, which is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for group in torch.split(order, _POLICY_GROUP):
            images[group] = policy(images[group])
    return images.float().div_(255)


def _policy() -> Any:
    from torchvision.transforms import v2

    return v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
