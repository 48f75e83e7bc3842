"""Stored vectors of some texts, and what sketches of any width are made of: their basis and what they leave out.

Shape letters: B texts, R sketch width, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphbuild.knn.sketch import encode, fit_correction, second_moments
from graphbuild.store.arrays import Float16, Int32
from graphbuild.store.embeddings import embedding_blocks
from graphbuild.store.graph import Graph
from graphbuild.store.sketches import Correction
from graphbuild.system.progress import progress

_BASIS_TEXTS = 65_536
"""Texts that the sketches' basis is computed from; the knn stage takes all."""
_FITTED_TEXTS = 2048
"""Texts whose pairs the sketches' correction is fitted on."""


@dataclass(frozen=True, slots=True)
class BasisSample:
    """Texts that stand for all when the sketches' basis is computed."""

    texts: Int32

    @classmethod
    def draw(cls, graph: Graph, seed: int) -> BasisSample:
        """Draw texts as often as samples show them, as the basis weighs them."""
        _, texts = graph.sample_rows()
        if len(texts) <= _BASIS_TEXTS:
            return cls(texts)
        places = np.random.Generator(np.random.Philox(seed)).integers(0, len(texts), _BASIS_TEXTS)
        return cls(texts[places])

    def moments(self, vectors: StoredVectors) -> npt.NDArray[np.float64]:
        """Return their second moments; (D, D)."""
        found = vectors.of(self.texts)
        return second_moments([(found, np.ones(len(found), np.int32))], found.shape[1])

    def correction(self, graph: Graph, vectors: StoredVectors, basis_DR: npt.NDArray[np.float64]) -> Correction:
        """Fit what sketches of this basis leave out, on some of the texts; the knn stage draws its own."""
        texts = np.unique(self.texts)
        some = texts[:: -(-len(texts) // _FITTED_TEXTS)]
        found = vectors.of(some)
        return fit_correction(found, *encode(found, basis_DR), graph.rows(some).similarities[:, -1])


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """The stored embeddings of some texts."""

    ids: Int32
    values: Float16

    def of(self, texts: Int32) -> Float16:
        """Return one row a text; (B, D)."""
        return self.values[np.searchsorted(self.ids, texts)]


def read_vectors(graph_dir: Path, graph: Graph, texts: Int32) -> StoredVectors:
    """Read the stored vectors of some texts, each once, however often it is named."""
    ids = np.unique(texts)
    found = []
    with progress("embeddings", graph.n_texts, unit="texts") as meter:
        for block in embedding_blocks(graph_dir):
            found.append(block.vectors_nD[np.isin(block.ids_n, ids)])
            meter.advance(len(block.ids_n))
    return StoredVectors(ids, np.concatenate(found))
