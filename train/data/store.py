"""Decoded images: held in memory where they fit, else decoded batch by batch in threads.

Shape letters: N images, n images asked for, L height and width at which they are held, V views of an image, S their size.
An image that cannot be decoded is counted, named and left out; another takes its place where the caller names one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError, ResourceError, SourceError
from graphbuild.store.arrays import Bool, Int32, Int64, UInt8
from graphbuild.store.choices import OnDevice
from graphbuild.system.pictures import UnreadablePicture
from graphbuild.system.progress import progress
from train.data.base import Encoded, ImageSource, decode, short_side
from train.data.crops import Crops

Decoder = Callable[[Encoded, int], tuple[UInt8, tuple[int, int]]]
"""Makes what is wanted of an image's bytes and its place in the batch, and says what height and width it stands for."""
_CHUNK = 256
_PROBED = 64
_SHARE_OF_FREE = 0.3
"""Of a GPU's free memory, what `auto` gives the images: graph, model and activations come later."""


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Some images, in the order asked for; those that could not be read are left out, or others stand in their places."""

    pixels: Tensor
    """uint8, (n, 3, L, L); (n, V, 3, S, S) where crops were asked for."""
    sizes: Tensor
    """Height and width of the originals; int32, (n, 2)."""
    rows: Int64
    """Which images these are; rows of the store, (n,)."""


class CorruptImages:
    """Counts images that cannot be read; each is told once. Safe from several threads."""

    def __init__(self, where: str, limit: int, on_new: Callable[[str, str], None] | None = None) -> None:
        """Count for one data set.

        Args:
            where: How messages call it.
            limit: More than this are an error.
            on_new: Called with the sample id and the reason of each.
        """
        self._where, self._limit, self._on_new = where, limit, on_new
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, sample_id: str, reason: str) -> None:
        """Count one image that cannot be read.

        Raises:
            SourceError: If there are more than the limit.
        """
        with self._lock:
            if sample_id in self._seen:
                return
            self._seen[sample_id] = reason
            if self._on_new:
                self._on_new(sample_id, reason)
            if len(self._seen) > self._limit:
                raise SourceError(
                    f"{self._where}: {len(self._seen)} images cannot be read (the last one: {sample_id}: {reason}), more than "
                    f"--max-corrupt {self._limit}. Check the files, or raise the limit."
                )

    def __len__(self) -> int:
        return len(self._seen)


class ImageStore:
    """The images of a source (or some of them), decoded and resized to L x L."""

    def __init__(
        self,
        source: ImageSource,
        *,
        size: int,
        corrupt: CorruptImages,
        indices: Int64 | None = None,
        workers: int = 2,
        cache_bytes: int = 4 << 30,
        decoder: Decoder = decode,
    ) -> None:
        """Decode everything, if it fits.

        Args:
            source: Where the images come from.
            size: L.
            corrupt: Counts what cannot be read.
            indices: The images of the source that are wanted; None: all. Rows of the store are positions in here.
            workers: Threads that decode.
            cache_bytes: Decoded images are held up to this size.
            decoder: Makes L x L pixels of an image's bytes, and says what height and width they stand for.

        Raises:
            SourceError: If too many images cannot be read.
        """
        self.source, self.size, self._decoder = source, size, decoder
        self._indices = np.arange(len(source)) if indices is None else np.asarray(indices)
        self._corrupt, self._workers = corrupt, max(1, workers)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        self._pixels: Tensor | None = None
        self._sizes: Tensor | None = None
        self.readable: Bool = np.ones(len(self), dtype=np.bool_)
        """False for rows known to be unreadable; (N,)."""
        if held_bytes(len(self), size) <= cache_bytes:
            self._load_all()

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def cached(self) -> bool:
        """Whether all images are held in memory."""
        return self._pixels is not None

    def sample_ids(self, rows: Sequence[int]) -> list[str]:
        """Return ids of some rows."""
        return [self.source.sample_ids[self._indices[row]] for row in rows]

    def batch(self, rows: Int64, instead: Iterable[Int64] | None = None, crops: Crops | None = None) -> ImageBatch:
        """Return the pixels of some images.

        Args:
            rows: Which; (n,).
            instead: Rows to try, one after another, in the places of images that cannot be read; (n,) each. None: such
                images are left out, and the batch is shorter.
            crops: Cut these from the original images, which are decoded for it. None: whole images at L x L.

        Raises:
            SourceError: If too many images cannot be read, or nothing is left to try.
        """
        rows = np.array(rows, dtype=np.int64)
        pixels, sizes = self._read(rows, np.arange(len(rows)), crops)
        if instead is None or self.readable[rows].all():
            kept = self.readable[rows]
            return ImageBatch(*((pixels, sizes) if kept.all() else (pixels[kept], sizes[kept])), rows[kept])
        for others in instead:
            places = np.flatnonzero(~self.readable[rows])
            rows[places] = others[places]
            pixels[places], sizes[places] = self._read(rows[places], places, crops)
            if self.readable[rows].all():
                return ImageBatch(pixels, sizes, rows)
        raise SourceError(f"{self.source.name}: none of the {len(self):,} images can be read. Check --data and --image-column.")

    def _read(self, rows: Int64, places: Int64, crops: Crops | None) -> tuple[Tensor, Tensor]:
        """Pixels and sizes for some places of a batch; of no meaning where `readable` then says that an image cannot be read."""
        if crops is not None:
            shape = (crops.views, 3, crops.size, crops.size)
            pixels, sizes = self._decode(rows, shape, lambda item, number: crops.decode(item, int(places[number])))
            return torch.from_numpy(pixels), torch.from_numpy(sizes)
        if self._pixels is None or self._sizes is None:
            pixels, sizes = self._decode_whole(rows)
            return torch.from_numpy(pixels), torch.from_numpy(sizes)
        chosen = torch.from_numpy(rows)
        return self._pixels[chosen.to(self._pixels.device, non_blocking=True)], self._sizes[chosen]

    def hold_on(self, device: torch.device, choice: OnDevice) -> bool:
        """Move the pixels of images that are held in memory to a device, for good; whether they are there then.

        Args:
            device: Where.
            choice: `auto` does so on a GPU with room to spare; never on a CPU.

        Raises:
            OptionError: If `yes` asks for what is not held in memory.
            ResourceError: If `yes` asks for more than there is.
        """
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        needed = held_bytes(len(self), self.size)
        if choice == "yes" and self._pixels is None:
            raise OptionError(f"--images-on-device yes: decoded images take {needed / 1e9:.1f} GB. Raise --cache-gb above that.")
        if choice == "yes" and free is not None and needed > free:
            raise ResourceError(
                f"--images-on-device yes: decoded images take {needed / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free. "
                "Use --images-on-device no."
            )
        wanted = choice == "yes" or (choice == "auto" and free is not None and needed <= _SHARE_OF_FREE * free)
        if self._pixels is None or not wanted:
            return False
        self._pixels = self._pixels.to(device)
        return True

    def _load_all(self) -> None:
        pixels = np.empty((len(self), 3, self.size, self.size), dtype=np.uint8)
        sizes = np.ones((len(self), 2), dtype=np.int32)
        with progress("decode images", len(self), unit="images") as meter:
            for start in range(0, len(self), _CHUNK * self._workers):
                rows = np.arange(start, min(start + _CHUNK * self._workers, len(self)))
                pixels[rows], sizes[rows] = self._decode_whole(rows)
                meter.advance(len(rows))
        self._pixels, self._sizes = torch.from_numpy(pixels), torch.from_numpy(sizes)

    def _decode_whole(self, rows: Int64) -> tuple[UInt8, Int32]:
        return self._decode(rows, (3, self.size, self.size), lambda item, _: self._decoder(item, self.size))

    def _decode(self, rows: Int64, shape: tuple[int, ...], make: Decoder) -> tuple[UInt8, Int32]:
        """Pixels (n, *shape) and original sizes (n, 2); the work is shared by the threads."""
        pixels = np.zeros((len(rows), *shape), dtype=np.uint8)
        sizes = np.ones((len(rows), 2), dtype=np.int32)
        reasons: list[str | None] = [None] * len(rows)

        def work(positions: Int64) -> None:
            items = self.source.encoded(self._indices[rows[positions]].tolist())
            for position, item in zip(positions, items, strict=True):
                try:
                    pixels[position], sizes[position] = make(item, int(position))
                except UnreadablePicture as error:
                    reasons[position] = str(error)
                    self.readable[rows[position]] = False

        list(self._pool.map(work, np.array_split(np.arange(len(rows)), self._workers)))
        for row, reason in zip(rows, reasons, strict=True):
            if reason is not None:
                self._corrupt.add(self.sample_ids([row])[0], reason)
        return pixels, sizes

    def close(self) -> None:
        """End the threads that decode."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def held_bytes(count: int, size: int) -> int:
    """Return what so many images of three channels take in memory."""
    return count * 3 * size * size


def choose_load_size(source: ImageSource, image_size: int) -> int:
    """Choose L for a view size: the median short side of the first images, but at least the view's size.

    At most twice the view size for small views (crops of them stay sharp), at most 8/7 of it for large ones.
    """
    sides = [side for item in source.encoded(range(min(_PROBED, len(source)))) if (side := short_side(item))]
    most = max(image_size * 8 // 7, min(2 * image_size, 128))
    return int(np.clip(np.median(sides) if sides else image_size, image_size, most))
