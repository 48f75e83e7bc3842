"""SQL over the tables of a graph: one SELECT over texts, samples, edges and embeddings, and nothing else.

Polars also reads files and URLs by table functions, and knows DROP, DELETE and TRUNCATE. A query may come from somebody
else than the owner of the machine, so these are refused before Polars sees them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from graphbuild.errors import UserError, one_line
from graphbuild.quality.view import GraphView
from graphbuild.system.answers import WIDTH, Form, encode
from graphbuild.system.progress import progress

_TABLE_ROWS = 50
_BEFORE_THE_STATEMENT = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_WORD = re.compile(r"\w+")
_STATEMENTS = ("select", "with", "from")
_READER = re.compile(r"\b(?:read|scan)_\w+", re.IGNORECASE)


def run_sql(graph_dir: Path, sql: str, *, limit: int | None = None, form: Form = "table") -> bytes:
    """Run one SELECT over texts, samples, edges and embeddings.

    Args:
        graph_dir: The graph.
        sql: The query, in the SQL of Polars.
        limit: Rows to give at most; None: 50 in a table, all in the other forms.
        form: A table for people (UTF-8), CSV, a JSON list of rows, or Parquet.

    Raises:
        UserError: If the query cannot be run; it names the tables and their columns.
        ArtifactError: If a table's file is missing or damaged.
        OptionError: If the rows cannot be written in this form.
    """
    tables = GraphView(graph_dir).tables()
    listed = {name: made.collect_schema().names() for name, made in tables.items()}
    if problem := _not_allowed(sql, [column for columns in listed.values() for column in columns]):
        raise _error(problem, listed)
    most = limit if limit is not None else _TABLE_ROWS if form == "table" else None
    try:
        plan = pl.SQLContext(frames=tables, eager=False).execute(sql)
        with progress("query", None):
            frame = (plan if most is None else plan.limit(most + 1)).collect(engine="streaming")
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        # The first line says what; a plan of many lines follows it.
        raise _error(str(error).split("\n", 1)[0], listed) from error
    cut = most is not None and len(frame) > most
    frame = frame.head(most) if most is not None else frame
    if form != "table":
        return encode(frame, form)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=100, tbl_width_chars=WIDTH, tbl_hide_dataframe_shape=True):
        note = f"\nthe first {most:,} rows; raise --limit for more" if cut else f"\n{len(frame):,} rows"
        return f"{frame}{note}".encode()


def _not_allowed(sql: str, columns: Iterable[str]) -> str | None:
    """Say what is wrong with a query that is more than a SELECT over tables; None if nothing is.

    Names of readers are refused wherever they stand, strings included: whether a word lies in a string depends on quoting
    rules that two parsers may read differently, and a name of a column is never one of theirs.
    """
    word = _WORD.match(sql, _BEFORE_THE_STATEMENT.match(sql).end())  # type: ignore[union-attr]
    if word is None or word.group().lower() not in _STATEMENTS:
        return "only SELECT is allowed"
    known = set(columns)
    for found in _READER.findall(sql):
        if found not in known:
            return f"{found}: files and URLs are not read"
    return None


def _error(reason: str, tables: Mapping[str, list[str]]) -> UserError:
    listed = "; ".join(f"{name}({', '.join(columns)})" for name, columns in tables.items())
    return UserError(f"--sql: {one_line(reason)}. Tables: {listed}")
