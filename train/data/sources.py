"""Image sources: `open_images` finds the right one for what `--data` says, or for what a graph's manifest records."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphbuild.errors import OptionError, SourceError
from train.data.base import ImageSource

CIFAR = ("cifar10", "cifar100")
_SUFFIXES = (".tar", ".parquet")
"""Files that hold many images; where there are both, the first counts."""


def open_images(
    data: str, *, image_column: str | None = None, id_column: str | None = None, validation: bool = False
) -> ImageSource:
    """Open the images that `--data` names.

    Args:
        data: Webdataset shards or Parquet files (a path, folder or glob), a folder of class folders, or `cifar10[:FOLDER]`.
        image_column: Parquet column of the image bytes; None: the only binary one.
        id_column: Parquet column of the sample ids, or key of the JSON in shards; None: `<file>:<row>`, or the URL.
        validation: The test split, for sources that know one (CIFAR).

    Raises:
        SourceError: If nothing is there, or it cannot be read.
        OptionError: If a column is named for images that are not in Parquet.
    """
    kind, _, folder = data.partition(":")
    paths = [] if kind in CIFAR else _files(data)
    if paths and paths[0].suffix == ".parquet":
        from train.data.parquet import ParquetImages

        return ParquetImages(paths, image_column=image_column, id_column=id_column)
    if image_column is not None:
        raise OptionError(f"{data}: --image-column {image_column!r} is for Parquet files. Leave it out.")
    if paths:
        from train.data.tar import TarImages

        return TarImages(paths, id_column=id_column)
    if kind in CIFAR:
        from train.data.cifar import CifarImages

        return CifarImages(kind, Path(folder or "data"), train=not validation)
    from train.data.imagefolder import FolderImages

    return FolderImages(Path(data))


def recorded_images(dataset: Mapping[str, Any], graph_dir: Path, *, validation: bool = False) -> dict[str, Any] | None:
    """What a manifest's `dataset` says about its images, as arguments of `open_images`; None if it records none.

    Args:
        dataset: `Manifest.dataset`.
        graph_dir: Relative paths are taken from here.
        validation: The validation images, which not every data set has.
    """
    images = dataset.get("images")
    if not images or (validation and not images.get("val") and images["kind"] not in CIFAR):
        return None
    path = str(images["val"] if validation and images.get("val") else images["path"])
    if images["kind"] in CIFAR:
        return {"data": f"{images['kind']}:{graph_dir / path}", "validation": validation}
    columns = {"image_column": images.get("image_column"), "id_column": images.get("id_column") or dataset.get("id_column")}
    if images["kind"] == "webdataset":
        del columns["image_column"]
    return {"data": str(graph_dir / path), **(columns if images["kind"] in ("parquet", "webdataset") else {})}


def _files(data: str) -> list[Path]:
    """The shards or Parquet files that a path, a folder or a glob stands for, all of one kind; none if it is something else.

    Raises:
        SourceError: If nothing is there.
    """
    path = Path(data)
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise SourceError(
                f"{data}: --data takes webdataset shards (.tar), Parquet files, a folder of images or cifar10, not "
                f"{path.suffix or 'such'} files."
            )
        return [path]
    if path.is_dir():
        found = sorted(path.iterdir())
    else:
        found = sorted(Path(name) for name in glob.glob(data, recursive=True))  # noqa: PTH207 - an absolute pattern is none for Path.glob
        if not found:
            raise SourceError(
                f"{data}: nothing there. Check --data: webdataset shards, Parquet files, a folder of class folders, or cifar10."
            )
    # img2dataset puts a Parquet file of what it downloaded beside each shard.
    by_suffix = ([name for name in found if name.suffix == suffix] for suffix in _SUFFIXES)
    return next((names for names in by_suffix if names), [])
