"""Webdataset shards in the order of a graph's partition: images of any source in, the same images, neighbours together, out.

A chunk of neighbours then lies in one place, so that `--batches neighbors` reads runs of bytes and not single images:
what disks and object stores are good at. Image files are copied as they are. A shard is read back before it gets its name,
and at the end the ids of all shards are compared with those of the source: every sample is there exactly once.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from graphbuild.errors import ArtifactError, OptionError, ResourceError
from graphbuild.store.arrays import Int64
from graphbuild.store.atomic import atomic_path, read_json, write_json
from graphbuild.store.digests import digest_file
from graphbuild.store.folders import remove_temporaries
from graphbuild.system.answers import Answer, next_steps, quoted
from graphbuild.system.archives import OWN_FIELD, SAMPLE_ID
from graphbuild.system.progress import progress
from graphbuild.targets.chunks import PartitionConfig
from train.config import TrainConfig
from train.data.base import Encoded, ImageSource
from train.data.chunks import chunks_of
from train.data.prepare import OpenData, open_data
from train.data.sources import open_images
from train.data.tar_scan import scan_shard

PLAN_FILE, RESULT_FILE = "reshard-plan.json", "reshard.json"
_READ_AT_ONCE = 256
_MAGIC = (
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"RIFF", "webp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReshardResult(Answer):
    """Where `reshard` wrote shards, and how many samples they hold."""

    out: Path
    samples: int
    shards: int
    written: int
    """Shards that were not there before."""
    unknown: int
    """Samples that the graph does not know; they come last."""

    def summary(self) -> str:
        """Return what was written, in lines for people."""
        last = f"; {self.unknown:,} that the graph does not know come last" if self.unknown else ""
        kept = f", {self.shards - self.written:,} of them were there" if self.written < self.shards else ""
        return (
            f"{self.out}: {self.samples:,} samples, each exactly once, in {self.shards:,} shards{kept}{last}\n"
            f"{next_steps(f'train run --data {quoted(self.out)} --batches neighbors')}"
        )


def reshard(config: TrainConfig, out: Path, *, shard_size: int = 10_000, memory_gb: float = 4.0) -> ReshardResult:
    """Write the images of a configuration as shards in partition order; what an earlier call finished is kept.

    Args:
        config: Names images and graph, `chunk` and `neighbor_ranks`.
        out: Folder of the shards; it may hold those of the same images, graph and options.
        shard_size: Images a shard.
        memory_gb: Images that are held at once. The source is read once for each such part.

    Raises:
        OptionError: If the folder holds something else, or the images are no files.
        UserError: If images or graph are missing, damaged or of different data sets.
    """
    opened = open_data(config)
    order, unknown = partition_order(opened)
    if not isinstance(opened.source.encoded([0])[0], bytes | None):
        raise OptionError(f"{opened.source.name}: holds pixels, not image files, and is small. Train on it as it is.")
    shards = np.split(order, np.arange(shard_size, len(order), shard_size))
    names = [f"{number:05d}.tar" for number in range(len(shards))]
    _enter(out, opened, order, shard_size)
    missing = [number for number, name in enumerate(names) if not _is_done(out / name)]
    with progress("write shards", len(shards), unit="shards", done=len(shards) - len(missing)) as meter:
        for part in _parts(missing, opened.source, shard_size, memory_gb):
            images = _gather(opened.source, np.concatenate([shards[number] for number in part]))
            for number in part:
                _write_shard(out / names[number], number, opened, shards[number], images)
                meter.advance()
    _verify(out, opened, order)
    result = ReshardResult(out=out, samples=len(order), shards=len(shards), written=len(missing), unknown=unknown)
    write_json(out / RESULT_FILE, result.to_json())
    return result


def partition_order(opened: OpenData) -> tuple[Int64, int]:
    """Return all images of a source, chunk of neighbours after chunk; and how many the graph does not know: those come last.

    Raises:
        OptionError: If there is no graph.
    """
    graph, joined, config = opened.graph, opened.joined, opened.config
    if graph is None or joined is None:
        raise OptionError("the order is that of a graph's partition: name the graph with --graph-dir.")
    chunks = chunks_of(graph, joined, PartitionConfig(chunk=config.chunk, neighbor_ranks=config.neighbor_ranks)).astype(np.int64)
    chunks[chunks < 0] = chunks.max() + 1
    known = joined.indices[np.argsort(chunks, kind="stable")]
    unknown = np.setdiff1d(np.arange(len(opened.source)), known, assume_unique=True)
    return np.concatenate([known, unknown]), len(unknown)


def _enter(out: Path, opened: OpenData, order: Int64, shard_size: int) -> None:
    """Say in the folder what it is for, or compare with what it says."""
    ids = xxhash.xxh3_128()
    for index in order:
        ids.update(opened.source.sample_ids[index].encode() + b"\n")
    plan = {"source": opened.source.name, "samples": len(order), "order": ids.hexdigest(), "shard_size": shard_size}
    path = out / PLAN_FILE
    # What a killed call left would be in the way, and is nobody's.
    remove_temporaries(out, (PLAN_FILE, RESULT_FILE))
    if path.exists():
        try:
            stored = dict(read_json(path))
        except (ValueError, TypeError):
            raise ArtifactError(f"{path}: is damaged. Choose another --out, or remove the folder.") from None
        if changed := [f"{name}: {stored.get(name)} -> {value}" for name, value in plan.items() if stored.get(name) != value]:
            raise OptionError(f"{out}: holds shards of other images or options ({', '.join(changed)}). Choose another --out.")
        return
    if out.exists() and any(out.iterdir()):
        raise OptionError(f"{out}: exists, and is not empty. Choose another --out.")
    write_json(path, plan)


def _receipt(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _is_done(path: Path) -> bool:
    """Tell whether a shard is there with the size and digest of its receipt; one that is damaged is written anew."""
    try:
        stored = read_json(_receipt(path))
        return bool(path.stat().st_size == stored["bytes"] and digest_file(path) == stored["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _parts(missing: Sequence[int], source: ImageSource, shard_size: int, memory_gb: float) -> Iterator[Sequence[int]]:
    """Shards to write in one go: as many as the memory holds, by the size of the first images."""
    probed = [len(item) for item in source.encoded(range(min(_READ_AT_ONCE, len(source)))) if isinstance(item, bytes)]
    shard_bytes = shard_size * max(1.0, float(np.mean(probed)) if probed else 1.0)
    if shard_bytes > 2 * memory_gb * 1e9:
        raise ResourceError(
            f"a shard of {shard_size:,} images takes about {shard_bytes / 1e9:.1f} GB, more than --memory-gb {memory_gb:g} holds. "
            "Lower --shard-size, or raise it."
        )
    at_once = max(1, int(memory_gb * 1e9 / shard_bytes))
    for start in range(0, len(missing), at_once):
        yield missing[start : start + at_once]


def _gather(source: ImageSource, indices: Int64) -> dict[int, Encoded]:
    """Images by their place in the source, read in the order of the source."""
    images: dict[int, Encoded] = {}
    ordered = np.sort(indices).tolist()
    for start in range(0, len(ordered), _READ_AT_ONCE):
        some = ordered[start : start + _READ_AT_ONCE]
        images.update(zip(some, source.encoded(some), strict=True))
    return images


def _write_shard(path: Path, number: int, opened: OpenData, indices: Int64, images: dict[int, Encoded]) -> None:
    """Write one shard, and its receipt, under a temporary name each; it is read back before it gets its own."""
    digests = []
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            metas = opened.source.metas(indices.tolist())
            for row, (index, meta) in enumerate(zip(indices.tolist(), metas, strict=True)):
                # An image that the source lacks stays a sample, and is counted as corrupt by whoever reads it.
                image = images.pop(index) or b""
                assert isinstance(image, bytes), "checked by reshard"
                digests.append(xxhash.xxh3_64_intdigest(image))
                key = f"{number:05d}{row:06d}"
                _add(archive, f"{key}.{_suffix(image)}", image)
                sample_id = opened.source.sample_ids[index]
                # Apart from the user's columns, whatever they are called.
                meta = meta | {OWN_FIELD: {SAMPLE_ID: sample_id}}
                _add(archive, f"{key}.json", json.dumps(meta, ensure_ascii=False, default=str).encode())
        _read_back(temporary, digests)
    write_json(_receipt(path), {"bytes": path.stat().st_size, "digest": digest_file(path)})


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _suffix(image: bytes) -> str:
    return next((suffix for magic, suffix in _MAGIC if image.startswith(magic)), "jpg")


def _read_back(path: Path, digests: Sequence[int]) -> None:
    found = scan_shard(path, None)
    with path.open("rb") as stream:
        stored = [xxhash.xxh3_64_intdigest(os.pread(stream.fileno(), size, offset)) for offset, size in found.images]
    if stored != list(digests):
        raise ArtifactError(
            f"{path}: other bytes are on the disk than were written. Check the disk, and run the same command again."
        )


def _verify(out: Path, opened: OpenData, order: Int64) -> None:
    """Compare the ids of all shards, in order, with those that were to be written."""
    written = open_images(str(out))
    for place, (stored, index) in enumerate(zip(written.sample_ids, order, strict=False)):
        if stored != opened.source.sample_ids[index]:
            raise ArtifactError(
                f"{out}: sample {place:,} is {stored!r}, not {opened.source.sample_ids[index]!r}. Remove its shard, and run again."
            )
    if len(written) != len(order):
        raise ArtifactError(f"{out}: holds {len(written):,} samples, not {len(order):,}. Remove what does not belong there.")
