"""COCO captions, as published: `captions_<split>.json`, five or more captions a picture, in any order."""

from __future__ import annotations

from collections.abc import Iterator

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.json_stream import stream_objects
from graphbuild.datasets.formats.jsonl import record_row
from graphbuild.datasets.formats.rows import Broken, Record, RowSource, Wanted

_COLUMNS = ("file_name", "caption", "image_id", "id")
_EXPECTED = "It should be COCO captions: captions_<split>.json, whole."


class CocoFormat:
    """One annotation a row; held in memory are the pictures' file names alone."""

    def columns(self, file: File) -> list[str] | None:
        """Return the columns of COCO, if there is an annotation."""
        return list(_COLUMNS) if next(stream_objects(file, "annotations", expected=_EXPECTED), None) is not None else None

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the annotations of a file; those of no picture in it, or without a text, are broken.

        Raises:
            SourceError: If it is not COCO's JSON.
        """
        names = {image.get("id"): image.get("file_name") for image, _ in stream_objects(file, "images", expected=_EXPECTED)}
        for number, (annotation, invalid) in enumerate(stream_objects(file, "annotations", expected=_EXPECTED)):
            if (image_id := annotation.get("image_id")) in names:
                yield record_row(f"annotation {number:,}", {**annotation, "file_name": names[image_id]}, wanted, invalid)
            else:
                yield Broken(f"annotation {number:,} is of picture {image_id!r}, which is not among its images.")


SOURCE = RowSource(
    SourceInfo(
        name="coco",
        what="COCO captions (captions_train2017.json and the like); ids are file names, each with its five or more captions.",
        size="118,287 pictures with 591,753 captions in train2017",
        licence="captions CC BY 4.0; the pictures are under their authors' licences",
        origin="--source: the JSON files, from https://cocodataset.org/#download (annotations)",
    ),
    CocoFormat(),
    (".json",),
    caption_column="caption",
    id_column="file_name",
    repeated_ids=True,
)
