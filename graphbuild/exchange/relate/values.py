"""Values of metadata columns, as kernels take them: checked, one for each row, and able to be keys.

Shape letters: n rows of a table. Every error names the file, the row and the column.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from graphbuild.datasets.formats.columns import is_list, is_text
from graphbuild.embed.text.table import TextPolicy
from graphbuild.errors import SourceError
from graphbuild.exchange.relate.spec import KernelSpec

Values = list[Hashable]
_MICROSECONDS_A_DAY = 86_400e6
_LATITUDE, _LONGITUDE = ("lat", "latitude"), ("lon", "lng", "long", "longitude")


class _Place:
    """Where some rows stand, for messages."""

    def __init__(self, spec: KernelSpec, where: str, first_row: int) -> None:
        self._spec, self._where, self._first_row = spec, where, first_row

    def wrong(self, row: int, what: str) -> SourceError:
        return SourceError(f"{self._where}: row {self._first_row + row:,} of column {self._spec.name!r} {what}.")

    def holds(self, kind: pa.DataType, wanted: str) -> SourceError:
        return SourceError(
            f"{self._where}: column {self._spec.name!r} holds {kind}, not {wanted}, which {self._spec.kind!r} takes. "
            "Choose another --kernel for it."
        )


def values_of(table: pa.Table, spec: KernelSpec, where: str, first_row: int = 0) -> Values:
    """Return one value a row, which `graphbuild.exchange.relate.kernels` compares; rows of equal values are one text.

    Args:
        table: Some rows of a file.
        spec: Which columns, and as what.
        where: The file, for messages.
        first_row: Of the table in the file.

    Raises:
        SourceError: If a value is missing, empty, not finite, out of range, or of another kind.
    """
    place = _Place(spec, where, first_row)
    columns = [_plain(table[name]) for name in spec.columns]
    for column in columns:
        if column.null_count:
            raise place.wrong(pc.index(column.is_null(), True).as_py(), "is empty. Fill it in, or leave the row out")
    try:
        return _READ[spec.kind](columns, place)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{where}: column {spec.name!r} holds invalid UTF-8 after row {first_row:,} ({error.reason}). Mend it, or leave it out."
        ) from None


def shown(spec: KernelSpec, value: Any) -> str:
    """Return a value as the text of a graph shows it."""
    if spec.kind == "date":
        return str(np.datetime64(round(value * _MICROSECONDS_A_DAY), "us")).removesuffix(".000000").removesuffix("T00:00:00")
    if isinstance(value, tuple):
        return ", ".join(str(one) if isinstance(one, str) else f"{one:g}" for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _categories(columns: Sequence[pa.Array], place: _Place) -> Values:
    kind = columns[0].type
    if pa.types.is_nested(kind) or pa.types.is_floating(kind):
        raise place.holds(kind, "text or whole numbers")
    return [str(value) for value in columns[0].to_pylist()]


def _numbers(columns: Sequence[pa.Array], place: _Place) -> Values:
    numbers: Values = _finite(columns[0], place).tolist()
    return numbers


def _finite(column: pa.Array, place: _Place) -> NDArray[np.float64]:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise place.holds(kind, "numbers")
    numbers_n: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(numbers_n))
    if len(bad):
        raise place.wrong(int(bad[0]), "is NaN or infinity. Mend it, or leave the row out")
    # Of minus zero, zero.
    return numbers_n + 0.0


def _dates(columns: Sequence[pa.Array], place: _Place) -> Values:
    """Days since 1970."""
    column = columns[0]
    if is_text(column.type):
        column = _parse_dates(column, place)
    if not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)):
        raise place.holds(column.type, "dates, times, or text such as 2024-05-31")
    microseconds_n = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy(zero_copy_only=False)
    days: list[Hashable] = (microseconds_n / _MICROSECONDS_A_DAY).tolist()
    return days


def _parse_dates(column: pa.Array, place: _Place) -> pa.Array:
    for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
        try:
            return column.cast(pa.string()).cast(kind)
        except pa.ArrowInvalid:
            continue
    for row, text in enumerate(column.to_pylist()):
        try:
            pa.scalar(text).cast(pa.timestamp("us"))
        except pa.ArrowInvalid:
            raise place.wrong(row, f"is {text!r}, and no date such as 2024-05-31 or 2024-05-31T12:00:00") from None
    raise place.holds(column.type, "dates")


def _places(columns: Sequence[pa.Array], place: _Place) -> Values:
    """Latitude and longitude in degrees."""
    pair = [*columns] if len(columns) == 2 else _pair(columns[0], place)
    latitude_n, longitude_n = (_finite(one, place) for one in pair)
    for what, numbers_n, limit in (("latitude", latitude_n, 90), ("longitude", longitude_n, 360)):
        bad = np.flatnonzero(np.abs(numbers_n) > limit)
        if len(bad):
            raise place.wrong(
                int(bad[0]), f"has the {what} {numbers_n[bad[0]]:g}, beyond {limit}. Latitude comes first, in degrees"
            )
    return list(zip(latitude_n.tolist(), longitude_n.tolist(), strict=True))


def _pair(column: pa.Array, place: _Place) -> list[pa.Array]:
    kind = column.type
    if pa.types.is_struct(kind):
        names = [next((field.name for field in kind if field.name.lower() in usual), None) for usual in (_LATITUDE, _LONGITUDE)]
        if None in names:
            raise place.holds(kind, "a latitude and a longitude (lat, lon)")
        parts = [pc.struct_field(column, name) for name in names]
    elif is_list(kind):
        odd = np.flatnonzero(pc.list_value_length(column).to_numpy(zero_copy_only=False) != 2)
        if len(odd):
            raise place.wrong(int(odd[0]), "is no pair of a latitude and a longitude")
        parts = [pc.list_element(column, index) for index in range(2)]
    else:
        raise place.holds(kind, "pairs of a latitude and a longitude")
    for part in parts:
        if part.null_count:
            raise place.wrong(pc.index(part.is_null(), True).as_py(), "has half a place. Fill it in, or leave the row out")
    return parts


def _tags(columns: Sequence[pa.Array], place: _Place) -> Values:
    kind = columns[0].type
    if not (is_text(kind) or (is_list(kind) and not pa.types.is_nested(kind.value_type))):
        raise place.holds(kind, "lists of tags, or text with commas between tags")
    rows = [value.split(",") if isinstance(value, str) else value for value in columns[0].to_pylist()]
    tags: Values = [tuple(sorted({str(tag).strip() for tag in row if tag is not None} - {""})) for row in rows]
    if () in tags:
        raise place.wrong(tags.index(()), "has no tag, so nothing to compare. Give it one, or leave the row out")
    return tags


def _texts(columns: Sequence[pa.Array], place: _Place) -> Values:
    if not is_text(columns[0].type):
        raise place.holds(columns[0].type, "text")
    clean = TextPolicy().clean
    texts: Values = [clean(text) for text in columns[0].to_pylist()]
    if "" in texts:
        raise place.wrong(texts.index(""), "is blank. Fill it in, or leave the row out")
    return texts


_READ: Mapping[str, Callable[[Sequence[pa.Array], _Place], Values]] = {
    "category": _categories,
    "taxonomy": _categories,
    "tags": _tags,
    "number": _numbers,
    "angle": _numbers,
    "date": _dates,
    "place": _places,
    "text": _texts,
}
