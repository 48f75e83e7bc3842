"""Image sources: `open_images` finds the right one for what `--data` says, or for what a graph's manifest records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.images import Images, recorded
from graphbuild.store.repeats import OnDuplicate
from graphbuild.system import hub
from graphbuild.system.inputs import PARQUET, SHARDS, list_files, suffix_of
from graphbuild.system.progress import say
from train.data.base import ImageSource
from train.data.repeats import reading_rules, settle_repeats

CIFAR = ("cifar10", "cifar100")


def open_images(
    data: str,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
    validation: bool = False,
    on_duplicate: OnDuplicate | None = None,
    skip_broken: bool = False,
) -> ImageSource:
    """Open the images that `--data` names.

    Args:
        data: Webdataset shards or Parquet files (a path, folder or glob), a folder of class folders, the folder of files that
            img2dataset writes, `cifar10[:FOLDER]`, or `hf:FOLDER[:SPLIT]` and `hf:user/name[:SPLIT]` of Hugging Face data.
        image_column: Parquet column of the image bytes; None: the only binary one.
        id_column: Parquet column of the sample ids, or key of the JSON in shards; None: `<file>:<row>`, or the URL.
        validation: The test split, for sources that know one (CIFAR).
        on_duplicate: What becomes of repeated ids, as the graph has it; None: nothing.
        skip_broken: Leave out what is damaged in shards, and count it.

    Raises:
        SourceError: If nothing is there, or it cannot be read.
        OptionError: If a column is named for images that are not in Parquet.
    """
    source = settle_repeats(_open(data, image_column, id_column, validation, skip_broken), on_duplicate)
    skipped: Mapping[str, int] = getattr(source, "skipped", {})
    if left_out := [f"{count:,} {what}" for what, count in skipped.items() if count]:
        say(f"{source.name}: left out: {', '.join(left_out)}")
    return source


def _open(data: str, image_column: str | None, id_column: str | None, validation: bool, skip_broken: bool) -> ImageSource:
    kind, _, folder = data.partition(":")
    if kind in CIFAR:
        _refuse_column(data, image_column)
        from train.data.cifar import CifarImages

        return CifarImages(kind, Path(folder or "data"), train=not validation)
    if data.startswith(hub.PREFIX):
        return _open_split(data.removeprefix(hub.PREFIX), image_column, id_column)
    paths, hidden = _files(data)
    if paths and suffix_of(paths[0].name) in PARQUET:
        return _open_parquet(data, paths, image_column, id_column)
    _refuse_column(data, image_column)
    if paths:
        from train.data.tar import TarImages

        shards = TarImages(paths, id_column=id_column, skip_broken=skip_broken)
        shards.skipped["hidden files"] = hidden
        return shards
    from train.data.imagefolder import FolderImages

    return FolderImages(Path(data))


def _open_split(source: str, image_column: str | None, id_column: str | None) -> ImageSource:
    from train.data.parquet import ParquetImages
    from train.data.streams import StreamImages

    split = hub.find_split(source)
    kind = StreamImages if split.streams else ParquetImages
    return kind(split.files, image_column=image_column, id_column=id_column)


def _open_parquet(data: str, paths: Sequence[Path], image_column: str | None, id_column: str | None) -> ImageSource:
    from train.data.img2dataset import CrawledFiles, holds_crawled_files
    from train.data.parquet import ParquetImages

    if image_column is None and holds_crawled_files(Path(data), paths):
        return CrawledFiles(Path(data), paths, id_column=id_column)
    return ParquetImages(paths, image_column=image_column, id_column=id_column)


def _refuse_column(data: str, image_column: str | None) -> None:
    if image_column is not None:
        raise OptionError(f"{data}: --image-column {image_column!r} is for Parquet files. Leave it out.")


def recorded_images(dataset: Mapping[str, Any], graph_dir: Path, *, validation: bool = False) -> dict[str, Any] | None:
    """Return what a manifest's `dataset` says about its images, as arguments of `open_images`; None if it records none.

    Args:
        dataset: `Manifest.dataset`.
        graph_dir: Relative paths are taken from here.
        validation: The validation images, which not every data set has.
    """
    images = recorded(dataset)
    if images is None or (validation and not images.val and images.kind not in CIFAR):
        return None
    there = images.at(graph_dir)
    path = there.val if validation and there.val else there.path
    if images.kind in CIFAR:
        return {"data": f"{images.kind}:{path}", "validation": validation}
    if images.kind == "hf":
        path = hub.PREFIX + path
    return {"data": path, **_columns(images, dataset), **({} if validation else reading_rules(dataset))}


def _columns(images: Images, dataset: Mapping[str, Any]) -> dict[str, Any]:
    if images.kind == "imagefolder":
        return {}
    id_column = {"id_column": images.id_column or dataset.get("id_column")}
    return {"image_column": images.image_column, **id_column} if images.kind in ("parquet", "hf") else id_column


def _files(data: str) -> tuple[list[Path], int]:
    """The shards or Parquet files that a path, a folder or a pattern stands for, all of one kind, and the number of hidden ones.

    An empty list stands for a folder of something else.

    Raises:
        SourceError: If nothing is there.
    """
    path = Path(data)
    if path.is_file() and suffix_of(path.name) not in (*SHARDS, *PARQUET):
        raise SourceError(
            f"{data}: --data takes webdataset shards (.tar), Parquet files, a folder of images or cifar10, not "
            f"{path.suffix or 'such'} files."
        )
    if not path.exists() and not any(sign in data for sign in "*?[{"):
        raise SourceError(
            f"{data}: nothing there. Check --data: webdataset shards, Parquet files, a folder of class folders, cifar10, or "
            "hf:FOLDER."
        )
    # img2dataset puts a Parquet file of what it downloaded beside each shard.
    for suffixes in (SHARDS, PARQUET):
        listing = list_files(data, suffixes)
        if found := [one for one in listing.paths if suffix_of(one.name) in suffixes]:
            return found, listing.hidden
    return [], 0
