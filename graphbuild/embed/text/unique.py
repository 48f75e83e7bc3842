"""What a source must not repeat: the id of a sample, and the name of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.datasets.base import CaptionBatch, OpenSource
from graphbuild.embed.text.append import ExistingTexts
from graphbuild.embed.text.table import Prompts
from graphbuild.errors import SourceError
from graphbuild.store import schemas
from graphbuild.store.hashes import hash_string


class RepeatedIds:
    """Finds sample ids that come twice, from 8 bytes a sample."""

    _FIRST_CHECK = 1 << 20

    def __init__(self, source: OpenSource, *, allowed: bool, known: frozenset[str] = frozenset()) -> None:
        self._source = source
        self._known = known
        self._allowed = allowed
        self._held = np.empty(0, np.uint64)
        self._parts: list[NDArray[np.uint64]] = []
        self._total = 0
        self._next = self._FIRST_CHECK

    def add(self, sample_ids: Sequence[str]) -> None:
        """Note some ids; now and then look for repeated ones, so that a mistake shows early."""
        hashes = (hash_string(sample_id) for sample_id in sample_ids)
        self._parts.append(np.fromiter(hashes, dtype=np.uint64, count=len(sample_ids)))
        self._total += len(sample_ids)
        if self._total >= self._next:
            self._next = 2 * self._total
            self.finish()

    def restore(self, held: ExistingTexts) -> None:
        """Take in the ids of a graph that is appended to."""
        parts = [table[schemas.SAMPLE_HASH].to_numpy() for _, table in held.tables(schemas.SAMPLES, [schemas.SAMPLE_HASH])]
        # Once each: a sample with several captions has several rows.
        self._held = np.unique(np.concatenate(parts))
        self._parts.append(self._held)
        self._total = len(self._held)

    def finish(self) -> int:
        """Return the number of distinct ids.

        Raises:
            SourceError: If one comes twice and that is not allowed; its places are named.
        """
        hashes = np.sort(np.concatenate(self._parts)) if self._parts else np.empty(0, np.uint64)
        twice = hashes[1:][hashes[1:] == hashes[:-1]]
        if len(twice) and not self._allowed:
            self._raise_for({int(value) for value in np.unique(twice)})
        return self._total - len(twice)

    def _raise_for(self, hashes: set[int]) -> None:
        """Name the first repeated id; a second pass finds its places, because only hashes were kept."""
        places: dict[str, str] = {}
        held = hashes & set(self._held[np.isin(self._held, np.array(list(hashes), np.uint64))].tolist())
        for batch in self._source.read():
            for row, sample_id in enumerate(batch.sample_ids if batch.file not in self._known else ()):
                if hash_string(sample_id) not in hashes:
                    continue
                place = batch.place(row)
                if hash_string(sample_id) in held:
                    raise SourceError(
                        f"sample id {sample_id!r}, at {place}, is in the graph already. Choose another --id-column, leave the row "
                        "out, or give --multi-caption if rows that share an id are captions of one sample."
                    )
                if sample_id in places:
                    raise SourceError(
                        f"sample id {sample_id!r} comes twice, at {places[sample_id]} and {place}. Choose another --id-column, "
                        "or give --on-duplicate first or suffix, or --multi-caption if such rows are captions of one sample."
                    )
                places[sample_id] = place


class ClassNames:
    """Checks that each class has its own text, where a kept column tells the classes apart."""

    def __init__(self, source: OpenSource, prompts: Prompts) -> None:
        self._column = source.class_column if prompts.templates or source.class_names else None
        self._prompts = prompts
        self._class_of: dict[int, tuple[Any, str]] = {}

    def restore(self, held: ExistingTexts) -> None:
        """Take in the classes of a graph that is appended to."""
        if self._column is None:
            return
        names = [name for _, table in held.tables(schemas.TEXTS, [schemas.TEXT]) for name in table[schemas.TEXT].to_pylist()]
        for _, table in held.tables(schemas.SAMPLES, [schemas.TEXT_ID, self._column]):
            for text_id, one in zip(table[schemas.TEXT_ID].to_pylist(), table[self._column].to_pylist(), strict=True):
                self._class_of.setdefault(text_id, (one, self._prompts.name_of(names[text_id])))

    def add(self, batch: CaptionBatch, rows: Sequence[int], names: Sequence[str], text_ids: NDArray[Any]) -> None:
        """Note the classes of some rows, by the text of each.

        Raises:
            SourceError: If another class has the same text.
        """
        if self._column is None:
            return
        classes = batch.kept[self._column].to_pylist()
        for row, name, text_id in zip(rows, names, text_ids.tolist(), strict=True):
            first, first_name = self._class_of.setdefault(text_id, (classes[row], name))
            if first != classes[row]:
                raise SourceError(
                    f"{batch.place(row)}: two classes of one name: {self._column} {first} is {first_name!r}, and "
                    f"{self._column} {classes[row]} is {name!r}. Give them different names."
                )
