"""How near the assembled targets come to the dense ones, by what is stored of a text; and what the dense ones look like.

Shape letters: B samples in a batch, K neighbours stored, R sketch width, D embedding width.
Everything is measured on a few batches, random ones and ones of neighbour chunks, against the dense target of the stored
embeddings. Sketches of other widths are computed and corrected anew; fewer neighbours are a part of those stored. Divergences
are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.knn.sketch import FEWEST_TEXTS, encode, sketch_basis
from graphbuild.quality.basis import BasisSample, StoredVectors, read_vectors
from graphbuild.quality.samples import Samples
from graphbuild.store.arrays import Float16, Float32, Int32
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows
from graphbuild.store.sketches import UNCORRECTED, Correction
from graphbuild.system.progress import progress
from graphbuild.targets import assemble as targets
from graphbuild.targets import softmax
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import load_partition

Sketches = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], Correction]

_NEIGHBORS = (16, 32, 64, 128, 256)
_SKETCHES = (0, 32, 64, 128)
PAPER_TAU_S = 0.1
LEAST_OWN_VIEW, MOST_OWN_VIEW = 0.1, 0.9
"""Own-view mass, in random batches, of a target that is neither SimCLR's nor indifferent to views."""
_ONE_HOT, _FLAT = 0.95, 0.5
"""Mass on the own view, and effective positives as a share of the columns, from which a target is called so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityConfig:
    """How many batches are drawn, of which size, at which temperatures."""

    batch_size: int = 1024
    """B."""
    fidelity_taus: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Temperatures that divergences are measured at; none: the one that `choose_tau_s` takes."""
    sharpness_taus: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    """Temperatures that the dense target is described at."""
    batches: int = 4
    """Batches of either kind."""
    chunk: int = 32
    """Samples a chunk of the neighbour batches."""
    seed: int = 0
    """Of the batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """One choice of what is stored of a text, and what it costs in bytes and in nats."""

    tau_s: float
    k: int
    sketch_dim: int
    """0: absent pairs take the constant."""
    bytes_a_row: int
    kl_random: float
    """KL(dense || assembled) in random batches."""
    kl_neighbors: float
    """The same in batches of neighbour chunks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharpness:
    """What the dense target of a temperature looks like."""

    tau_s: float
    positives_random: float
    """Effective number of positives: the exponential of the mean entropy."""
    positives_neighbors: float
    own_view_random: float
    """Mean share of the target on the own view."""
    own_view_neighbors: float
    verdict: str
    """`one-hot`, `flat` or `soft`, in random batches; both kinds are named where they differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """How near what is stored comes to the dense target, by k, sketch and temperature."""

    hit_rate_random: float
    """Stored neighbours per anchor."""
    hit_rate_neighbors: float
    absent: float
    """The constant where there is no sketch: the mean similarity of pairs in random batches."""
    storage: tuple[Storage, ...]
    sharpness: tuple[Sharpness, ...]


@dataclass(frozen=True, slots=True)
class _Batch:
    """One batch and its exact similarities."""

    texts: Int32
    vectors: Float16
    rows: Rows
    dense: Float32


def measure_fidelity(graph_dir: Path, config: FidelityConfig) -> Fidelity:
    """Measure a graph's targets on a few batches. A partition into chunks is made where it is missing.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If there are fewer samples than a batch holds, or a value is out of its range.
    """
    for tau_s in (*config.fidelity_taus, *config.sharpness_taus):
        softmax.check_tau_s(tau_s)
    graph = Graph.open(graph_dir)
    drawn = _draw(graph, config)
    basis = BasisSample.draw(graph, config.seed)
    vectors = read_vectors(graph_dir, graph, np.concatenate([*drawn["random"], *drawn["neighbors"], basis.texts]))
    with progress("targets", None):
        return _measure(graph, config, basis, vectors, drawn)


def _measure(
    graph: Graph, config: FidelityConfig, basis: BasisSample, vectors: StoredVectors, drawn: dict[str, list[Int32]]
) -> Fidelity:
    batches = {kind: [_open_batch(graph, vectors, texts) for texts in some] for kind, some in drawn.items()}
    absent = round(float(np.mean([_off_diagonal_mean(batch.dense) for batch in batches["random"]])), 2)
    sharpness = tuple(_sharpness(batches, tau_s) for tau_s in config.sharpness_taus)
    taus = config.fidelity_taus or (choose_tau_s(sharpness).tau_s,)
    return Fidelity(
        hit_rate_random=_hit_rate(batches["random"]),
        hit_rate_neighbors=_hit_rate(batches["neighbors"]),
        absent=absent,
        storage=tuple(_storage(graph, batches, basis, vectors, absent, taus)),
        sharpness=sharpness,
    )


def choose_tau_s(sharpness: Sequence[Sharpness]) -> Sharpness:
    """Return the temperature nearest to the paper's 0.1 whose own-view mass is between 0.1 and 0.9 in random batches.

    Where none is, the one that comes nearest to that range.
    """

    def distance(found: Sharpness) -> tuple[float, float]:
        outside = max(LEAST_OWN_VIEW - found.own_view_random, found.own_view_random - MOST_OWN_VIEW, 0.0)
        return outside, abs(math.log(found.tau_s / PAPER_TAU_S))

    return min(sharpness, key=distance)


def _draw(graph: Graph, config: FidelityConfig) -> dict[str, list[Int32]]:
    """Texts of random batches and of batches of chunks; every sample shows one of its texts."""
    samples = Samples.read(graph)
    if not 2 <= config.batch_size <= len(samples):
        raise OptionError(
            f"--batch-size {config.batch_size:,}: the graph has {len(samples):,} samples. Take 2 to {len(samples):,}."
        )
    chunks = load_partition(graph, PartitionConfig(chunk=min(config.chunk, config.batch_size))).of_rows(samples.rows_S)
    by_chunk = np.argsort(chunks, kind="stable")
    starts = np.searchsorted(chunks[by_chunk], np.arange(chunks.max() + 2))
    rng = np.random.Generator(np.random.Philox(config.seed))
    drawn: dict[str, list[Int32]] = {"random": [], "neighbors": []}
    for _ in range(config.batches):
        drawn["random"].append(samples.random_batch(config.batch_size, rng))
        order = rng.permutation(len(starts) - 1)
        # The short chunk may be among them, so one more than fills the batch is taken.
        some = order[: -(-config.batch_size // config.chunk) + 1]
        members = np.concatenate([by_chunk[starts[chunk] : starts[chunk + 1]] for chunk in some])
        drawn["neighbors"].append(samples.show(members[: config.batch_size], rng))
    return drawn


def _open_batch(graph: Graph, vectors: StoredVectors, texts: Int32) -> _Batch:
    found = vectors.of(texts)
    return _Batch(texts, found, graph.rows(texts), targets.dense(found, texts))


def _storage(
    graph: Graph,
    batches: dict[str, list[_Batch]],
    sample: BasisSample,
    vectors: StoredVectors,
    absent: float,
    taus: tuple[float, ...],
) -> Iterator[Storage]:
    moments = sample.moments(vectors)
    widths = [k for k in sorted({0, *_NEIGHBORS, graph.k}) if k <= graph.k]
    for sketch_dim in (width for width in _SKETCHES if width <= len(moments)):
        basis = sketch_basis(moments, sketch_dim)
        # What is stored is measured as it is.
        if sketch_dim in (0, graph.sketch_dim) or graph.n_texts <= FEWEST_TEXTS:
            correction = graph.correction
        else:
            correction = sample.correction(graph, vectors, basis)
        # Codes are made once for every batch, whatever k is.
        codes = {
            kind: [(*encode(batch.vectors, basis), correction) if sketch_dim else None for batch in some]
            for kind, some in batches.items()
        }
        for k in (width for width in widths if width or sketch_dim):
            divergence = {
                kind: np.mean([_kl(batch, code, k, absent, taus) for batch, code in zip(some, codes[kind], strict=True)], axis=0)
                for kind, some in batches.items()
            }
            for at, tau_s in enumerate(taus):
                yield Storage(
                    tau_s=tau_s,
                    k=k,
                    sketch_dim=sketch_dim,
                    bytes_a_row=6 * k + (sketch_dim + 4 if sketch_dim else 0),
                    kl_random=float(divergence["random"][at]),
                    kl_neighbors=float(divergence["neighbors"][at]),
                )


def _kl(batch: _Batch, code: Sketches | None, k: int, absent: float, taus: tuple[float, ...]) -> list[float]:
    """KL(dense || assembled) of one batch at each temperature, from its k nearest stored neighbours and a sketch or a constant."""
    none = np.empty((len(batch.texts), 0), np.int8), np.zeros(len(batch.texts), np.float32), UNCORRECTED
    sketch, scale, correction = code or none
    nearest = np.ascontiguousarray(batch.rows.neighbor_ids[:, :k]), np.ascontiguousarray(batch.rows.similarities[:, :k])
    rows = Rows(*nearest, sketch, scale, correction=correction)
    assembled = targets.assemble(rows, batch.texts, absent=None if code else absent).similarity_BB
    return [softmax.kl(batch.dense.astype(np.float64), assembled.astype(np.float64), tau_s) for tau_s in taus]


def _sharpness(batches: dict[str, list[_Batch]], tau_s: float) -> Sharpness:
    entropies, masses = {}, {}
    for kind, some in batches.items():
        exact = [batch.dense.astype(np.float64) for batch in some]
        entropies[kind] = float(np.mean([softmax.entropy(similarity, tau_s) for similarity in exact]))
        masses[kind] = float(np.mean([softmax.own_view_mass(similarity, tau_s) for similarity in exact]))
    columns = 2 * len(batches["random"][0].texts) - 1
    verdicts = [_verdict(masses[kind], np.exp(entropies[kind]) / columns) for kind in ("random", "neighbors")]
    return Sharpness(
        tau_s=tau_s,
        positives_random=float(np.exp(entropies["random"])),
        positives_neighbors=float(np.exp(entropies["neighbors"])),
        own_view_random=masses["random"],
        own_view_neighbors=masses["neighbors"],
        verdict=verdicts[0] if verdicts[0] == verdicts[1] else f"{verdicts[0]} at random, {verdicts[1]} among neighbors",
    )


def _verdict(own_view: float, share: float) -> str:
    return "one-hot" if own_view >= _ONE_HOT else "flat" if share >= _FLAT else "soft"


def _off_diagonal_mean(similarity: Float32) -> float:
    count = len(similarity)
    return float((similarity.sum(dtype=np.float64) - np.trace(similarity, dtype=np.float64)) / (count * (count - 1)))


def _hit_rate(batches: list[_Batch]) -> float:
    return float(np.mean([targets.hit_rate(targets.assemble(batch.rows, batch.texts, absent=0.0)) for batch in batches]))
