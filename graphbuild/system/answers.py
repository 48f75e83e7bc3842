"""Answers in the form that was asked for: tables for people; CSV, JSON or Parquet for programs.

Importing this loads nothing; each function loads what it needs.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from graphbuild.errors import OptionError, one_line, visible

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

Form = Literal["table", "csv", "json", "parquet"]
FORMS: tuple[Form, ...] = ("table", "csv", "json", "parquet")
WIDTH = 120
_LONGEST_VALUE = 200


class Answer:
    """Base of the dataclasses that commands answer with; most have a `summary()` for people, too."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the same for scripts: the fields, as JSON has them."""
        fields: Any = self
        return {name: _as_json(value) for name, value in asdict(fields).items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def table(columns: tuple[str, ...], *, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines; columns in `right` are flush right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left")
    return made


def pair_table(pairs: Mapping[str, Any]) -> Table:
    """Return names and values, without those that are empty."""
    made = table(("", "value"))
    made.show_header = False
    for key, value in pairs.items():
        if value not in (None, "", [], {}):
            made.add_row(plain(key.replace("_", " ")), plain(show(value)))
    return made


def render(head: str, tables: Mapping[str, Table]) -> str:
    """Return a heading, and each table that has rows under its title."""
    from rich.console import Console

    output = io.StringIO()
    console = Console(file=output, width=WIDTH, highlight=False)
    console.print(head, soft_wrap=True, markup=False)
    for title, made in tables.items():
        if made.row_count:
            console.print(f"\n{title}", markup=False)
            console.print(made)
    return output.getvalue().rstrip()


def plain(text: str) -> str:
    """Return text that a rich table shows as it is: captions hold square brackets, too."""
    from rich.markup import escape

    return escape(text)


def show(value: Any) -> str:
    """Return a value in a table, cut if it is long."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | tuple) else str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def next_steps(*commands: str, graph_dir: Path | None = None) -> str:
    """Return the line that ends an answer: what a user would do next, to be pasted into a shell.

    Args:
        commands: One or more; words that a user has to put in stand in capitals.
        graph_dir: Added to each as its --graph-dir.
    """
    end = "" if graph_dir is None else f" --graph-dir {quoted(graph_dir)}"
    return "next: " + " | ".join(command + end for command in commands)


def quoted(path: Path) -> str:
    """Return a path as one word of a shell's command."""
    return shlex.quote(str(path))


def encode(frame: pl.DataFrame, form: Form) -> bytes:
    """Return a frame as CSV, a JSON list of rows, or Parquet.

    Raises:
        OptionError: If a column cannot be written so, such as a list in CSV.
    """
    import polars as pl

    if form == "json":
        return json.dumps(frame.to_dicts(), ensure_ascii=False, default=str).encode()
    buffer = io.BytesIO()
    try:
        if form == "csv":
            frame.write_csv(buffer)
        else:
            frame.write_parquet(buffer)
    except pl.exceptions.PolarsError as error:
        reason = one_line(str(error).split("\n", 1)[0])
        raise OptionError(f"--format {form}: {reason}. Leave the column out of the query, or choose --format parquet.") from error
    return buffer.getvalue()


def answer(result: Any, as_json: bool) -> None:
    """Print a result: its `summary()` for people, its `to_json()` for scripts; control characters as escapes in both."""
    # In JSON the escapes are the characters themselves, to whoever parses it.
    click.echo(visible(json.dumps(result.to_json(), ensure_ascii=False) if as_json else result.summary()))


def print_bytes(data: bytes, form: Form) -> None:
    """Print an encoded answer: Parquet only where it is redirected, CSV byte for byte unless a terminal shows it.

    Raises:
        OptionError: If Parquet would go to a terminal.
    """
    shown = sys.stdout.isatty()
    if form == "parquet":
        if shown:
            raise OptionError("--format parquet is binary. Send it to a file: add `> answer.parquet`.")
        sys.stdout.buffer.write(data)
        return
    if shown or form != "csv":
        data = visible(data.decode()).encode()
    sys.stdout.buffer.write(data.rstrip(b"\n") + b"\n")


def spell_seconds(seconds: float) -> str:
    """Return a duration for people: seconds, minutes, or hours."""
    if seconds < 120:
        return f"{seconds:,.0f} s" if seconds >= 1 else "a second"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
