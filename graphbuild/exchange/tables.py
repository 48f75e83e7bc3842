"""Reading the tables that users give: Parquet, CSV, TSV or JSON lines, told by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.errors import SourceError, one_line
from graphbuild.store import schemas
from graphbuild.store.frames import DST, SRC
from graphbuild.system.decoding import NotText, read_text
from graphbuild.system.inputs import PARQUET, suffix_of

if TYPE_CHECKING:
    import polars as pl


ID = "id"
NAMED = 3
"""Examples that a message names."""


def read_frame(path: Path, wanted: tuple[str, ...], *, text: tuple[str, ...] = ()) -> pl.DataFrame:
    """Read a Parquet, CSV, TSV or JSON lines file.

    Args:
        path: The file, whose name tells its form.
        wanted: Columns that it must have, without an empty place.
        text: Columns that are text, whatever they look like.

    Raises:
        SourceError: If it cannot be read, or a column is missing or has an empty place.
    """
    import polars as pl

    # As they stand: an id such as 007 is no number, and 1e3 may be a text.
    names = dict.fromkeys((ID, schemas.TEXT, SRC, DST, schemas.SAMPLE_ID, *text), pl.String)
    try:
        kind = suffix_of(path.name)
        if kind in (".csv", ".tsv"):
            form: dict[str, Any] = {"separator": "\t", "quote_char": None} if kind == ".tsv" else {}
            frame = pl.read_csv(read_text(path), schema_overrides=names, infer_schema_length=None, **form)
        elif kind == ".jsonl":
            frame = pl.read_ndjson(read_text(path), infer_schema_length=None)
        elif kind in PARQUET:
            frame = pl.read_parquet(path, glob=False)
        else:
            raise SourceError(f"{path}: the name does not tell the form. Call it .parquet, .csv, .tsv or .jsonl.")
    except (pl.exceptions.PolarsError, OSError, NotText) as error:
        raise SourceError(f"{path}: cannot be read ({one_line(str(error).split(chr(10), 1)[0])}).") from error
    for name in wanted:
        if name not in frame.columns:
            raise SourceError(f"{path}: no column {name!r}; the columns are: {', '.join(frame.columns)}.")
        if nulls := frame[name].null_count():
            raise SourceError(f"{path}: column {name!r} is empty in {nulls:,} rows. Fill them in, or leave those rows out.")
    return frame


def require_known(path: Path, named: pl.Series, found: pl.Series) -> None:
    """Check that all ids were found.

    Args:
        path: The file that names them.
        named: The ids.
        found: The text of each; null where there is none.

    Raises:
        SourceError: If the text of an id is not there; a few are named.
    """
    if unknown := found.null_count():
        shown = ", ".join(repr(value) for value in named.filter(found.is_null()).unique(maintain_order=True).head(NAMED).to_list())
        raise SourceError(f"{path}: {unknown:,} rows name ids that the texts do not have ({shown}).")
