"""Hugging Face data: a data set of the hub by its name, or a folder of one, as `datasets` saves it or as Parquet files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from graphbuild.datasets.base import OpenSource, SourceInfo, SourceOptions, refuse_headerless
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.parquet import open_tables
from graphbuild.datasets.formats.parquet_files import picture_columns, read_header, read_stream_header
from graphbuild.errors import OptionError
from graphbuild.store.images import Images
from graphbuild.system.hub import Split, find_split
from graphbuild.system.inputs import file_names

NAME = "hf"


class HubSource:
    """One split of a Hugging Face data set."""

    info = SourceInfo(
        name=NAME,
        what="A data set of the Hugging Face hub (user/name:split, or user/name@revision:config/split), or a folder of one, as "
        "save_to_disk writes it or as Parquet files: captions, lists of captions, or ClassLabel columns; Image columns are "
        "the pictures.",
        size="any; read in batches, on the hub one split is downloaded",
        licence="that of the data set",
        origin="--source: user/name[:split], or FOLDER[:split]",
        named_by_source=True,
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the files are there, or are fetched into the cache of huggingface_hub."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Find the files of the split, and check their columns.

        Raises:
            SourceError: If there is no such data set, split or column, or it cannot be reached.
            OptionError: If not exactly one source is named.
        """
        refuse_headerless(options, NAME)
        if len(options.sources) != 1:
            raise OptionError(
                f"--dataset {NAME} takes one --source, user/name[:split] or a folder; {len(options.sources)} were given."
            )
        split = find_split(options.sources[0])
        names = file_names([str(path) for path in split.files])
        files = [File(path, name) for path, name in zip(split.files, names, strict=True)]
        headers = {file: read_stream_header(file) if split.streams else read_header(file) for file in files}
        facts = {"revision": split.revision} if split.revision else {}
        opened = open_tables(headers, options)
        opened.facts.update(facts)
        return replace(opened, images=_images(headers[files[0]].schema, split, options))


def _images(schema: pa.Schema, split: Split, options: SourceOptions) -> Images | None:
    columns = picture_columns(schema)
    if len(columns) != 1:
        return None
    label = "label" if "label" in schema.names else None
    return Images(kind="hf", path=split.place, image_column=columns[0], id_column=options.id_column, label_column=label)


SOURCE = HubSource()
