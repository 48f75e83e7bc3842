"""Random batches of samples, drawn as a training draws them: without replacement, each sample showing one of its texts.

Shape letters: S samples, B samples of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphbuild.store import schemas
from graphbuild.store.arrays import Int32, Int64
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.system.memory import resolve_limit
from graphbuild.targets.chunks import samples_of


def has_several_captions(manifest: Manifest) -> bool:
    """Tell whether samples have several texts: whether there are more rows than samples."""
    rows = sum(receipt.rows for receipt in manifest.files("text", schemas.SAMPLES))
    return rows > manifest.counts.get("samples", rows)


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a graph, and the texts of each."""

    rows_S: Int64
    """Where each sample first stands in samples/."""
    offsets: Int64
    """Sample i has the texts from offsets[i] to offsets[i + 1]; (S + 1,)."""
    text_ids: Int32

    @classmethod
    def read(cls, graph: Graph) -> Samples:
        """Read the texts of all samples of a graph.

        Raises:
            ResourceError: If they do not fit into memory.
        """
        return cls(*samples_of(graph, resolve_limit(None)))

    def __len__(self) -> int:
        return len(self.rows_S)

    def show(self, places_B: Int64, rng: np.random.Generator) -> Int32:
        """Draw one text of each of some samples; (B,)."""
        counts = self.offsets[places_B + 1] - self.offsets[places_B]
        shown: Int32 = self.text_ids[self.offsets[places_B] + rng.integers(0, counts)]
        return shown

    def random_batch(self, batch_size: int, rng: np.random.Generator) -> Int32:
        """Draw a batch of different samples, and a text of each; (B,), or (S,) where there are fewer samples."""
        return self.show(rng.choice(len(self), min(batch_size, len(self)), replace=False), rng)
