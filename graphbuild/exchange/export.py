"""Edges in forms that other programs read: Parquet in long form, and SciPy's CSR. Both stream: a graph need not fit in memory.

Shape letters: N texts, E edges, K neighbours stored.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.store.atomic import atomic_path
from graphbuild.store.frames import Frames, graph_blocks
from graphbuild.store.graph import Graph
from graphbuild.store.outputs import MARK, PARQUET_METADATA, require_replaceable
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.progress import progress

_EDGES_A_BLOCK = 1 << 20
ExportForm = Literal["parquet", "csr"]
EXPORT_FORMS: tuple[ExportForm, ...] = ("parquet", "csr")
_SUFFIXES = {"parquet": ".parquet", "csr": ".npz"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult(Answer):
    """The file that was written."""

    out: Path
    form: ExportForm
    texts: int
    edges: int
    bytes: int

    def summary(self) -> str:
        """Return what was written, and how it is read, in two lines for people."""
        reader = "polars.scan_parquet" if self.form == "parquet" else "scipy.sparse.load_npz"
        written = f"{self.out}: {self.edges:,} edges of {self.texts:,} texts, {self.bytes / 1e6:,.1f} MB"
        return f"{written}\n{next_steps(f'in Python, {reader}({str(self.out)!r})')}"


def export_edges(graph_dir: Path, out: Path, form: ExportForm | None = None, *, overwrite: bool = False) -> ExportResult:
    """Write all edges to one file.

    Args:
        graph_dir: A graph with neighbours.
        out: The file; replaced if an export wrote it.
        form: `parquet` (columns src, dst, rank, similarity) or `csr` (for `scipy.sparse.load_npz`: row i holds the
            similarities of text i's neighbours); None goes by the file's name.
        overwrite: Replace any file.

    Raises:
        OptionError: If the form is neither given nor told by the name, or the file is somebody else's.
        ArtifactError: If the knn stage is not done, or a shard is damaged.
    """
    form = form or next((one for one in EXPORT_FORMS if out.suffix == _SUFFIXES[one]), None)
    if form is None:
        raise OptionError(f"{out}: the name does not tell the form. Call it .parquet or .npz, or give --format.")
    require_replaceable(out, overwrite=overwrite)
    tables = Frames(graph_dir)
    graph = tables.graph
    with atomic_path(out) as temporary, progress("export", graph.n_texts, unit="texts") as meter:
        if form == "parquet":
            tables.edges.sink_parquet(temporary, compression="zstd", metadata=PARQUET_METADATA)
            meter.advance(graph.n_texts)
        else:
            _write_csr(graph, temporary)
            meter.advance(graph.n_texts)
    return ExportResult(out=out, form=form, texts=graph.n_texts, edges=graph.n_texts * graph.k, bytes=out.stat().st_size)


def _write_csr(graph: Graph, path: Path) -> None:
    """The members that `scipy.sparse.load_npz` reads, a block at a time; column numbers rise within a row."""
    n_texts, k = graph.n_texts, graph.k
    edges = n_texts * k
    # SciPy wants both index arrays of one type.
    index = np.dtype(np.int32 if max(edges, n_texts) < 1 << 31 else np.int64)
    pointers = (
        np.arange(start, min(start + _EDGES_A_BLOCK, n_texts + 1), dtype=index) * index.type(k)
        for start in range(0, n_texts + 1, _EDGES_A_BLOCK)
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.comment = MARK.encode()
        _member(archive, "format", np.array(b"csr"))
        _member(archive, "shape", np.array([n_texts, n_texts], np.int64))
        _stream(archive, "indptr", index, n_texts + 1, pointers)
        _stream(archive, "indices", index, edges, (ids.astype(index) for ids, _ in _sorted_rows(graph)))
        _stream(archive, "data", np.dtype(np.float32), edges, (values for _, values in _sorted_rows(graph)))


def _sorted_rows(graph: Graph) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    for _, rows in graph_blocks(graph, _EDGES_A_BLOCK):
        order = np.argsort(rows.neighbor_ids, axis=1)
        ids = np.take_along_axis(rows.neighbor_ids, order, axis=1)
        yield ids.reshape(-1), np.take_along_axis(rows.similarities, order, axis=1).astype(np.float32).reshape(-1)


def _member(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w") as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)


def _stream(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], count: int, blocks: Iterable[npt.NDArray[Any]]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_2_0(stream, header)
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype).data)
