"""Some images of a source, as a source of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphbuild.store.arrays import Int64
from train.data.base import Encoded, ImageSource, Labels


class Subset:
    """Some images of a source, in the order given; ids, labels and bytes are those of the source."""

    def __init__(self, source: ImageSource, indices: Int64) -> None:
        """Choose images.

        Args:
            source: All images.
            indices: Which; (n,).
        """
        self.name = f"{source.name} ({len(indices):,} of {len(source):,})"
        self._source, self._indices = source, indices
        self.sample_ids: Sequence[str] = [source.sample_ids[index] for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the stored bytes or pixels of some images."""
        return self._source.encoded(self._indices[list(indices)].tolist())

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return what is stored beside some images."""
        return self._source.metas(self._indices[list(indices)].tolist())

    def label_columns(self) -> tuple[str, ...]:
        """Return the label columns of the source."""
        return self._source.label_columns()

    def labels(self, column: str) -> Labels:
        """Return one label of every image, numbered as the source numbers them.

        Raises:
            SourceError: If there is no such column.
        """
        labels = self._source.labels(column)
        return Labels(labels.codes[self._indices], labels.names)

    def class_ids(self) -> Sequence[str] | None:
        """Return the class of every image as a graph of classes names it, where the source knows one."""
        ids = self._source.class_ids()
        return None if ids is None else [ids[index] for index in self._indices]
