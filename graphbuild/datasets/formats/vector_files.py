"""Vectors in files: columns of Parquet files and Arrow streams, `.npy` matrices and safetensors, read block by block.

Shape letters: n rows of a block, D vector width. Nothing is unpickled. Vectors come out normalised, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from graphbuild.datasets.base import show_names
from graphbuild.datasets.formats.columns import is_list
from graphbuild.datasets.formats.files import File, local_file, open_parquet
from graphbuild.errors import OptionError, SourceError, one_line
from graphbuild.store.arrays import Float64
from graphbuild.system.hub import map_stream

NPY = ".npy"
SAFETENSORS = ".safetensors"
ARROW = ".arrow"
"""Streams, as Hugging Face's `datasets` saves them."""
_BLOCK_BYTES = 1 << 25
_MOST_ROWS = 8_192
Block: TypeAlias = tuple[int, NDArray[Any]]
"""Its first row, and vectors as the file has them, (n, D)."""


def unit_vectors(vectors_nD: NDArray[Any], where: str, first_row: int) -> Float64:
    """Scale rows to length 1; (n, D).

    Raises:
        SourceError: If a row is zero, or holds NaN or infinity; the file and the row are named.
    """
    wide_nD = vectors_nD.astype(np.float64)
    # By the largest coordinate first: squares of very large or very small ones would leave the range of numbers.
    peak_n = np.abs(wide_nD).max(axis=1)
    bad = np.flatnonzero(~((peak_n > 0) & (peak_n < np.inf)))
    if len(bad):
        row = int(bad[0])
        what = "is zero, so it has no direction" if peak_n[row] == 0 else "holds NaN or infinity"
        raise SourceError(f"{where}: the vector of row {first_row + row:,} {what}. Leave the row out, or mend it.")
    wide_nD /= peak_n[:, None]
    unit_nD: Float64 = wide_nD / np.sqrt(np.einsum("nd,nd->n", wide_nD, wide_nD))[:, None]
    return unit_nD


class VectorFile:
    """One file of vectors."""

    def __init__(self, file: File, column: str | None) -> None:
        """Look at its head.

        Raises:
            SourceError: If it is damaged, holds no matrix of numbers, or has no such column.
        """
        self.file = file
        self.column, self.rows, self.width = _HEADS.get(file.suffix, _parquet_head)(file, column)

    def blocks(self, wanted: Sequence[range] | None = None) -> Iterator[tuple[int, Float64]]:
        """Yield unit vectors in order, some rows at a time: the first row, and (n, D). A block lies within one wanted range.

        Args:
            wanted: Ranges of rows, ascending; what lies between them is skipped where the format allows. None: all rows.

        Raises:
            SourceError: If a row is zero, is not finite, has another width, or is missing.
        """
        rows = max(1, min(_MOST_ROWS, _BLOCK_BYTES // (8 * max(self.width, 1))))
        spans = [range(self.rows)] if wanted is None else wanted
        for first_row, block_nD in _BLOCKS.get(self.file.suffix, _parquet_blocks)(self.file, self.column, spans, rows, self.width):
            yield first_row, unit_vectors(block_nD, str(self.file), first_row)


def read_vector(path: Path) -> Float64:
    """Return the one vector of a file, of length 1; (D,).

    Raises:
        SourceError: If the file is missing or damaged, or the vector is zero or not finite.
        OptionError: If it holds several.
    """
    file = local_file(path)
    if file.suffix == NPY and (vector := _open_npy(file)).ndim == 1 and len(vector):
        alone: Float64 = unit_vectors(vector[None], str(file), 0)[0]
        return alone
    vectors = VectorFile(file, None)
    if vectors.rows != 1:
        raise OptionError(f"{path}: holds {vectors.rows:,} vectors. Give a file of one.")
    _, first_1D = next(vectors.blocks())
    first: Float64 = first_1D[0]
    return first


def _local(file: File) -> Path:
    if not isinstance(file.place, Path):
        raise SourceError(f"{file}: {NPY}, {SAFETENSORS} and {ARROW} files are mapped. Copy it to this machine.")
    return file.place


def _require_matrix(where: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or not shape[1]:
        raise SourceError(f"{where}: has the shape {list(shape)}; vectors are a matrix of one row a sample.")
    return shape[0], shape[1]


def _open_npy(file: File) -> NDArray[Any]:
    try:
        matrix: NDArray[Any] = np.load(_local(file), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        why = "holds Python objects, which are never unpickled" if "bject" in str(error) else one_line(str(error))
        raise SourceError(f"{file}: cannot be read as an array of numbers ({why}). Save it as float16 or float32.") from None
    # What NumPy tells by its content, whatever the name says.
    if not isinstance(matrix, np.ndarray):
        raise SourceError(f"{file}: is an archive of arrays, not one. Save the matrix of vectors by itself, as {NPY}.")
    if matrix.dtype.kind != "f":
        raise SourceError(f"{file}: holds {matrix.dtype}, not floating-point numbers. Save it as float16 or float32.")
    return matrix


def _npy_head(file: File, column: str | None) -> tuple[str, int, int]:
    if column is not None:
        raise SourceError(f"{file}: a {NPY} file is one matrix and has no columns. Leave --vector-column out.")
    return ("", *_require_matrix(str(file), _open_npy(file).shape))


def _pieces(wanted: Sequence[range], rows: int) -> Iterator[slice]:
    """Ranges, cut into pieces of so many rows."""
    for span in wanted:
        for start in range(span.start, span.stop, rows):
            yield slice(start, min(start + rows, span.stop))


def _npy_blocks(file: File, _column: str, wanted: Sequence[range], rows: int, _width: int) -> Iterator[Block]:
    matrix = _open_npy(file)
    for piece in _pieces(wanted, rows):
        yield piece.start, np.asarray(matrix[piece])


def _open_tensors(file: File) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(_local(file), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file}: not a safetensors file, or a truncated one ({one_line(str(error))}). Fetch it again.") from None


def _tensors_head(file: File, column: str | None) -> tuple[str, int, int]:
    with _open_tensors(file) as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        if column is None and len(matrices) != 1:
            raise SourceError(f"{file}: choose a tensor with --vector-column; the matrices are: {show_names(matrices) or 'none'}.")
        name = matrices[0] if column is None else column
        if name not in shapes:
            raise SourceError(f"{file}: no tensor {name!r}; the tensors are: {show_names(list(shapes))}.")
        if (kind := tensors.get_slice(name).get_dtype()) not in ("F16", "F32", "F64"):
            raise SourceError(f"{file}: tensor {name!r} holds {kind}. Save it as F16, F32 or F64.")
        return (name, *_require_matrix(f"{file}: tensor {name!r}", shapes[name]))


def _tensors_blocks(file: File, column: str, wanted: Sequence[range], rows: int, _width: int) -> Iterator[Block]:
    with _open_tensors(file) as tensors:
        matrix = tensors.get_slice(column)
        for piece in _pieces(wanted, rows):
            yield piece.start, matrix[piece]


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _holds_vectors(kind: pa.DataType) -> bool:
    kind = _storage(kind)
    return is_list(kind) and bool(pa.types.is_floating(kind.value_type))


def _choose_column(file: File, schema: pa.Schema, column: str | None) -> str:
    usable = [field.name for field in schema if _holds_vectors(field.type)]
    if column is None and len(usable) != 1:
        raise SourceError(f"{file}: choose a column with --vector-column; those of vectors are: {show_names(usable) or 'none'}.")
    name: str = usable[0] if column is None else column
    if name not in schema.names:
        raise SourceError(f"{file}: no column {name!r}; the columns are: {show_names(schema.names)}.")
    if name not in usable:
        raise SourceError(f"{file}: column {name!r} holds {schema.field(name).type}, not lists of floating-point numbers.")
    return name


def _stream_head(file: File, column: str | None) -> tuple[str, int, int]:
    table = map_stream(_local(file))
    name = _choose_column(file, table.schema, column)
    if not table.num_rows:
        return name, 0, 0
    first = table.select([name]).slice(0, 1).to_batches()[0]
    return name, table.num_rows, _matrix(first.column(0), str(file), name, None, 0).shape[1]


def _stream_blocks(file: File, column: str, wanted: Sequence[range], rows: int, width: int) -> Iterator[Block]:
    vectors = map_stream(_local(file))[column]
    for piece in _pieces(wanted, rows):
        array = vectors.slice(piece.start, piece.stop - piece.start).combine_chunks()
        yield piece.start, _matrix(array, str(file), column, width, piece.start)


def _parquet_head(file: File, column: str | None) -> tuple[str, int, int]:
    with open_parquet(file) as opened:
        name = _choose_column(file, opened.schema_arrow, column)
        rows = opened.metadata.num_rows
        if not rows:
            return name, 0, 0
        first = next(opened.iter_batches(1, columns=[name]))
        return name, rows, _matrix(first.column(0), str(file), name, None, 0).shape[1]


def _parquet_blocks(file: File, column: str, wanted: Sequence[range], rows: int, width: int) -> Iterator[Block]:
    row = 0
    try:
        with open_parquet(file) as opened:
            for first_row, groups in _row_groups(opened.metadata, wanted):
                row = first_row
                for batch in opened.iter_batches(rows, row_groups=groups, columns=[column]):
                    for span in wanted:
                        start, stop = max(span.start, row), min(span.stop, row + batch.num_rows)
                        if start < stop:
                            yield start, _matrix(batch.column(0).slice(start - row, stop - start), str(file), column, width, start)
                    row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file}: cannot be read beyond row {row:,} ({one_line(str(error))}). Fetch it again.") from error


def _row_groups(metadata: pq.FileMetaData, wanted: Sequence[range]) -> list[tuple[int, list[int]]]:
    """Row groups that hold wanted rows: those that follow each other together, with the first row of the first."""
    found: list[tuple[int, list[int]]] = []
    start = 0
    for number in range(metadata.num_row_groups):
        stop = start + metadata.row_group(number).num_rows
        if any(span.start < stop and start < span.stop for span in wanted):
            if found and found[-1][1][-1] == number - 1:
                found[-1][1].append(number)
            else:
                found.append((start, [number]))
        start = stop
    return found


def _matrix(array: pa.Array, where: str, column: str, width: int | None, first_row: int) -> NDArray[Any]:
    """Lists as a matrix; `width` None takes that of the first."""
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise SourceError(f"{where}: row {first_row + row:,} has no vector in column {column!r}. Leave the row out.")
    counts = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    width = int(counts[0]) if width is None else width
    odd = np.flatnonzero(counts != width) if width else np.zeros(1, np.int64)
    if len(odd):
        row = int(odd[0])
        raise SourceError(
            f"{where}: the vector of row {first_row + row:,} in column {column!r} is {counts[row]:,} wide, "
            f"not {width or 'at least 1'}. Vectors of one graph have one width."
        )
    flat = array.flatten()
    if flat.null_count:
        row = pc.index(flat.is_null(), True).as_py() // width
        raise SourceError(f"{where}: the vector of row {first_row + row:,} in column {column!r} has an empty place. Mend it.")
    matrix: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    return matrix


_HEADS = {NPY: _npy_head, SAFETENSORS: _tensors_head, ARROW: _stream_head}
_BLOCKS = {NPY: _npy_blocks, SAFETENSORS: _tensors_blocks, ARROW: _stream_blocks}
