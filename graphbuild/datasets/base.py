"""What every data source offers: options in, batches of samples with their captions out.

A source is a module of this package with one constant, `SOURCE`. `prepare` may write pictures into the graph
directory; `open` looks at the files, checks the options and reads nothing but headers; the `read` that it returns
streams, in bounded memory. Captions are handed on as they stand: the text policy is applied later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.images import Images

CLASS_COLUMNS = ("wnid", "label", "class")
"""Columns that tell classes apart where captions are class names, best first."""
BATCH_ROWS = 8_192
"""Samples a batch."""
BATCH_BYTES = 1 << 25
"""Text a batch, beyond which it has fewer samples; both bound the memory of reading."""
USUAL_CAPTION_COLUMNS = (
    "caption",
    "captions",
    "text",
    "texts",
    "sentence",
    "sentences",
    "title",
    "class_name",
    "label_name",
    "name",
)
"""Looked for, in this order of search but never of preference, where no --caption-column is given."""

_SHOWN = 500
_LISTED = 100

Captions = list[str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """How a data set is described to users."""

    name: str
    what: str
    size: str
    licence: str
    origin: str
    named_by_source: bool = False
    """It stands for any data of a format, so that a graph is called after its source and not after it."""
    by_wnid: bool = False
    """It has classes that WordNet tells by their wnids, for --definitions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What the user said about the data set."""

    sources: tuple[str, ...] = ()
    """Files, folders or globs, as given."""
    caption_column: str | None = None
    """None: the only usual name among the columns."""
    id_column: str | None = None
    """None: the source's own ids, or `<file>:<row>`."""
    keep_columns: tuple[str, ...] = ()
    """Copied into samples."""
    definitions: str | None = None
    """WordNet's `data.noun`, or its folder: classes found by wnid are told as `NAME: DEFINITION`."""
    columns: tuple[str, ...] = ()
    """Names of the columns of files that have no header."""
    skip_broken: bool = False
    """Rows that cannot be read are counted and listed, and are no error."""
    vector_column: str | None = None
    """Of files of vectors; None: the only one."""


@dataclass(frozen=True, slots=True)
class CaptionBatch:
    """Some samples of one file."""

    file: str
    """As in `OpenSource.files`."""
    first_row: int
    """Row of the first sample in its file, counted from 0."""
    sample_ids: list[str]
    captions: list[Captions]
    """For each sample its captions, as they stand in the source: None where there is none."""
    kept: pa.Table
    """The kept columns, one row a sample; without columns where none is kept."""
    invalid_rows: tuple[int, ...] = ()
    """Rows (in the file) that held invalid UTF-8, repaired with U+FFFD."""
    file_rows: tuple[int, ...] | None = None
    """Row of each sample in its file, where they are not consecutive."""

    def place(self, row: int) -> str:
        """Return where a sample of this batch stands: its file and its row there."""
        return f"{self.file}:{self.row_in_file(row)}"

    def row_in_file(self, row: int) -> int:
        """Return the row in the file of a sample of this batch."""
        return self.first_row + row if self.file_rows is None else self.file_rows[row]

    def take(self, rows: Sequence[int]) -> CaptionBatch:
        """Return some samples of this batch, which stand where they stood."""
        places = tuple(map(self.row_in_file, rows))
        present = frozenset(places)
        return replace(
            self,
            first_row=places[0] if places else self.first_row,
            sample_ids=[self.sample_ids[row] for row in rows],
            captions=[self.captions[row] for row in rows],
            kept=self.kept.take(pa.array(rows, pa.int64())) if self.kept.num_columns else nothing_kept(len(rows)),
            invalid_rows=tuple(row for row in self.invalid_rows if row in present),
            file_rows=places,
        )

    def captions_with(self, part: str) -> int:
        """Count the captions that hold a string."""
        return sum(part in caption for captions in self.captions for caption in captions if caption)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One input file, for the manifest."""

    name: str
    bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenSource:
    """A data set that was found and whose options fit."""

    files: tuple[SourceFile, ...]
    read: Callable[[], Iterator[CaptionBatch]]
    """Streams the samples, the same ones in the same order at every call."""
    caption_column: str | None = None
    """As resolved; recorded."""
    id_column: str | None = None
    """As resolved; None where ids are the source's own."""
    keep_schema: pa.Schema
    """Names and types of the kept columns."""
    class_names: bool = False
    """Captions are texts of classes: names go through the default template unless others are given."""
    definitions: SourceFile | None = None
    """The file that the definitions in these texts are from; None: they are bare names."""
    class_column: str | None = None
    """The kept column that tells classes apart: two classes of one name are found by it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was found while looking at the files."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of what `read` left out; for the manifest, once it was read."""
    repeated_ids: bool = False
    """Rows of one sample id are captions of one sample, as --multi-caption says for other sources."""
    replacements: tuple[str, ...] = ()
    """`OLD=NEW`, for placeholders that the publisher put into the captions; what the user says about OLD goes first."""
    images: Images | None = None
    """Where the pictures are, for `train run`."""

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each file, by its name."""
        return {file.name: file.digest for file in self.files}

    def columns(self) -> dict[str, Any]:
        """Return the columns that are read, as the manifest records them."""
        return {"caption_column": self.caption_column, "id_column": self.id_column, "keep_columns": self.keep_schema.names}


class BrokenRows:
    """Counts and lists the rows that --skip-broken leaves out."""

    def __init__(self, counts: dict[str, int], facts: dict[str, Any]) -> None:
        """Count and list in the dictionaries of an `OpenSource`."""
        self._counts, self._facts = counts, facts

    def begin(self) -> None:
        """Forget what was met: called before each reading."""
        self._counts["broken_rows"], self._facts["broken_rows"] = 0, []

    def add(self, why: str, *, rows: int = 1) -> None:
        """Leave out a row, or several for one reason."""
        self._counts["broken_rows"] += rows
        if len(self._facts["broken_rows"]) < _LISTED:
            self._facts["broken_rows"].append(why)


class Source(Protocol):
    """One kind of data set."""

    info: SourceInfo

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write what the graph directory must hold before reading (drawn pictures); most sources write nothing."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Find the files and check the options.

        Raises:
            SourceError: If a file, folder or column is missing, or there is nothing in it.
            OptionError: If an option does not apply to this source.
        """


def choose_caption_column(where: str, columns: list[str], wanted: str | None) -> str:
    """Return the caption column: the one asked for, else the only usual name there is.

    Raises:
        SourceError: Listing the columns that exist.
    """
    if wanted is not None:
        require_columns(where, columns, (wanted,))
        return wanted
    usual = [name for name in columns if name.lower() in USUAL_CAPTION_COLUMNS]
    if len(usual) == 1:
        return usual[0]
    why = f"several columns may hold the captions ({show_names(usual)})" if usual else "no column has a usual caption name"
    raise SourceError(f"{where}: {why}. Choose one with --caption-column; the columns are: {show_names(columns)}.")


def require_columns(where: str, columns: list[str], wanted: tuple[str, ...]) -> None:
    """Check that columns exist, once each.

    Raises:
        SourceError: Naming the missing one and those that exist.
    """
    for name in wanted:
        if name not in columns:
            raise SourceError(f"{where}: no column {name!r}; the columns are: {show_names(columns)}.")
        if columns.count(name) > 1:
            raise SourceError(f"{where}: there are {columns.count(name)} columns called {name!r}. Rename all but one.")


def show_names(names: list[str]) -> str:
    """Return names of a file's columns, for messages: as they stand where they can be printed, and shortened."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + " ..."


def refuse_headerless(options: SourceOptions, dataset: str) -> None:
    """Refuse --columns for sources whose columns have names.

    Raises:
        OptionError: If it is given.
    """
    if options.columns:
        raise OptionError(f"--columns names the columns of csv and tsv files without a header; {dataset} has names. Leave it out.")


def nothing_kept(rows: int) -> pa.Table:
    """Return a table of no columns and so many rows."""
    return pa.table({"_": pa.nulls(rows)}).drop_columns(["_"])
