"""Plain webdataset shards: KEY.jpg or another picture with KEY.txt, KEY.json or KEY.cls; no fields of img2dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphbuild.datasets.base import BrokenRows, CaptionBatch, OpenSource, SourceInfo, SourceOptions, refuse_headerless
from graphbuild.datasets.formats.files import File, describe_files, find_files
from graphbuild.datasets.formats.img2dataset import shards_of
from graphbuild.datasets.formats.tar import TarColumns, TarCounts, read_shard, settle_columns
from graphbuild.system.inputs import SHARDS


class WebDatasetSource:
    """The source of webdataset shards, whoever wrote them."""

    info = SourceInfo(
        name="webdataset",
        what="Webdataset shards: the caption is KEY.txt, or a key of KEY.json (--caption-column), text or a list of texts. Ids are "
        "those in the JSON (--id-column; default: sample_id or url), else shard and key.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: .tar files, a folder, a glob, braces as in {000..127}.tar, or a URL",
        named_by_source=True,
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the shards are there."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Look into the first samples.

        Raises:
            SourceError: If there are no shards, or no sample has a column that is asked for.
        """
        refuse_headerless(options, self.info.name)
        found = find_files(options.sources, dataset=self.info.name, suffixes=SHARDS)
        columns = settle_columns(
            found.files,
            caption=options.caption_column,
            sample_id=options.id_column,
            kept=options.keep_columns,
            fallback=None,
            skip_broken=options.skip_broken,
        )
        counts, facts = dict[str, int](), dict[str, Any]()
        broken = BrokenRows(counts, facts) if options.skip_broken else None
        return OpenSource(
            files=describe_files(found.files),
            read=lambda: _read(found.files, columns, counts, found.hidden, broken),
            caption_column=options.caption_column,
            id_column=options.id_column,
            keep_schema=columns.schema,
            counts=counts,
            facts=facts,
            images=shards_of(options, graph_dir),
        )


def _read(
    files: list[File], columns: TarColumns, counts: dict[str, int], hidden: int, broken: BrokenRows | None
) -> Iterator[CaptionBatch]:
    left_out = TarCounts(hidden=hidden)
    if broken is not None:
        broken.begin()
    for file in files:
        yield from read_shard(file, columns, left_out, broken)
    counts.update({"failed_downloads": left_out.failed, "hidden_files": left_out.hidden})


SOURCE = WebDatasetSource()
