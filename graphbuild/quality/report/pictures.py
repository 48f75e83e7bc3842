"""Small pictures of samples, as data URIs, where the manifest says where pictures are. None is never an error: it is said."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from graphbuild.store.images import Images, recorded
from graphbuild.store.manifest import Manifest
from graphbuild.system.inputs import PARQUET, file_names, list_files

_PIXELS = 160


def pictures(graph_dir: Path, manifest: Manifest, sample_ids: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return a JPEG, as data URI, of each sample that has a picture, and what to say about the rest (empty if nothing)."""
    found, note = picture_bytes(graph_dir, manifest, sample_ids, pixels=_PIXELS)
    return {name: "data:image/jpeg;base64," + base64.b64encode(data).decode() for name, data in found.items()}, note


def picture_bytes(graph_dir: Path, manifest: Manifest, sample_ids: Sequence[str], *, pixels: int) -> tuple[dict[str, bytes], str]:
    """Return a JPEG, at most `pixels` wide and high, of each sample that has a picture, and what to say about the rest."""
    images = recorded(manifest.dataset)
    if images is None:
        return {}, "The manifest names no pictures, so neighbourhoods are shown as text."
    readers = {"parquet": _from_parquet, "imagefolder": _from_folder}
    if images.kind not in readers:
        return {}, f"Pictures of kind {images.kind} are not shown here; neighbourhoods are text."
    there = replace(images.at(graph_dir), id_column=images.id_column or manifest.dataset.get("id_column"))
    found: dict[str, bytes] = {}
    try:
        for sample_id, data in readers[images.kind](there, sorted(set(sample_ids))):
            if (picture := _shrink(data, pixels)) is not None:
                found[sample_id] = picture
    # Whatever the pictures' files hold: a report without them is better than none.
    except Exception as error:
        return found, f"Pictures could not be read ({type(error).__name__}); neighbourhoods are text where they are missing."
    missing = len(set(sample_ids) - found.keys())
    return found, f"{missing} of {len(set(sample_ids))} pictures could not be read." if missing else ""


def _from_parquet(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, bytes]]:
    import polars as pl

    column, id_column = images.image_column or "", images.id_column
    files = list_files(images.path, PARQUET).paths
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


def _from_folder(images: Images, sample_ids: list[str]) -> Iterator[tuple[str, bytes]]:
    root = Path(images.path).resolve()
    for sample_id in sample_ids:
        path = (root / sample_id).resolve()
        # An id from outside must not reach files beside the pictures.
        if path.is_relative_to(root) and path.is_file():
            yield sample_id, path.read_bytes()


def _shrink(data: bytes | None, pixels: int) -> bytes | None:
    from graphbuild.system.pictures import UnreadablePicture, open_picture, to_rgb

    try:
        small = to_rgb(open_picture(data), at_least=pixels)
    except UnreadablePicture:
        return None
    small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
