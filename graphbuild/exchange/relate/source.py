"""Files of metadata read in blocks: Parquet, CSV, TSV or JSON lines; ids, kernel columns and kept columns, nothing else.

Shape letters: n rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from graphbuild.datasets.base import SourceFile, require_columns
from graphbuild.datasets.formats.columns import ids_of, kept_of, unify
from graphbuild.datasets.formats.files import File, describe_files, find_files
from graphbuild.datasets.formats.parquet import images_in
from graphbuild.datasets.formats.parquet_files import read_header, read_tables
from graphbuild.errors import SourceError
from graphbuild.exchange.tables import read_frame
from graphbuild.store.images import Images
from graphbuild.system.inputs import PARQUET

_TEXT_FILES = (".csv", ".tsv", ".jsonl")
_BLOCK = 8_192


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a file."""

    where: str
    first_row: int
    ids: list[str]
    table: pa.Table
    """Kernel columns and kept columns."""


class MetadataSource:
    """Files that have some columns."""

    def __init__(
        self, sources: tuple[str, ...], columns: Sequence[str], text: Sequence[str], id_column: str | None, graph_dir: Path
    ) -> None:
        """Look at all files; those that are not Parquet are read at once.

        Args:
            sources: Files, folders or globs.
            columns: Those that are read beside the ids.
            text: Of these, those that are text even where CSV holds nothing but digits.
            id_column: Of the sample ids; None: they are called by file and row.
            graph_dir: The graph that is made of them.

        Raises:
            OptionError: If no source is given.
            SourceError: If a file or column is missing, types do not go together, or there is no row.
        """
        found = find_files(sources, dataset="relate", suffixes=(*PARQUET, *_TEXT_FILES)).files
        self._id_column = id_column
        wanted = tuple(dict.fromkeys((*columns, *([id_column] if id_column else ()))))
        self._readers: dict[File, Callable[[], Iterator[pa.Table]]] = {}
        schemas: dict[File, pa.Schema] = {}
        self.images: Images | None = None
        for file in found:
            schema, self._readers[file] = _open(file, wanted, (*text, *([id_column] if id_column else ())))
            require_columns(str(file), schema.names, wanted)
            schemas[file] = schema
            self.images = images_in(schema, sources, id_column, graph_dir) if file.suffix in PARQUET else None
        self.schema = unify(schemas, columns)
        self.files: tuple[SourceFile, ...] = describe_files(found)

    def blocks(self) -> Iterator[Block]:
        """Read all rows in order, a block at a time.

        Raises:
            SourceError: If a file is damaged, or a row has no id.
        """
        for file, read in self._readers.items():
            first_row = 0
            for table in read():
                ids = [f"{file.name}:{row}" for row in range(first_row, first_row + table.num_rows)]
                if self._id_column is not None:
                    ids = ids_of(table[self._id_column], self._id_column, str(file), first_row)
                yield Block(str(file), first_row, ids, kept_of(table, self.schema, str(file)))
                first_row += table.num_rows


def _open(file: File, wanted: tuple[str, ...], text: tuple[str, ...]) -> tuple[pa.Schema, Callable[[], Iterator[pa.Table]]]:
    if file.suffix in PARQUET:
        header = read_header(file)
        return header.schema, lambda: (table for _, table in read_tables(file, header, wanted, wanted[0]))
    if not isinstance(file.place, Path):
        raise SourceError(f"{file}: {', '.join(_TEXT_FILES)} files are read whole, so they must lie on this machine. Copy it here.")
    frame = read_frame(file.place, (), text=text)
    held = frame.select([name for name in wanted if name in frame.columns]).to_arrow()
    slices = range(0, held.num_rows, _BLOCK)
    return frame.head(0).to_arrow().schema, lambda: (held.slice(start, _BLOCK) for start in slices)
