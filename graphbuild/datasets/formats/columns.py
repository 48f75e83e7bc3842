"""Columns of Arrow tables as captions, ids and kept values, whatever of the many types of text they have.

One schema stands for all files of a source: types are unified, and what does not fit is an error that names the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from graphbuild.datasets.base import Captions, nothing_kept
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.jsonl import TEXT_FIELDS
from graphbuild.errors import SourceError, one_line
from graphbuild.system.decoding import mend


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is one of text; a column of type null holds no text, but could."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in tests)


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is one of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def holds_captions(kind: pa.DataType) -> bool:
    """Return whether a column of a type can be captions: text, structs with a text, or lists of them."""
    kind = kind.value_type if is_list(kind) else kind
    return is_text(kind) or _text_field(kind) is not None


def _text_field(kind: pa.DataType) -> str | None:
    names = {field.name for field in kind if is_text(field.type)} if pa.types.is_struct(kind) else set()
    return next((name for name in TEXT_FIELDS if name in names), None)


def captions_of(column: pa.ChunkedArray) -> tuple[list[Captions], list[int]]:
    """Return captions of each row, and the rows that held invalid UTF-8."""
    captions: list[Captions] = []
    invalid: list[int] = []
    for chunk in column.chunks:
        texts, broken = _texts(chunk.flatten() if is_list(chunk.type) else chunk)
        counts = pc.list_value_length(chunk).to_pylist() if is_list(chunk.type) else [1] * len(chunk)
        at = 0
        for count in counts:
            if broken and any(place in broken for place in range(at, at + (count or 0))):
                invalid.append(len(captions))
            captions.append([None] if count is None else texts[at : at + count])
            at += count or 0
    return captions, invalid


def _texts(array: pa.Array) -> tuple[list[str | None], set[int]]:
    """Text of each value, and the places of those that held invalid UTF-8."""
    if pa.types.is_null(array.type):
        return [None] * len(array), set()
    if (name := _text_field(array.type)) is not None:
        return _texts(pc.struct_field(array, name))
    if pa.types.is_dictionary(array.type):
        # Each distinct text is made once: a short file may repeat a long one ten thousand times.
        words, odd = _texts(array.dictionary)
        codes = array.indices.to_pylist()
        return [None if code is None else words[code] for code in codes], {at for at, code in enumerate(codes) if code in odd}
    try:
        return array.to_pylist(), set()
    except UnicodeDecodeError:
        raw = array.cast(pa.string() if pa.types.is_string_view(array.type) else array.type, safe=False)
        pairs = [
            mend(value) for value in raw.cast(pa.large_binary() if pa.types.is_large_string(raw.type) else pa.binary()).to_pylist()
        ]
        return [text for text, _ in pairs], {at for at, (_, broken) in enumerate(pairs) if broken}


def ids_of(column: pa.ChunkedArray, name: str, where: str, first_row: int) -> list[str]:
    """Return sample ids as text.

    Raises:
        SourceError: If a row has none, or it is no UTF-8.
    """
    try:
        values = column.to_pylist()
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: column {name!r} holds invalid UTF-8 after row {first_row:,} ({error.reason}).") from None
    if None in values:
        row = first_row + values.index(None)
        raise SourceError(f"{where}: row {row:,} has no id in column {name!r}. Fill it, or leave --id-column out.")
    return [str(value) for value in values]


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type as which a kept column is stored: dictionaries as their values, views as what they view."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list_view(kind) or pa.types.is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    return kind


def unify(schemas: Mapping[File, pa.Schema], names: Sequence[str]) -> pa.Schema:
    """Return one schema of some columns for all files: the widest type that each has.

    Raises:
        SourceError: If two types have none in common; both files are named.
    """
    fields = []
    for name in names:
        first: tuple[File, pa.DataType] | None = None
        kind = pa.null()
        for file, schema in schemas.items():
            found = plain_type(schema.field(name).type)
            try:
                kind = (
                    pa.unify_schemas([pa.schema([(name, kind)]), pa.schema([(name, found)])], promote_options="permissive")
                    .field(name)
                    .type
                )
            except pa.ArrowException:
                where = f"{found} in {file}, but {kind} in {first[0] if first else 'others'}"
                raise SourceError(f"column {name!r} holds {where}. Convert it, or leave it out of --keep-columns.") from None
            if first is None and not pa.types.is_null(found):
                first = (file, found)
        # A column without any value could be of any type; one of text is stored by everything.
        fields.append(pa.field(name, pa.string() if pa.types.is_null(kind) else kind))
    return pa.schema(fields)


def kept_of(table: pa.Table, schema: pa.Schema, where: str, constant: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the kept columns of some rows, in the types of all files.

    Args:
        table: The rows.
        schema: Of the kept columns.
        where: The file, for messages.
        constant: Values that hold for all of its rows.

    Raises:
        SourceError: If a value does not fit its type.
    """
    if not schema.names:
        return nothing_kept(table.num_rows)
    columns = []
    for field in schema:
        if constant and field.name in constant:
            columns.append(pa.array([constant[field.name]] * table.num_rows, pa.string()).cast(field.type))
            continue
        column = table[field.name]
        try:
            if pa.types.is_dictionary(column.type):
                column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
            columns.append(column.cast(field.type))
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise SourceError(
                f"{where}: column {field.name!r} holds {column.type}, which does not fit {field.type}, the type of all files "
                f"({one_line(str(error))[:200]}). Convert it, or leave it out of --keep-columns."
            ) from None
    return pa.table(columns, schema=schema)
