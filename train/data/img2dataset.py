"""Images in the folders of files that img2dataset writes: `00000/000000000.jpg` beside `00000.parquet`, which has their URLs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.errors import SourceError
from graphbuild.system.archives import URL, download_failed
from graphbuild.system.inputs import PICTURES, is_hidden, suffix_of
from train.data.base import Encoded
from train.data.label_columns import LabelColumns
from train.data.parquet import open_parquet

_COLUMNS = ("key", "status")


def holds_crawled_files(root: Path, sidecars: Sequence[Path]) -> bool:
    """Return whether these Parquet files are img2dataset's, with a folder of pictures beside them."""
    if not root.is_dir() or not sidecars[0].with_suffix("").is_dir():
        return False
    try:
        return set(_COLUMNS) <= set(pq.read_schema(sidecars[0]).names)
    except (pa.ArrowException, OSError):
        # What is wrong with it is told by whoever reads it.
        return False


class CrawledFiles(LabelColumns):
    """Pictures that img2dataset downloaded, in the order of its tables."""

    def __init__(self, root: Path, sidecars: Sequence[Path], *, id_column: str | None = None) -> None:
        """Read the tables, and list the folders.

        Args:
            root: The output folder.
            sidecars: Its tables.
            id_column: Column of the sample ids; None: the URL.

        Raises:
            SourceError: If a table is damaged or lacks the column, or there is no picture.
        """
        self.name = str(root)
        self.id_column = id_column or URL
        self._tables: list[pa.Table] = []
        self._paths: list[Path] = []
        failed, missing = 0, 0
        for sidecar in sidecars:
            table = _read(sidecar, self.id_column)
            pictures = {Path(name).stem: sidecar.with_suffix("") / name for name in _pictures(sidecar.with_suffix(""))}
            found = [
                None if download_failed(status) or status is None else pictures.get(str(key))
                for key, status in zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
            ]
            succeeded = sum(status is not None and not download_failed(status) for status in table["status"].to_pylist())
            failed += table.num_rows - succeeded
            missing += succeeded - sum(path is not None for path in found)
            self._tables.append(table.filter(pa.array([path is not None for path in found])))
            self._paths += [path for path in found if path is not None]
        self._table = pa.concat_tables(self._tables, promote_options="permissive")
        self._schema = self._table.schema
        if not self._paths:
            raise SourceError(f"{root}: holds no picture that its tables name. Check --data.")
        self.sample_ids: Sequence[str] = [str(value) for value in self._table[self.id_column].to_pylist()]
        self.skipped = {"samples that were not downloaded": failed, "samples without an image": missing}
        """What was left out."""

    def __len__(self) -> int:
        return len(self._paths)

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the bytes of some files; None where one went away."""
        return [self._paths[index].read_bytes() if self._paths[index].is_file() else None for index in indices]

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of the tables."""
        rows: list[dict[str, Any]] = self._table.take(pa.array(indices, pa.int64())).to_pylist()
        return rows

    def _column(self, name: str) -> list[object]:
        values: list[object] = self._table[name].to_pylist()
        return values


def _read(path: Path, id_column: str) -> pa.Table:
    with open_parquet(path) as opened:
        table = opened.read()
    for name in (*_COLUMNS, id_column):
        if name not in table.column_names:
            raise SourceError(f"{path}: no column {name!r}; the columns are: {', '.join(table.column_names)}.")
    return table


def _pictures(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        for entry in os.scandir(folder):
            if suffix_of(entry.name) in PICTURES and not is_hidden(entry.name):
                yield entry.name
