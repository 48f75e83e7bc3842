"""Images from files to two views, on one core: ours against webdataset and torchvision, one image at a time.

Photograph-like JPEGs in webdataset shards, in the page cache. Ours reads them by position in random order, decodes them in
threads and augments whole batches; the peer streams them with webdataset and augments with torchvision's v2 transforms.
Both take turns, on one thread each.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from graphbuild.system.backbones import MEAN, STD
from train.data.augment import Augmenter
from train.data.base import ImageSource
from train.data.sources import open_images
from train.data.store import CorruptImages, ImageStore, choose_load_size

_WIDTHS = (9, 5, 6, 10, 18, 11, 11, 17, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is measured, and how often."""

    images: int
    batch: int
    rounds: int
    batches: int
    """Of each contestant in a round."""
    cases: tuple[tuple[int, int, int], ...]
    """Width and height of the files, and size of a view."""


SMALL = Size(images=512, batch=64, rounds=3, batches=2, cases=((64, 64, 64), (400, 300, 224)))
FULL = Size(images=4_096, batch=256, rounds=7, batches=3, cases=((64, 64, 64), (256, 256, 64), (400, 300, 224), (500, 375, 224)))


def run(small: bool) -> str:
    """Return the table, with its conditions."""
    size = SMALL if small else FULL
    torch.set_num_threads(1)
    headings = ("files", "kB", "view", "read", "decode, 1 thread", "2 threads", "two views", "webdataset + v2", "ratio")
    lines = ["".join(name.rjust(width) for name, width in zip(headings, _WIDTHS, strict=True))]
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        for number, (width, height, view) in enumerate(size.cases):
            lines.append(_case(Path(folder) / str(number), width, height, view, size))
    lines.append(
        f"images/s; medians of {size.rounds} alternating rounds of {size.batches} batches of {size.batch}; one torch thread; "
        f"JPEG quality 90, {size.images:,} files in shards of 256, warm; SimCLR's augmentations, two views an image"
    )
    return "\n".join(lines)


def _case(folder: Path, width: int, height: int, view: int, size: Size) -> str:
    file_bytes = _write_shards(folder, size.images, width, height)
    source = open_images(str(folder))
    stores = [_store(source, view, workers) for workers in (1, 2)]
    contestants: dict[str, Callable[[], Iterator[Any]]] = {
        "read": lambda: (source.encoded(rows.tolist()) for rows in _orders(size)),
        "one": lambda: (stores[0].batch(rows) for rows in _orders(size)),
        "two": lambda: (stores[1].batch(rows) for rows in _orders(size)),
        "ours": lambda: _our_views(stores[0], view, size),
        "peer": lambda: _their_views(folder, view, size),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(size.rounds + 1):
        for name in contestants if turn % 2 else reversed(contestants):
            rate = _rate(contestants[name](), size)
            # The first turn warms up.
            rates[name] += [rate] if turn else []
    for store in stores:
        store.close()
    found = {name: median(values) for name, values in rates.items()}
    rates_shown = [f"{found[name]:,.0f}" for name in ("read", "one", "two", "ours", "peer")]
    cells = [f"{width}x{height}", f"{file_bytes / 1e3:.0f}", str(view), *rates_shown, f"{found['ours'] / found['peer']:.2f}"]
    return "".join(cell.rjust(wide) for cell, wide in zip(cells, _WIDTHS, strict=True))


def _write_shards(folder: Path, count: int, width: int, height: int) -> float:
    """Smooth noise with detail, about as large as photographs are as JPEG; mean bytes a file."""
    import webdataset

    folder.mkdir(parents=True)
    rng, sizes = np.random.default_rng(0), []
    for start in range(0, count, 256):
        with webdataset.TarWriter(str(folder / f"{start // 256:05d}.tar")) as writer:
            for index in range(start, min(start + 256, count)):
                coarse = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
                pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
                pixels += rng.integers(-6, 7, pixels.shape, dtype=np.int16)
                stream = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
                sizes.append(len(stream.getvalue()))
                writer.write({"__key__": f"{index:09d}", "jpg": stream.getvalue(), "json": f'{{"url": "{index}"}}'})
    return float(np.mean(sizes))


def _store(source: ImageSource, view: int, workers: int) -> ImageStore:
    corrupt = CorruptImages("bench", 0)
    return ImageStore(source, size=choose_load_size(source, view), corrupt=corrupt, workers=workers, cache_bytes=0)


def _orders(size: Size) -> Iterator[Any]:
    order = np.random.default_rng(1).permutation(size.images)
    yield from (order[start : start + size.batch] for start in range(0, size.images, size.batch))


def _our_views(store: ImageStore, view: int, size: Size) -> Iterator[Any]:
    make = Augmenter("simclr", view)
    for step, rows in enumerate(_orders(size)):
        batch = store.batch(rows)
        yield make.two_views(batch.pixels, batch.sizes, seed=0, epoch=0, step=step)


def _their_views(folder: Path, view: int, size: Size) -> Iterator[Any]:
    """webdataset's stream, decoded by Pillow, each image through torchvision's transforms twice."""
    import webdataset
    from torchvision.transforms import v2

    kernel = max(3, view // 10 | 1)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(view, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1 * view / 224, 2 * view / 224))], p=0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    images = (sample["jpg"] for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    while some := list(islice(images, size.batch)):
        yield torch.stack([transform(image) for _ in range(2) for image in some])


def _rate(batches: Iterator[Any], size: Size) -> float:
    began = time.perf_counter()
    done = sum(1 for _ in islice(batches, size.batches))
    return done * size.batch / (time.perf_counter() - began)


if __name__ == "__main__":
    click.echo(run(small=True))
