"""Small pictures of samples, where the manifest says where pictures are. None is never an error: it is said."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphbuild.store.images import Images, Kind, recorded
from graphbuild.store.manifest import Manifest
from graphbuild.system.archives import URL, Shard, download_failed
from graphbuild.system.hub import find_split, map_stream
from graphbuild.system.inputs import PARQUET, PICTURES, SHARDS, file_names, list_files

PIXELS = 160
_MOST_SHARDS = 256
"""Shards that are looked through: a crawl has thousands, and a page needs a handful of pictures."""

Content = bytes | npt.NDArray[np.uint8] | None


def pictures(graph_dir: Path, manifest: Manifest, sample_ids: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return a JPEG, as data URI, of each sample that has a picture, and what to say about the rest (empty if nothing)."""
    found, note = picture_bytes(graph_dir, manifest, sample_ids, pixels=PIXELS)
    return {name: "data:image/jpeg;base64," + base64.b64encode(data).decode() for name, data in found.items()}, note


def picture_bytes(graph_dir: Path, manifest: Manifest, sample_ids: Sequence[str], *, pixels: int) -> tuple[dict[str, bytes], str]:
    """Return a JPEG, at most `pixels` wide and high, of each sample that has a picture, and what to say about the rest."""
    images = recorded(manifest.dataset)
    if images is None:
        return {}, "The manifest names no pictures, so neighbourhoods are shown as text."
    there = replace(images.at(graph_dir), id_column=images.id_column or manifest.dataset.get("id_column"))
    found: dict[str, bytes] = {}
    try:
        for sample_id, content in _READERS[images.kind](there, sorted(set(sample_ids))):
            if (picture := _shrink(content, pixels)) is not None:
                found[sample_id] = picture
    # Whatever the pictures' files hold: a report without them is better than none.
    except Exception as error:
        return found, f"Pictures could not be read ({type(error).__name__}); neighbourhoods are text where they are missing."
    missing = len(set(sample_ids) - found.keys())
    return found, f"{missing} of {len(set(sample_ids))} pictures could not be read." if missing else ""


def _from_parquet(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, Content]]:
    yield from _of_files(list_files(images.path, PARQUET).paths, images, sample_ids)


def _from_split(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, Content]]:
    """Parquet files or Arrow streams of a Hugging Face data set."""
    split = find_split(images.path)
    if not split.streams:
        yield from _of_files(split.files, images, sample_ids)
        return
    wanted, column = set(sample_ids), images.image_column or ""
    for file, name in zip(split.files, file_names([str(path) for path in split.files]), strict=True):
        table = map_stream(file)
        ids = table[images.id_column].to_pylist() if images.id_column else [f"{name}:{row}" for row in range(table.num_rows)]
        for row, sample_id in enumerate(map(str, ids)):
            if sample_id in wanted:
                value = table[column][row].as_py()
                yield sample_id, value["bytes"] if isinstance(value, dict) else value


def _of_files(files: Sequence[Path], images: Images, sample_ids: list[str]) -> Iterator[tuple[str, Content]]:
    import polars as pl

    column, id_column = images.image_column or "", images.id_column
    names = file_names([str(file.absolute()) for file in files])
    for file, name in zip(files, names, strict=True):
        frame = pl.scan_parquet(file, glob=False)
        if id_column:
            rows = frame.filter(pl.col(id_column).cast(pl.String).is_in(sample_ids)).select(
                pl.col(id_column).cast(pl.String), column
            )
        else:
            named = pl.format("{}:{}", pl.lit(name), pl.col("row"))
            rows = frame.with_row_index("row").select(named.alias("id"), column).filter(pl.col("id").is_in(sample_ids))
        for sample_id, value in rows.collect(engine="streaming").iter_rows():
            yield sample_id, value["bytes"] if isinstance(value, dict) else value


def _from_folder(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, Content]]:
    root = Path(images.path).resolve()
    for sample_id in sample_ids:
        path = (root / sample_id).resolve()
        # An id from outside must not reach files beside the pictures.
        if path.is_relative_to(root) and path.is_file():
            yield sample_id, path.read_bytes()


def _from_shards(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, Content]]:
    files = [path for path in list_files(images.path, SHARDS).paths if path.suffix in SHARDS]
    names = file_names([str(file.absolute()) for file in files])
    missing = set(sample_ids)
    # Ids without one of their own begin with their shard's name.
    prefixes = {sample_id.rpartition("/")[0] for sample_id in sample_ids}
    ordered = sorted(zip(files, names, strict=True), key=lambda pair: pair[1].removesuffix(".tar") not in prefixes)
    for file, name in ordered[:_MOST_SHARDS]:
        if not missing:
            return
        with file.open("rb") as stream:
            shard = Shard(name, stream, file.stat().st_size, images.id_column)
            for sample in shard.samples():
                sample_id = shard.sample_id(sample, shard.record(sample))
                if sample_id in missing and (member := sample.picture) is not None:
                    missing.remove(sample_id)
                    yield sample_id, shard.read(member, member.size)


def _from_crawl(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, Content]]:
    """Folders of files that img2dataset wrote, named by the keys of the tables beside them."""
    import polars as pl

    id_column = images.id_column or URL
    for sidecar in list_files(images.path, PARQUET).paths:
        rows = pl.scan_parquet(sidecar, glob=False).filter(pl.col(id_column).cast(pl.String).is_in(sample_ids))
        listed = rows.select(pl.col(id_column).cast(pl.String), pl.col("key").cast(pl.String), "status").collect()
        for sample_id, key, status in listed.iter_rows():
            path = next((one for suffix in PICTURES if (one := sidecar.with_suffix("") / f"{key}{suffix}").is_file()), None)
            if path is not None and Path(key).name == key and not download_failed(status):
                yield sample_id, path.read_bytes()


def _from_cifar(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, Content]]:
    from graphbuild.system.cifar import cifar_ids, load_cifar

    split = load_cifar(images.kind, Path(images.path), train=True, download=False)
    places = {sample_id: index for index, sample_id in enumerate(cifar_ids(len(split.data), train=True))}
    for sample_id in sample_ids:
        if sample_id in places:
            yield sample_id, split.data[places[sample_id]]


_READERS: dict[Kind, Callable[[Images, list[str]], Iterator[tuple[str, Content]]]] = {
    "parquet": _from_parquet,
    "hf": _from_split,
    "imagefolder": _from_folder,
    "webdataset": _from_shards,
    "img2dataset": _from_crawl,
    "cifar10": _from_cifar,
    "cifar100": _from_cifar,
}


def _shrink(content: Content, pixels: int) -> bytes | None:
    from graphbuild.system.pictures import UnreadablePicture, open_picture, to_rgb

    try:
        small = to_rgb(open_picture(content), at_least=pixels)
    except UnreadablePicture:
        return None
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
