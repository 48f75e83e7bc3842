"""Features kept beside a run, found by a digest of weights, images and transform; damaged files are made again.

Only what is missing is extracted, all of it in one pass over the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.data.base import ImageSource, decode_centre
from train.data.store import CorruptImages, ImageStore
from train.evaluate.features import Features, extract_features
from train.evaluate.images import Images
from train.model.encoders import Encoder
from train.model.weights import save_weights

FOLDER = "features"
_DIGEST = "xxh3_128"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """How images become features, and where these are kept."""

    folder: Path | None
    """None: they are not kept."""
    device: torch.device
    bfloat16: bool = False
    workers: int = 2
    max_corrupt: int = 100

    def key(self, encoder: Encoder, images: str) -> str:
        """Return the digest of everything that decides the features: the projector does not."""
        hasher = xxhash.xxh3_128()
        for name, weights in sorted(encoder.backbone.state_dict().items()):
            hasher.update(name.encode())
            # As bytes: NumPy knows no bfloat16.
            hasher.update(weights.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        hasher.update(f"{images} centred square of {encoder.image_size} bfloat16 {self.bfloat16}".encode())
        return hasher.hexdigest()


def features_of(encoders: Sequence[Encoder], images: Images, how: Extraction, *, label: str) -> Features:
    """Return the features of all images that can be read, by every encoder, from the cache where it has them.

    Args:
        encoders: Frozen encoders of one view size.
        images: The images.
        how: The rest.
        label: What the progress bar says.

    Raises:
        SourceError: If no image can be read, or too many cannot.
    """
    paths = [how.folder / f"{how.key(encoder, images.digest)}.safetensors" if how.folder else None for encoder in encoders]
    kept = [_read(path) for path in paths]
    missing = [number for number, found in enumerate(kept) if found is None]
    if missing:
        made = _extract([encoders[number] for number in missing], images.source, how, label)
        for place, number in enumerate(missing):
            kept[number] = Features(made.rows, (made.by_encoder[place],))
            _write(paths[number], kept[number])
    first = kept[0]
    assert first is not None
    return Features(first.rows, tuple(found.by_encoder[0] for found in kept if found is not None))


def _extract(encoders: Sequence[Encoder], source: ImageSource, how: Extraction, label: str) -> Features:
    corrupt = CorruptImages(source.name, how.max_corrupt)
    # Each image is read once, so that holding them all would only take memory.
    store = ImageStore(
        source, size=encoders[0].image_size, corrupt=corrupt, workers=how.workers, cache_bytes=0, decoder=decode_centre
    )
    try:
        return extract_features(encoders, store, device=how.device, bfloat16=how.bfloat16, label=label)
    finally:
        store.close()


def _read(path: Path | None) -> Features | None:
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            stored = {name: file.get_tensor(name) for name in ("rows", "features")}
            recorded = (file.metadata() or {}).get(_DIGEST)
    except (SafetensorError, OSError):
        return None
    # safetensors looks at sizes alone: values are checked here.
    return Features(stored["rows"].numpy(), (stored["features"],)) if recorded == _digest(stored) else None


def _write(path: Path | None, features: Features | None) -> None:
    if path is None or features is None:
        return
    tensors = {"rows": torch.from_numpy(features.rows), "features": features.by_encoder[0]}
    save_weights(path, tensors, {_DIGEST: _digest(tensors)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    hasher = xxhash.xxh3_128()
    for _, tensor in sorted(tensors.items()):
        hasher.update(tensor.contiguous().numpy().tobytes())
    return hasher.hexdigest()
