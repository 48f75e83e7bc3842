"""Labels of images that have columns beside them: which columns there are, their codes, and classes by WordNet id."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from graphbuild.errors import SourceError
from train.data.base import Labels, encode_labels

_LABEL_TYPES = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_dictionary)


class LabelColumns:
    """Labels of images that have typed columns beside them."""

    name: str
    _schema: pa.Schema

    def _column(self, name: str) -> list[object]:
        """All values of a column."""
        raise NotImplementedError

    def label_columns(self) -> tuple[str, ...]:
        """Return the columns of integers, strings or booleans."""
        return tuple(item.name for item in self._schema if any(test(item.type) for test in _LABEL_TYPES))

    def labels(self, column: str) -> Labels:
        """Return the codes of a column's values.

        Raises:
            SourceError: If there is no such column of integers or strings.
        """
        if column not in self.label_columns():
            raise SourceError(f"{self.name}: no label column {column!r}; there are: {', '.join(self.label_columns()) or 'none'}.")
        return encode_labels(self._column(column))

    def class_ids(self) -> Sequence[str] | None:
        """Return the `wnid` column, where there is one."""
        return [str(value) for value in self._column("wnid")] if "wnid" in self.label_columns() else None
