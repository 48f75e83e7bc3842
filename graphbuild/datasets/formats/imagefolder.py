"""A folder of class folders with pictures: the folder's name is the class, the picture's path its id."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from graphbuild.datasets.base import (
    BATCH_ROWS,
    CaptionBatch,
    OpenSource,
    SourceFile,
    SourceInfo,
    SourceOptions,
    refuse_headerless,
    require_columns,
)
from graphbuild.datasets.wordnet import Nouns, is_wnid, read_nouns
from graphbuild.errors import OptionError, SourceError
from graphbuild.store.images import Images, place_of
from graphbuild.system.inputs import PICTURES, LeftOut, is_hidden, suffix_of, walk_pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderClass:
    """A class folder, and the class that it holds."""

    folder: str
    name: str
    """What goes through the template; with --definitions, name and definition."""
    label: int


@dataclass(slots=True)
class _Listing:
    """What is in the folders, without keeping it."""

    pictures: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    bytes: int = 0
    hasher: Any = field(default_factory=xxhash.xxh3_128)


class ImageFolderSource:
    """Pictures in class folders."""

    info = SourceInfo(
        name="imagefolder",
        what="A folder of class folders with pictures; class names are the folders' names, in 'a photo of a {}' by default. "
        "Ids are paths relative to the source. With --definitions, folders named by wnids are told by WordNet's words.",
        size="any",
        licence="that of your data",
        origin="--source: one folder",
        named_by_source=True,
        by_wnid=True,
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the pictures are there."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """List the pictures and their classes, and return them as a source.

        Raises:
            SourceError: If the folder is missing, holds no class folders with pictures, or a definition is not found.
        """
        root = one_folder(options, self.info.name)
        names = class_folders(root)
        nouns = _look_up(root, names, options.definitions) if options.definitions is not None else None
        classes = [
            FolderClass(folder=name, name=nouns.describe(name) if nouns else name.replace("_", " "), label=label)
            for label, name in enumerate(names)
        ]
        return open_folder(root, classes, options, graph_dir, key_column="class", definitions=nouns.file if nouns else None)


def _look_up(root: Path, folders: Sequence[str], definitions: str) -> Nouns:
    if other := [name for name in folders if not is_wnid(name)]:
        raise SourceError(
            f"{root / other[0]}: {other[0]!r} is no wnid (such as n01440764), by which --definitions finds classes. "
            "Leave --definitions out, or rename the folder."
        )
    return read_nouns(definitions, folders)


def one_folder(options: SourceOptions, dataset: str) -> Path:
    """Return the one folder that --source names.

    Raises:
        OptionError: If there is not exactly one --source.
        SourceError: If it is no folder.
    """
    if len(options.sources) != 1:
        raise OptionError(
            f"--dataset {dataset} takes one --source, the folder of the class folders; {len(options.sources)} were given."
        )
    root = Path(options.sources[0])
    if not root.is_dir():
        raise SourceError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}. Check --source.")
    return root


def class_folders(root: Path) -> list[str]:
    """Return names of the class folders, sorted.

    Raises:
        SourceError: If there is none.
    """
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    if not names:
        raise SourceError(f"{root}: no class folders in this folder. Give the folder above them with --source.")
    if above := [name for name in names if _holds_classes(root / name)]:
        raise SourceError(
            f"{root}: {', '.join(above[:3])}{' ...' if len(above) > 3 else ''} hold no pictures but folders of them, and so are no "
            f"classes. Give one of them with --source, such as {root / above[0]}."
        )
    return names


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds no picture of its own, but several folders that do: it is then one level too high for a class."""
    below = []
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        if not entry.is_dir():
            if suffix_of(entry.name) in PICTURES:
                return False
        else:
            below.append(entry.path)
    return len(below) > 1 and sum(_holds_pictures(Path(path)) for path in below) > 1


def _holds_pictures(folder: Path) -> bool:
    return any(suffix_of(entry.name) in PICTURES and not is_hidden(entry.name) for entry in os.scandir(folder))


def open_folder(
    root: Path,
    classes: Sequence[FolderClass],
    options: SourceOptions,
    graph_dir: Path,
    *,
    key_column: str,
    definitions: SourceFile | None,
) -> OpenSource:
    """Return a source over class folders.

    Args:
        root: The folder above them.
        classes: Which folders, and the name and label of each.
        options: What the user said; columns can be kept from `path`, `label` and the key column.
        graph_dir: The graph directory.
        key_column: What the column of folder names is called in samples.
        definitions: Where the definitions in the classes' names are from, if there are any.

    Raises:
        SourceError: If there are no pictures, or a column to keep does not exist.
        OptionError: If a column is chosen that such a source does not have.
    """
    refuse_columns(options, "pictures in folders")
    schema = pa.schema([pa.field("path", pa.string()), pa.field("label", pa.int32()), pa.field(key_column, pa.string())])
    require_columns(str(root), schema.names, options.keep_columns)
    listing = _list(root, classes)
    if not listing.pictures:
        raise SourceError(f"{root}: no pictures in its {len(classes)} class folders ({', '.join(PICTURES)}).")
    validation = root.with_name("val")
    return OpenSource(
        # The pictures themselves are not read here: the listing is what the graph depends on.
        files=(SourceFile(name=root.name, bytes=listing.bytes, digest=listing.hasher.hexdigest()),),
        read=lambda: _read(root, classes, schema),
        keep_schema=schema,
        class_names=True,
        definitions=definitions,
        class_column=key_column,
        images=Images(
            kind="imagefolder",
            path=place_of(root, graph_dir),
            val=place_of(validation, graph_dir) if root.name == "train" and validation.is_dir() else None,
        ),
        counts={
            name: count
            for name, count in (("hidden_files", listing.left_out.hidden), ("files_not_pictures", listing.left_out.other))
            if count
        },
    )


def refuse_columns(options: SourceOptions, what: str) -> None:
    """Refuse column options for sources without columns.

    Raises:
        OptionError: If one is given.
    """
    refuse_headerless(options, what)
    for option, value in (("--caption-column", options.caption_column), ("--id-column", options.id_column)):
        if value is not None:
            raise OptionError(f"{option} {value}: {what} have no columns to choose from. Leave it out.")


def _list(root: Path, classes: Sequence[FolderClass]) -> _Listing:
    listing = _Listing()
    for one in classes:
        for path in walk_pictures(root, one.folder, listing.left_out):
            line = f"{path}\t{one.label}\n".encode()
            listing.hasher.update(line)
            listing.bytes += len(line)
            listing.pictures += 1
    return listing


def _read(root: Path, classes: Sequence[FolderClass], schema: pa.Schema) -> Iterator[CaptionBatch]:
    for one in classes:
        paths: list[str] = []
        first_row = 0
        for path in walk_pictures(root, one.folder):
            paths.append(path)
            if len(paths) == BATCH_ROWS:
                yield _batch(one, first_row, paths, schema)
                first_row += len(paths)
                paths = []
        if paths:
            yield _batch(one, first_row, paths, schema)


def _batch(one: FolderClass, first_row: int, paths: list[str], schema: pa.Schema) -> CaptionBatch:
    kept = pa.table([paths, [one.label] * len(paths), [one.folder] * len(paths)], schema=schema)
    return CaptionBatch(file=one.folder, first_row=first_row, sample_ids=paths, captions=[[one.name] for _ in paths], kept=kept)


SOURCE = ImageFolderSource()
