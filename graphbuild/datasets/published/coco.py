"""COCO captions, as published: `captions_<split>.json`, five or more captions a picture, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.json_stream import stream_array
from graphbuild.datasets.formats.jsonl import as_text
from graphbuild.datasets.formats.rows import Row, RowSource, Wanted
from graphbuild.errors import SourceError

_COLUMNS = ("file_name", "caption", "image_id", "id")


class CocoFormat:
    """One annotation a row; held in memory are the pictures' file names alone."""

    def columns(self, path: File) -> list[str] | None:
        """Those of COCO, if there is an annotation."""
        return list(_COLUMNS) if next(_elements(path, "annotations"), None) is not None else None

    def rows(self, path: File, wanted: Wanted) -> Iterator[Row]:
        """Annotations of a file.

        Raises:
            SourceError: If it is not COCO's JSON, or an annotation is of no picture in it.
        """
        names = {image.get("id"): image.get("file_name") for image in _elements(path, "images")}
        for number, annotation in enumerate(_elements(path, "annotations")):
            if (image_id := annotation.get("image_id")) not in names:
                raise SourceError(f"{path}: annotation {number:,} is of picture {image_id!r}, which is not among its images.")
            row = {**annotation, "file_name": names[image_id]}
            values = {name: as_text(_without_surrogates(row.get(name))) for name in wanted.names()}
            yield Row(
                captions=[values[wanted.caption]],
                sample_id=values[wanted.sample_id] if wanted.sample_id else None,
                kept=tuple(values[name] for name in wanted.kept),
                invalid=any(isinstance(row.get(name), str) and values[name] != row[name] for name in values),
            )


def _elements(path: File, key: str) -> Iterator[dict[str, Any]]:
    # Invalid bytes pass as surrogates, so that the row they stand in can be named.
    with path.open("r", encoding="utf-8", errors="surrogateescape") as stream:
        try:
            for element in stream_array(stream, key):
                if not isinstance(element, dict):
                    raise ValueError(f"{key!r} holds {type(element).__name__}, not objects")
                yield element
        except ValueError as error:
            raise SourceError(f"{path}: not COCO captions: {error}. It should be captions_<split>.json, whole.") from None


def _without_surrogates(value: Any) -> Any:
    """Escaped bytes as U+FFFD."""
    if not isinstance(value, str) or value.isascii():
        return value
    return "".join("\ufffd" if "\udc80" <= sign <= "\udcff" else sign for sign in value)


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
