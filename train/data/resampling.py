"""Crops and antialiased bilinear resizing of whole batches, as matrix products.

Shape letters: n images, L height and width at which they are held, S height and width of a view.
A view is A x B^T with an (S, L) matrix for rows and one for columns, which is what resizing is, on a CPU as on a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ATTEMPTS = 10
_RATIO = (3 / 4, 4 / 3)


def centre_boxes(sizes: Tensor) -> Tensor:
    """Return the largest centred square of each image: top, left, height, width in pixels of the original; float32 (n, 4)."""
    height, width = sizes.float().unbind(1)
    side = torch.minimum(height, width)
    return torch.stack([(height - side) / 2, (width - side) / 2, side, side], dim=1)


def random_boxes(sizes: Tensor, generator: torch.Generator, *, scale: tuple[float, float]) -> Tensor:
    """Draw crop boxes distributed as `torchvision.transforms.RandomResizedCrop.get_params` draws them, for all images at once.

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
    return sandwich(rows, images, columns)


def sandwich(rows: Tensor, images: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ image @ columns^T for every image and channel; (n, S, L), (n, 3, L, L), (n, S, L) -> (n, 3, S, S).

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
