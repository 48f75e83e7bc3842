"""Images in the Arrow streams that `datasets` saves: bytes in a binary column, or in its `{bytes, path}` struct.

The files are mapped, so that the page cache holds what is read, and nothing is copied but the images asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from graphbuild.errors import SourceError
from graphbuild.system.hub import map_stream
from graphbuild.system.inputs import file_names
from train.data.base import Encoded
from train.data.label_columns import LabelColumns
from train.data.parquet import choose_image_column


class StreamImages(LabelColumns):
    """Images of one or more Arrow streams, in the order of the files and their rows."""

    def __init__(self, paths: Sequence[Path], *, image_column: str | None = None, id_column: str | None = None) -> None:
        """Map the files, and read the ids.

        Raises:
            SourceError: If a file is damaged, files differ in their columns, a column does not exist, or there are no rows.
        """
        self.name = str(paths[0].parent)
        tables = [map_stream(path) for path in paths]
        for path, table in zip(paths, tables, strict=True):
            if not table.schema.equals(tables[0].schema):
                raise SourceError(f"{path}: has other columns than {paths[0]}. They belong to different data sets.")
        self._table = pa.concat_tables(tables)
        self._schema = self._table.schema
        if not self._table.num_rows:
            raise SourceError(f"{self.name}: holds no rows. Check --data.")
        self.image_column = choose_image_column(self.name, self._schema, image_column)
        self.id_column = id_column
        if id_column is not None and id_column not in self._table.column_names:
            raise SourceError(f"{self.name}: no column {id_column!r}; the columns are: {', '.join(self._table.column_names)}.")
        counts, names = [table.num_rows for table in tables], file_names([str(path.absolute()) for path in paths])
        self.sample_ids: Sequence[str] = (
            [f"{name}:{row}" for name, count in zip(names, counts, strict=True) for row in range(count)]
            if id_column is None
            else [str(value) for value in self._column(id_column)]
        )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def _column(self, name: str) -> list[object]:
        values: list[object] = self._table[name].to_pylist()
        return values

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the stored bytes of some images; None where a cell is null."""
        cells = (self._table[self.image_column][int(index)].as_py() for index in indices)
        return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the columns of integers, strings or booleans."""
        rows: list[dict[str, Any]] = self._table.select(list(self.label_columns())).take(pa.array(indices, pa.int64())).to_pylist()
        return rows
