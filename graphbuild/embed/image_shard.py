"""Embedding one shard of pictures: what workers run, and the encoder at work.

Shape letters: n pictures of a shard, B pictures of a call, S their height and width, D vector width.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.datasets.base import CaptionBatch
from graphbuild.datasets.formats.pictures import Contents, Pictures, Place
from graphbuild.datasets.formats.vector_files import unit_vectors
from graphbuild.embed.image_files import ImageSpec, load_net
from graphbuild.errors import ArtifactError, SourceError
from graphbuild.store import schemas
from graphbuild.store.embeddings import embeddings_table
from graphbuild.store.files import Receipt, finished, write_parquet
from graphbuild.store.tables import read_parquet
from graphbuild.system.cluster import Report
from graphbuild.system.cores import available_cores
from graphbuild.system.pictures import UnreadablePicture, open_picture, to_rgb
from graphbuild.system.worker_checks import versions

_CALL_BYTES = 1 << 26
"""Pixels of a call, as float32."""
_MOST_ROWS = 128


def embed_pictures(
    root: str, index: int, spec: ImageSpec, pictures: Pictures, start: tuple[int, int], key: str, *, report: Report
) -> Receipt:
    """Embed the pictures of one shard; the task that workers run.

    Args:
        root: Absolute path of the graph directory.
        index: Number of the shard.
        spec: The encoder.
        pictures: Where the pictures are.
        start: File and row of the shard's first sample.
        key: Of the receipt.
        report: Told how many pictures were finished.

    Returns:
        The receipt of the file that was written.

    Raises:
        ArtifactMismatch: If the encoder is another here.
        SourceError: If the pictures are no longer those that were looked at.
    """
    began = time.monotonic()
    graph_dir, name = Path(root), schemas.part_name(schemas.EMBEDDINGS, index)
    if (done := finished(graph_dir, name, key=key)) is not None:
        return done
    wanted = read_parquet(graph_dir / schemas.part_name(schemas.SAMPLES, index))[schemas.SAMPLE_ID].to_pylist()
    encoder, rows = load_image_encoder(spec), list[NDArray[np.float16]]()
    # The reader takes columns and captions along, which are of no use here.
    source = replace(pictures, caption_column=None, keep_schema=pa.schema([]))
    stream, first = _wanted(source.read(Place(*start)), wanted), 0
    while some := list(islice(stream, encoder.rows)):
        vectors_BD = unit_vectors(encoder.encode(some), name, first)
        rows.append(vectors_BD.astype(np.float16))
        first += len(some)
        report(len(some))
    table = embeddings_table(read_parquet(graph_dir / schemas.part_name(schemas.TEXTS, index)), np.concatenate(rows))
    found = {"host": platform.node(), "weights": spec.sha256, "versions": versions()}
    facts = {"pid": os.getpid(), "seconds": round(time.monotonic() - began, 3), **found}
    return write_parquet(graph_dir, name, table, key=key, facts=facts)


def _wanted(found: Iterator[tuple[int, CaptionBatch, Contents]], wanted: list[str]) -> Iterator[bytes | None]:
    """Pictures of some samples, which stand in this order, perhaps with others between them that cannot be decoded.

    Raises:
        SourceError: If one does not come.
    """
    next_one = 0
    for _, batch, contents in found:
        for sample_id, content in zip(batch.sample_ids, contents, strict=True):
            if next_one < len(wanted) and sample_id == wanted[next_one]:
                next_one += 1
                yield content
        if next_one == len(wanted):
            return
    raise SourceError(
        f"the picture of sample {wanted[next_one]!r} is no longer where it was. Restore the files, or embed with --overwrite."
    )


class ImageEncoder:
    """An image encoder at work: pictures in, vectors out, in calls of one fixed shape."""

    def __init__(self, spec: ImageSpec) -> None:
        """Load it.

        Raises:
            UserError: As `load_net`.
        """
        import torch

        self._net = load_net(spec)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._kind = getattr(torch, spec.precision)
        self._net.module.to(self._device, self._kind)
        self.rows = max(1, min(_MOST_ROWS, _CALL_BYTES // (12 * spec.size * spec.size)))
        """B."""

    def encode(self, contents: Contents) -> NDArray[np.float32]:
        """Return vectors of B pictures or fewer, of any length; (len(contents), D).

        Raises:
            SourceError: If a picture cannot be decoded.
        """
        import torch

        with ThreadPoolExecutor(available_cores()) as pool:
            pixels = list(pool.map(self._pixels, contents))
        # Filled up with copies of the first, so that the shape is fixed: in half precision the bytes depend on it.
        batch = torch.stack(pixels + pixels[:1] * (self.rows - len(pixels)))
        with torch.inference_mode():
            vectors = self._net.features(batch.to(self._device, self._kind))[: len(contents)].float().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ArtifactError("the encoder gave numbers that are not finite. Use --precision float32.")
        return np.asarray(vectors, np.float32)

    def encode_text(self, text: str) -> NDArray[np.float32] | None:
        """Return the vector of a text, (D,); None where the encoder has no text side."""
        import torch

        if self._net.texts is None:
            return None
        with torch.inference_mode():
            return np.asarray(self._net.texts(text)[0].float().cpu().numpy(), np.float32)

    def _pixels(self, content: bytes | None) -> Any:
        try:
            return self._net.transform(to_rgb(open_picture(content)))
        except UnreadablePicture as error:
            raise SourceError(f"a picture that could be decoded before cannot be now ({error}). Restore the files.") from None


@lru_cache(maxsize=1)
def load_image_encoder(spec: ImageSpec) -> ImageEncoder:
    """Load an image encoder, once per process.

    Raises:
        UserError: As `load_net`.
    """
    return ImageEncoder(spec)
