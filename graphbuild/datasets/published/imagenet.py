"""ImageNet-1k: its 1,000 class prompts, built in; with --source, the pictures of wnid folders mapped onto them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pyarrow as pa

from graphbuild.datasets.base import CaptionBatch, OpenSource, SourceFile, SourceInfo, SourceOptions, require_columns
from graphbuild.datasets.formats.imagefolder import FolderClass, class_folders, one_folder, open_folder, refuse_columns
from graphbuild.datasets.wordnet import read_nouns
from graphbuild.errors import SourceError
from graphbuild.store.digests import digest_json

_CLASSES_FILE = "imagenet_classes.tsv"
_SCHEMA = pa.schema([pa.field("label", pa.int32()), pa.field("wnid", pa.string())])


def read_classes() -> list[FolderClass]:
    """Return the 1,000 classes in their usual order: wnid as the folder, one plain name each."""
    lines = files("graphbuild.datasets.published").joinpath(_CLASSES_FILE).read_text(encoding="utf-8").splitlines()
    fields = [line.split("\t") for line in lines[1:]]
    return [FolderClass(folder=wnid, name=name, label=int(index)) for index, wnid, name in fields]


class ImageNetSource:
    """Class prompts, and pictures where there are any."""

    info = SourceInfo(
        name="imagenet",
        what="The 1,000 class prompts of ImageNet-1k, 'a photo of a {}' by default; one sample a class, its id the wnid. "
        "With --source, wnid folders of pictures are mapped onto them, and ids are paths such as n01440764/x.JPEG. "
        "With --definitions, each text is 'NAME: DEFINITION' by your copy of WordNet 3.0.",
        size="1,000 texts; 1,281,167 pictures in the train split, which are not included",
        licence="class names are facts; the pictures: non-commercial research, see image-net.org",
        origin="built in; --source: your folder of wnid folders",
        by_wnid=True,
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the class names are part of the program."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Return the prompts alone, or the pictures of a folder.

        Raises:
            SourceError: If a folder is not named by a wnid of ImageNet-1k, or a definition is not found.
        """
        classes = read_classes()
        if not options.sources:
            return _open_prompts(*_define(classes, options), options)
        root = one_folder(options, "imagenet")
        folders = set(class_folders(root))
        if unknown := sorted(folders - {one.folder for one in classes}):
            raise SourceError(
                f"{root / unknown[0]}: {unknown[0]!r} is no wnid of ImageNet-1k (such as n01440764). "
                "Use --dataset imagefolder for other class folders."
            )
        present, definitions = _define([one for one in classes if one.folder in folders], options)
        return open_folder(root, present, options, graph_dir, key_column="wnid", definitions=definitions)


def _define(classes: list[FolderClass], options: SourceOptions) -> tuple[list[FolderClass], SourceFile | None]:
    """Names with their definitions, and the file of these, if the user gave one."""
    if options.definitions is None:
        return classes, None
    nouns = read_nouns(options.definitions, [one.folder for one in classes])
    return [replace(one, name=nouns.describe(one.folder, one.name)) for one in classes], nouns.file


def _open_prompts(classes: list[FolderClass], definitions: SourceFile | None, options: SourceOptions) -> OpenSource:
    refuse_columns(options, "class prompts")
    require_columns("imagenet", _SCHEMA.names, options.keep_columns)
    digest = digest_json([[one.label, one.folder, one.name] for one in classes])
    return OpenSource(
        files=(SourceFile(name=_CLASSES_FILE, bytes=sum(len(one.name) for one in classes), digest=digest),),
        read=lambda: _read_prompts(classes),
        keep_schema=_SCHEMA,
        class_names=True,
        definitions=definitions,
        class_column="wnid",
    )


def _read_prompts(classes: list[FolderClass]) -> Iterator[CaptionBatch]:
    wnids = [one.folder for one in classes]
    yield CaptionBatch(
        file=_CLASSES_FILE,
        first_row=0,
        sample_ids=wnids,
        captions=[[one.name] for one in classes],
        kept=pa.table([[one.label for one in classes], wnids], schema=_SCHEMA),
    )


SOURCE = ImageNetSource()
