"""Reader of a finished graph: mapped neighbour shards in, rows of any texts and the texts of any samples out.

Shape letters: N texts, B texts asked for, K neighbours stored, R sketch width, D embedding width, S samples asked for.
Shards are mapped, never copied: every process that reads a graph shares one copy in the page cache.
Nothing here imports torch, faiss, dask or polars, or writes a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graphbuild.errors import ArtifactError, SourceError
from graphbuild.store import schemas
from graphbuild.store.arrays import Ids
from graphbuild.store.choices import Similarity
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.files import Receipt
from graphbuild.store.lookup import SampleLookup, SampleTexts
from graphbuild.store.manifest import Manifest
from graphbuild.store.neighbors import REMEDY, Rows, Shard, gather, map_shard, outside, row_addresses
from graphbuild.store.one_piece import listed_texts, require_current_inputs, require_one_piece
from graphbuild.store.sketches import read_correction
from graphbuild.store.tables import read_parquet, read_texts
from graphbuild.store.verified import EMBED_AGAIN, require_verified

_STAGES = {"stored": "knn", "rescored": "rescore"}


class Graph:
    """A graph directory, open for reading. Pickles by its path, so that spawned processes map the files themselves."""

    def __init__(
        self,
        graph_dir: Path,
        manifest: Manifest,
        shards: Sequence[Shard],
        *,
        similarity: Similarity = "stored",
        verify: bool | None = None,
    ) -> None:
        self.path = graph_dir
        self.manifest = manifest
        self.similarity = similarity
        self._verify = verify
        self._shards = list(shards)
        self._starts = np.array([shard.first_id for shard in shards], np.int64)
        sizes = np.array([len(shard.rows.sketch_scale) for shard in shards], np.int64)
        self.n_texts = int(sizes.sum())
        self.k = int(shards[0].rows.neighbor_ids.shape[1])
        self.sketch_dim = int(shards[0].rows.sketch.shape[1])
        self.correction = read_correction(manifest.stages["knn"].facts)
        """What sketches leave out of a similarity; nothing in a graph that was made before it was measured."""
        self._addresses = {column: row_addresses(shards, column) for column in Rows.__slots__}

    @classmethod
    def open(cls, graph_dir: Path | str, *, similarity: Similarity = "stored", verify: bool | None = None) -> Graph:
        """Map a graph's neighbour shards.

        Ids and offsets are checked whenever a file is mapped; digests once for each version of a file.

        Args:
            graph_dir: The graph directory; made absolute at once, so that the graph outlives a change of folder.
            similarity: `rescored` reads what `graphbuild rescore` made: fewer neighbours a text, without sketches.
            verify: Whether digests of files are compared before they are read; None: unless `$GRAPHBUILD_VERIFY` is 0.

        Raises:
            ArtifactError: If a stage is not finished, or a shard is missing, cut short or not of one piece with the rest.
            ArtifactMismatch: If the neighbours were computed from other embeddings than the directory now holds.
        """
        graph_dir = Path(graph_dir).absolute()
        manifest = Manifest.load(graph_dir)
        stage = _STAGES[similarity]
        files = manifest.require(stage, graph_dir).files
        remedy = REMEDY.replace("knn", stage)
        require_current_inputs(graph_dir, manifest, stage)
        require_verified(graph_dir, files.values(), remedy=remedy, verify=verify)
        listed = listed_texts(graph_dir, manifest)
        shards = [map_shard(graph_dir, receipt, texts=listed, remedy=remedy) for _, receipt in sorted(files.items())]
        if not sum(receipt.rows for receipt in files.values()):
            raise ArtifactError(f"{graph_dir}: the graph holds no text. Run `graphbuild embed` on a data set with captions.")
        require_one_piece(graph_dir, shards, listed)
        return cls(graph_dir, manifest, shards, similarity=similarity, verify=verify)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.similarity, self._verify)

    @property
    def is_complete(self) -> bool:
        """Whether every pair of texts is stored."""
        return self.k >= self.n_texts - 1

    def rows(self, text_ids_B: npt.ArrayLike, *, out: Rows | None = None) -> Rows:
        """Copy the stored rows of some texts.

        Args:
            text_ids_B: Text ids, in any order, repeated or not; (B,).
            out: Arrays to fill, from `Rows.empty`; new ones if None.

        Raises:
            ValueError: If an id lies outside 0..N-1, or an array of `out` is of another kind than in `Rows.empty`.
        """
        ids = np.asarray(text_ids_B, np.int64)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= self.n_texts)):
            raise ValueError(f"text ids are one row of numbers from 0 to {self.n_texts - 1}; got shape {ids.shape}")
        if out is None:
            out = Rows.empty(len(ids), self.k, self.sketch_dim, self.correction)
        else:
            self._require_room(out, len(ids))
        if not len(ids):
            return out
        shard_B = np.searchsorted(self._starts, ids, side="right") - 1
        local_B = ids - self._starts[shard_B]
        for column, addresses in self._addresses.items():
            target = getattr(out, column)
            # A column of no width, as of a graph without sketches, has no memory to copy from.
            if width := target.nbytes // len(ids):
                gather(addresses, width, shard_B, local_B, target.reshape(len(ids), -1).view(np.uint8))
        return out

    def row(self, text_id: int) -> Rows:
        """Return the stored row of one text, as views of the mapped file, without loading a compiled kernel; B = 1.

        Raises:
            ValueError: If the id lies outside 0..N-1.
        """
        if not 0 <= text_id < self.n_texts:
            raise ValueError(f"text ids run from 0 to {self.n_texts - 1}, not to {text_id}")
        shard = self._shards[int(np.searchsorted(self._starts, text_id, side="right")) - 1]
        place = slice(text_id - shard.first_id, text_id - shard.first_id + 1)
        return Rows(*(getattr(shard.rows, column)[place] for column in Rows.__slots__), correction=self.correction)

    def _require_room(self, out: Rows, count: int) -> None:
        # Bytes are copied to where these arrays are: one that is smaller, or of another kind, would be overrun.
        for column, like in ((name, getattr(Rows.empty(0, self.k, self.sketch_dim), name)) for name in Rows.__slots__):
            array, shape = getattr(out, column), (count, *like.shape[1:])
            if array.shape != shape or array.dtype != like.dtype:
                raise ValueError(f"`out.{column}` is {array.dtype} of shape {array.shape}, not {like.dtype} of shape {shape}")
            if not (array.flags.c_contiguous and array.flags.writeable):
                raise ValueError(f"`out.{column}` is not contiguous or not writeable; those of `Rows.empty` are both")

    @property
    def neighbor_addresses(self) -> tuple[npt.NDArray[np.uintp], npt.NDArray[np.int64]]:
        """Where each shard's neighbour ids begin in memory, and its first text: for `mapped.mapped_row`, row by row.

        They hold as long as the graph is open.
        """
        return self._addresses[schemas.NEIGHBOR_IDS], self._starts

    def sample_rows(self) -> tuple[npt.NDArray[np.uint64], Ids]:
        """Return the hash of each row's sample id, and its text, in the order of the samples table: 12 bytes a row.

        Raises:
            ArtifactError: If a shard cannot be read, or names a text that is not there.
        """
        parts = list(self._sample_parts([schemas.SAMPLE_HASH, schemas.TEXT_ID]))
        hashes, texts = (np.concatenate([part.column(index).to_numpy() for part in parts]) for index in range(2))
        if outside(texts, self.n_texts):
            raise ArtifactError(f"{self.path / schemas.SAMPLES}: names a text that is not there. Run `graphbuild embed` again.")
        return hashes, texts

    def shard_rows(self) -> Iterator[tuple[int, Rows]]:
        """Yield the first text id and all rows of each shard, as views of the mapped files; for one pass over the whole graph."""
        for shard in self._shards:
            yield shard.first_id, shard.rows

    def sample_texts(
        self, sample_ids: Sequence[str] | pa.Array | pa.ChunkedArray, *, hashes: npt.NDArray[np.uint64] | None = None
    ) -> SampleTexts:
        """Look up which texts belong to samples.

        Samples are found by the xxh3 of their id in a sorted, mapped file, and accepted only if the string is the same:
        microseconds each, and 72 bytes.

        Args:
            sample_ids: Any ids, in any order, known or not; (S,).
            hashes: Their xxh3, where it is known already; (S,).

        Raises:
            ArtifactError: If the look-up is not there, or damaged.
            ArtifactMismatch: If it was made from another samples table.
        """
        return self._samples.find(sample_ids, hashes)

    def texts_of_rows(self, sample_rows: npt.NDArray[np.int64]) -> SampleTexts:
        """Find all texts of the samples that have some rows of the samples table, as `sample_texts` does by their ids.

        Args:
            sample_rows: One row of each sample; (S,).

        Raises:
            ArtifactError: If the look-up is not there, or damaged.
            ValueError: If there is no such row.
        """
        return self._samples.texts_of_rows(sample_rows)

    @cached_property
    def _samples(self) -> SampleLookup:
        return SampleLookup(self.path, self.manifest, verify=self._verify)

    def sample_column(self, name: str) -> pa.ChunkedArray:
        """Return one column of the samples table, such as a kept `label`, one value a sample row.

        Raises:
            SourceError: If there is no such column; the message names those that exist.
        """
        if name not in self.sample_columns:
            raise SourceError(
                f"{self.path}: samples have no column {name!r}; there are {', '.join(self.sample_columns)}. "
                "Add it with `graphbuild embed --keep-columns`."
            )
        return pa.chunked_array([part.column(0) for part in self._sample_parts([name])])

    @property
    def sample_columns(self) -> list[str]:
        """Names of the columns of the samples table."""
        return list(self._files("text", schemas.SAMPLES)[0].columns)

    def texts(self) -> pa.ChunkedArray:
        """Return all texts, as strings, in the order of their ids.

        Raises:
            ArtifactError: If a shard cannot be read.
        """
        files = self._verified(schemas.TEXTS)
        return pa.chunked_array(
            [read_parquet(self.path / file.path, [schemas.TEXT])[schemas.TEXT].combine_chunks() for file in files]
        )

    def texts_of(self, text_ids: npt.NDArray[np.integer]) -> dict[int, str]:
        """Return the texts of some ids, by id; only the shards that hold them are read.

        Raises:
            ArtifactError: If a shard cannot be read, or there is no text of an id.
        """
        return read_texts(self.path, self._files("text", schemas.TEXTS), text_ids, verify=self._verify)

    def embeddings(self) -> npt.NDArray[np.float16]:
        """Return all embeddings, as stored; (N, D) float16, 2 N D bytes of memory. The source of the dense target.

        Raises:
            ArtifactError: If a shard cannot be read.
            ArtifactMismatch: If one holds embeddings of other texts than the graph has.
        """
        return load_embeddings(self.path, verify=self._verify)

    @property
    def tokenizer(self) -> Path:
        """Return the folder of the encoder's tokenizer, after its files were compared with their receipts.

        Raises:
            ArtifactError: If one is missing or damaged.
        """
        self._verified(schemas.TOKENIZER)
        return self.path / schemas.TOKENIZER

    def _files(self, stage: str, folder: str) -> list[Receipt]:
        return self.manifest.require(stage, self.path).in_folder(folder)

    def _verified(self, folder: str) -> list[Receipt]:
        files = self._files("text", folder)
        require_verified(self.path, files, remedy=EMBED_AGAIN, verify=self._verify)
        return files

    def _sample_parts(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of each shard of the samples table."""
        for receipt in self._verified(schemas.SAMPLES):
            yield read_parquet(self.path / receipt.path, columns).combine_chunks()


def _reopen(graph_dir: str, similarity: Similarity, verify: bool | None) -> Graph:
    """Open a graph where it was sent to; its files are checked there as they were here."""
    return Graph.open(graph_dir, similarity=similarity, verify=verify)
