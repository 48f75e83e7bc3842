"""Positions on a map by UMAP, from the graph's own neighbours, and how true the map is to them.

Shape letters: n texts on the map, m neighbours of each, R sketch width, D embedding width.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Float32, Ids

JUDGED_NEIGHBORS = 15
"""Neighbours whose place on the map is judged; UMAP's own default."""
_TRUST_SAMPLE = 2000
_EXTENT = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """How true a map is."""

    neighbors: int
    kept_share: float
    """Mean share of each text's true neighbours that are among as many nearest on the map."""
    random_share: float
    """The same of a map at random."""
    trustworthiness: float | None
    """1 where what is near on the map is near in truth (Venna and Kaski 2001); on a sample. None without embeddings."""
    sample: int

    def summary(self) -> str:
        """Return how the map was laid out, in one sentence."""
        trust = "" if self.trustworthiness is None else f"; trustworthiness {self.trustworthiness:.3f} on {self.sample:,} texts"
        return (
            f"Of each text's {self.neighbors} nearest, {self.kept_share:.1%} are among its {self.neighbors} nearest on the map "
            f"(at random {self.random_share:.2%}){trust}. Trust the listed neighbours, not the distances on the map."
        )


class _Epochs(io.StringIO):
    """What UMAP's own bar writes to: its numbers are passed on, and nothing is shown."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        super().__init__()
        self._report = report

    def write(self, text: str) -> int:
        """Pass on what is done and the total."""
        if found := re.findall(r"\d+", text):
            self._report(int(found[0]), int(found[-1]))
        return len(text)


def lay_out(
    neighbors_nm: Ids,
    similarities_nm: npt.NDArray[np.float32],
    start_n2: Float32,
    *,
    seed: int,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Float32:
    """Place texts in the plane by UMAP; the same input and seed give the same map on one machine.

    Args:
        neighbors_nm: Rows of each text's neighbours, nearest first, the text itself not among them.
        similarities_nm: Of these.
        start_n2: Where texts begin, such as their two leading principal coordinates.
        seed: Of the optimisation.
        report: Told now and then how many epochs are done, and of how many.

    Raises:
        OptionError: If umap-learn is not installed, or there are too few texts.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise OptionError("explore needs umap-learn. Install it: `pip install 'xclr-graph[explore]'`.") from None
    count, width = neighbors_nm.shape
    if count < 4 or width < 2:
        raise OptionError(f"a map needs at least 4 texts with 2 neighbours each; there are {count} with {width}.")
    # UMAP's rows begin with the point itself; rows shorter than n_neighbors would be ignored with a warning.
    width = min(JUDGED_NEIGHBORS - 1, width)
    ids = np.concatenate([np.arange(count, dtype=np.int32)[:, None], neighbors_nm[:, :width]], axis=1)
    distances = np.concatenate([np.zeros((count, 1), np.float32), np.maximum(1 - similarities_nm[:, :width], 0)], axis=1)
    model = UMAP(
        n_neighbors=width + 1,
        metric="cosine",
        precomputed_knn=(ids, distances, None),
        init=_spread(start_n2, seed),
        random_state=seed,
        force_approximation_algorithm=True,
        tqdm_kwds={"disable": False, "file": _Epochs(report), "bar_format": "{n} {total}", "leave": False},
    )
    with warnings.catch_warnings():
        # That a seed means one thread, and that rows without a search index cannot place new points.
        warnings.simplefilter("ignore")
        positions: Float32 = model.fit_transform(start_n2).astype(np.float32)
    return positions


def _spread(start_n2: Float32, seed: int) -> Float32:
    """Scale to UMAP's customary extent, with a little noise, for equal positions would never part."""
    low, high = start_n2.min(axis=0), start_n2.max(axis=0)
    scaled = _EXTENT * (start_n2 - low) / np.maximum(high - low, 1e-6)
    noise = np.random.default_rng(seed).normal(scale=1e-4 * _EXTENT, size=start_n2.shape)
    spread: Float32 = (scaled + noise).astype(np.float32)
    return spread


def judge(positions_n2: Float32, neighbors_nm: Ids, vectors: npt.NDArray[Any] | None, *, seed: int) -> Truth:
    """Measure how many true neighbours are neighbours on the map, and the trustworthiness of a sample.

    Args:
        positions_n2: The map.
        neighbors_nm: True neighbours, nearest first.
        vectors: (n, D) embeddings; None where there are none.
        seed: Of the sample.
    """
    from scipy.spatial import KDTree
    from sklearn.manifold import trustworthiness

    count = len(positions_n2)
    width = min(JUDGED_NEIGHBORS, neighbors_nm.shape[1], count - 1)
    _, near = KDTree(positions_n2).query(positions_n2, k=width + 1, workers=-1)
    own = np.arange(count)[:, None]
    # Among equal positions the point itself need not come first.
    near = np.where(near == own, -1, near)
    kept = (near[:, :, None] == neighbors_nm[:, None, :width]).any(axis=2).sum(axis=1)
    trust: float | None = None
    chosen = np.random.default_rng(seed).choice(count, min(_TRUST_SAMPLE, count), replace=False)
    if vectors is not None and len(chosen) > 2 * width + 2:
        trust = float(trustworthiness(vectors[chosen].astype(np.float32), positions_n2[chosen], n_neighbors=width, metric="cosine"))
    return Truth(
        neighbors=width,
        kept_share=float(kept.mean() / width),
        random_share=width / (count - 1),
        trustworthiness=trust,
        sample=len(chosen),
    )
