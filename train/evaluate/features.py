"""Features of frozen encoders: images are decoded once, whatever the number of encoders.

Shape letters: N images, n of them readable, F feature width, S height and width of a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import SourceError
from graphbuild.store.arrays import Int64
from graphbuild.system.progress import progress
from train.data.augment import centre_views
from train.data.prefetch import read_ahead
from train.data.store import ImageStore
from train.model.encoders import Encoder

_BATCH = 256


@dataclass(frozen=True, slots=True)
class Features:
    """What the encoders say of the images that can be read."""

    rows: Int64
    """Rows of the store; (n,)."""
    by_encoder: tuple[Tensor, ...]
    """(n, F) float32 on the CPU, for each encoder."""


def extract_features(
    encoders: Sequence[Encoder], store: ImageStore, *, device: torch.device, bfloat16: bool = False, label: str = "features"
) -> Features:
    """Compute the backbone features of the largest centred square of every image, in evaluation mode.

    Args:
        encoders: Frozen encoders of one view size; they are moved to the device, and left in evaluation mode.
        store: The images; those that cannot be read are left out, and counted there.
        device: Where to compute.
        bfloat16: Compute the backbone in bfloat16.
        label: What the progress bar says.

    Raises:
        SourceError: If no image can be read.
    """
    kept, parts = [], []
    for rows, found in feature_batches(encoders, store, device=device, bfloat16=bfloat16, label=label):
        kept.append(rows)
        parts.append(found)
    # A copy outside inference mode, because the linear probe takes gradients.
    return Features(np.concatenate(kept), tuple(torch.cat(found).clone() for found in zip(*parts, strict=True)))


def feature_batches(
    encoders: Sequence[Encoder], store: ImageStore, *, device: torch.device, bfloat16: bool, label: str
) -> Iterator[tuple[Int64, tuple[Tensor, ...]]]:
    """Yield the same, some images at a time: their rows, and (n, F) float32 on the CPU for each encoder.

    Raises:
        SourceError: If no image can be read.
    """
    nets = [encoder.to(device, memory_format=torch.channels_last).eval() for encoder in encoders]  # type: ignore[call-overload]
    order = [np.arange(start, min(start + _BATCH, len(store))) for start in range(0, len(store), _BATCH)]
    read = 0
    with progress(label, len(store), unit="images") as meter:
        for rows, batch in zip(order, read_ahead(store.batch(rows) for rows in order), strict=True):
            read += len(batch.rows)
            if len(batch.rows):
                with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
                    views = centre_views(batch.pixels.to(device, non_blocking=True), batch.sizes, nets[0].image_size)
                    found = tuple(net.features(views).cpu() for net in nets)
                yield batch.rows, found
            meter.advance(len(rows))
    if not read:
        raise SourceError(f"{store.source.name}: none of the {len(store):,} images can be read. Check --data and --image-column.")
