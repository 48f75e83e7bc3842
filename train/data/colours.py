"""SimCLR's colours: jitter, grayscale and blur of whole batches, with parameters of their own for each image.

Shape letters: n images, S height and width of a view.
The recipe is that of arXiv 2002.05709, appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from train.data.resampling import sandwich

_JITTER_SHARE, _GRAY_SHARE, _BLUR_SHARE = 0.8, 0.2, 0.5
_STRENGTHS = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
"""At a colour strength of 1."""
_BLUR_SIGMA = (0.1 / 224, 2.0 / 224)
"""In view widths: the paper's 0.1 to 2 pixels at 224."""
_LEAST_BLUR = 0.3
"""Pixels; a narrower Gaussian changes nothing."""
_LUMA = (0.2989, 0.587, 0.114)


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
        """Return the colours of some of the views."""
        factors = {name: values[which] for name, values in self.factors.items()}
        return Colours(self.order, factors, self.gray[which], self.sigma[which])

    def apply(self, view: Tensor) -> Tensor:
        """Jitter, grayscale and blur; (n, 3, S, S) in [0, 1] gives the same."""
        for name in self.order:
            view = OPERATIONS[name](view, per_image(self.factors[name], view))
        view = torch.lerp(view, luma(view).expand_as(view), per_image(self.gray, view))
        return blur(view, self.sigma)


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Return one number an image, on the images' device; (n, 1, 1, 1)."""
    return values.to(images.device, non_blocking=True)[:, None, None, None]


def luma(images: Tensor) -> Tensor:
    """Return the brightness of every pixel, as torchvision weighs the channels; (n, 1, S, S)."""
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


OPERATIONS = {"brightness": _brighten, "contrast": _contrast, "saturation": _saturate, "hue": shift_hue}


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own width, in pixels; nothing happens where all widths are narrow."""
    size = images.shape[-1]
    if size * _BLUR_SIGMA[1] < _LEAST_BLUR:
        return images
    weights = blur_matrix(sigma.to(images.device, non_blocking=True), size)
    return sandwich(weights, images, weights)


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return Gaussian weights (n, S, S) of a line of S pixels, out to four widths; each row sums to 1 within the line."""
    radius, line = min(size - 1, math.ceil(4 * size * _BLUR_SIGMA[1])), torch.arange(size, device=sigma.device)
    near = torch.exp(-0.5 * (line[: radius + 1] / sigma.clamp(min=0.05)[:, None]) ** 2)
    near = torch.cat([near, near.new_zeros(len(sigma), 1)], dim=1)
    weights = near[:, (line[:, None] - line[None, :]).abs().clamp_(max=radius + 1)]
    return weights / weights.sum(dim=2, keepdim=True)
