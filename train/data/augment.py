"""Two random views of every image of a batch, computed on whole tensors with parameters of their own for each image.

Shape letters: n images, L height and width at which they are held, S height and width of a view.
`resampling` crops, resizes and flips, `colours` jitters and blurs. All parameters come from one CPU
generator, seeded by (seed, epoch, step), so a resumed run and another device draw the same ones; torchvision's transforms draw
from the global one, and once for a whole batch.

SimCLR's recipe is that of arXiv 2002.05709, appendix A; by default with the colour strength of its CIFAR experiments (0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphbuild.system.backbones import MEAN, STD
from train.config import AugmentName
from train.data.colours import Colours, per_image
from train.data.resampling import centre_boxes, random_boxes, resized_crop

_POLICY_GROUP = 8
_CACHED_NUMBERS = 1 << 18


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
                view = torch.where(per_image(flips[which], images), images.flip(3), images)
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
