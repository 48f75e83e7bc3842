"""Sample ids of a file: text, one a line; a column of CSV or TSV; or one of Parquet, whose column `keep` may choose the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from graphbuild.errors import SourceError
from graphbuild.store import schemas
from graphbuild.system.decoding import NotText, read_text
from graphbuild.system.inputs import PARQUET, suffix_of

_ID_COLUMNS = (schemas.SAMPLE_ID, "url", "id")


def read_ids(path: Path, column: str | None) -> pa.Array:
    """Return the sample ids of a file, as strings, repeated ones included.

    Args:
        path: The file, whose name tells its form.
        column: Of a CSV or Parquet file; None: sample_id, url or id, or the only column.

    Raises:
        SourceError: If the file cannot be read, or it is not clear which column holds the ids.
    """
    try:
        if suffix_of(path.name) in PARQUET:
            schema = pq.read_schema(path)
            # A curation lists every sample, with its decision.
            chooses = schemas.KEEP in schema.names and pa.types.is_boolean(schema.field(schemas.KEEP).type)
            table = pq.read_table(
                path, columns=[_id_column(path, schema.names, column)], filters=pc.field(schemas.KEEP) if chooses else None
            )
        elif suffix_of(path.name) in (".csv", ".tsv"):
            data = pa.py_buffer(read_text(path))
            header = pyarrow.csv.open_csv(pa.BufferReader(data), parse_options=_delimiter(path)).schema.names
            name = _id_column(path, header, column)
            # As text: an id such as 0012 is not a number, and NA is not a missing one.
            convert = pyarrow.csv.ConvertOptions(
                include_columns=[name], column_types={name: pa.string()}, strings_can_be_null=False
            )
            table = pyarrow.csv.read_csv(pa.BufferReader(data), parse_options=_delimiter(path), convert_options=convert)
        else:
            lines = read_text(path).decode("utf-8").splitlines()
            return pa.array([line for line in lines if line], pa.string())
        return table.column(0).cast(pa.string()).combine_chunks().drop_null()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: holds invalid UTF-8 ({error.reason} at byte {error.start:,}). Give text, CSV or Parquet."
        ) from None
    except (pa.ArrowException, FileNotFoundError, NotText) as error:
        raise SourceError(
            f"{path}: sample ids cannot be read ({error}). Give one id a line, CSV with a header, or Parquet."
        ) from error


def _delimiter(path: Path) -> pyarrow.csv.ParseOptions:
    return pyarrow.csv.ParseOptions(delimiter="\t" if suffix_of(path.name) == ".tsv" else ",")


def _id_column(path: Path, names: Sequence[str], wanted: str | None) -> str:
    found = [wanted] if wanted is not None else [name for name in _ID_COLUMNS if name in names][:1] or list(names)
    if len(found) != 1 or found[0] not in names:
        raise SourceError(f"{path}: which column holds the sample ids? Choose one with --id-column; there are: {', '.join(names)}.")
    return found[0]
