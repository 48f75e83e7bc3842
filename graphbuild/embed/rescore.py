"""The rescore stage: the nearest stored pairs in, the same pairs by a cross-encoder's similarity out, shard by shard.

Shape letters: b rows of a sample, T nearest neighbours that are rescored.
First each shard's own pairs are scored, then rows are put together and ordered (`pairs`). What is finished has receipts; what was
scored before a kill stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.embed.cross_encoder import find_cross_encoder, load_cross_encoder
from graphbuild.embed.encoder_files import EncoderSpec, missing_on_this_machine
from graphbuild.embed.pairs import ROW_BLOCK, ScoredRows, merge, owned, score_shard, scored_name
from graphbuild.errors import OptionError
from graphbuild.store import schemas
from graphbuild.store.files import ShardRange, finished
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest, up_to_date
from graphbuild.store.stage import Made, run_stage, writing
from graphbuild.system.answers import Answer, next_steps, spell_seconds
from graphbuild.system.cluster import Workers, run_tasks
from graphbuild.system.progress import progress, say

_SAMPLED_ROWS = 16_384
_PROBE_PAIRS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class RescoreConfig:
    """What is rescored, and by whom."""

    cross_encoder: str
    """A Sentence Transformers cross-encoder of one output: a name, or a folder."""
    top: int = 32
    """Nearest neighbours a text that are rescored; the rest is left out."""
    workers: int = 0
    """Worker processes on this machine; 0 works in this process."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    overwrite: bool = False
    """Rescore again what was rescored with other options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RescoreEstimate(Answer):
    """What a run is expected to take."""

    pairs: int
    """Pairs of texts; each is scored in both orders."""
    exact: bool
    """Whether the pairs were counted, or estimated from a sample of rows."""
    pairs_per_second: float
    """Measured now, in this process."""
    device: str
    seconds: float
    bytes: int
    """Of the files that are written."""

    def summary(self) -> str:
        """Return one line for people."""
        about = "" if self.exact else "about "
        return (
            f"estimate: {about}{self.pairs:,} pairs, each in both orders, at {self.pairs_per_second:,.1f} pairs/s on {self.device} "
            f"(measured on {_PROBE_PAIRS}): about {spell_seconds(self.seconds)}; disk {self.bytes / 1e6:,.1f} MB"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RescoreResult(Answer):
    """How many pairs were rescored, by which cross-encoder, and what changed."""

    graph_dir: Path
    texts: int
    top: int
    pairs: int
    changed_nearest: float
    """Share of texts that have another nearest neighbour than before."""
    seconds: float
    already_done: bool

    def summary(self) -> str:
        """Return two lines for people."""
        done = "already done, nothing to do; " if self.already_done else ""
        head = f"{self.graph_dir}: {done}{self.pairs:,} pairs rescored, the {self.top:,} nearest of {self.texts:,} texts; "
        head += f"{self.changed_nearest:.1%} of the texts have another nearest one; {spell_seconds(self.seconds)}"
        return f"{head}\n{next_steps('train run --similarity rescored --absent 0', graph_dir=self.graph_dir)}"


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked for, and from what."""

    graph_dir: Path
    manifest: Manifest
    spec: EncoderSpec
    top: int
    options: dict[str, Any]
    inputs: dict[str, str]

    @classmethod
    def read(cls, graph_dir: Path, manifest: Manifest, config: RescoreConfig) -> _Request:
        knn = manifest.require("knn", graph_dir)
        if manifest.dataset.get("name") == "vectors" and not manifest.dataset.get("caption_column"):
            raise OptionError(f"{graph_dir}: its texts are ids, which say nothing. Embed the vectors again with --caption-column.")
        spec, top = find_cross_encoder(config.cross_encoder), min(config.top, Graph.open(graph_dir).k)
        if not top:
            raise OptionError(f"{graph_dir}: the graph is a single text without neighbours; there is nothing to rescore.")
        options = {"cross_encoder": spec.name, "sha256": spec.sha256, "files_digest": spec.files_digest, "top": top}
        columns = (schemas.TEXT_ID, schemas.NEIGHBOR_IDS, schemas.SIMILARITIES)
        inputs = manifest.column_digests("knn", columns) if knn.files else {}
        inputs |= manifest.column_digests("text", (schemas.TEXT_ID, schemas.TEXT), folder=schemas.TEXTS)
        return cls(graph_dir, manifest, spec, top, options, inputs)

    @property
    def ranges(self) -> list[ShardRange]:
        return self.manifest.ranges("knn", schemas.KNN)


def estimate_rescore(graph_dir: Path, config: RescoreConfig) -> RescoreEstimate:
    """Return what `rescore` would take, by counting pairs and scoring a few; changes nothing.

    Raises:
        UserError: As `rescore`.
    """
    manifest = Manifest.load(graph_dir)
    request = _Request.read(graph_dir, manifest, config)
    up_to_date(manifest, graph_dir, "rescore", request.options, request.inputs, overwrite=config.overwrite)
    return _estimate(request)


def rescore(graph_dir: Path, config: RescoreConfig) -> RescoreResult:
    """Score the nearest stored pairs by a cross-encoder, and enter the rescore stage in the manifest.

    Raises:
        ArtifactError: If the knn stage is not done, a file is damaged, or the cross-encoder gives what is no number.
        OptionError: If it is no cross-encoder of one output, or the stage is done with other options.
        SourceError: If the cross-encoder is not found.
    """
    Manifest.load(graph_dir).require("knn", graph_dir)
    with writing(graph_dir) as manifest:
        request = _Request.read(graph_dir, manifest, config)

        def work(key: str) -> Made:
            say(_estimate(request).summary())
            return _rescore(request, key, Workers(count=config.workers, scheduler=config.scheduler))

        built = run_stage(graph_dir, manifest, "rescore", request.options, request.inputs, work, overwrite=config.overwrite)
    stage = manifest.stages["rescore"]
    return RescoreResult(
        graph_dir=graph_dir,
        texts=stage.facts["texts"],
        top=request.top,
        pairs=stage.facts["pairs"],
        changed_nearest=stage.facts["changed_nearest"],
        seconds=stage.seconds,
        already_done=not built,
    )


def _rescore(request: _Request, key: str, workers: Workers) -> Made:
    root, parts = request.graph_dir, {shard: schemas.part_name(schemas.RESCORED, shard.index) for shard in request.ranges}
    done = {shard: receipt for shard, name in parts.items() if (receipt := finished(root, name, key=key)) is not None}
    missing = [shard for shard in parts if shard not in done]
    unscored = [shard for shard in missing if finished(root, scored_name(shard.index), key=key) is None]
    folder, check = root.absolute(), partial(missing_on_this_machine, request.spec)
    calls = [(str(folder), shard, request.spec, request.top, key) for shard in unscored]
    if calls:
        with progress("rescoring", None, unit="pairs") as meter:
            list(run_tasks(score_shard, calls, workers=workers, shared=[folder], report=meter.advance, check=check))
    rows = ScoredRows(root, key, request.ranges, request.top)
    graph = Graph.open(root)
    for shard in missing:
        done[shard] = merge(graph, shard, rows, request.top, key)
    receipts = [done[shard] for shard in parts]
    changed = sum(receipt.facts["changed_nearest"] for receipt in receipts)
    facts = {"pairs": sum(receipt.facts["pairs"] for receipt in receipts), "texts": graph.n_texts}
    return Made(receipts, {**facts, "changed_nearest": changed / graph.n_texts})


def _estimate(request: _Request) -> RescoreEstimate:
    """Count the pairs, of a sample of rows where there are many, and score a few of them."""
    graph, top = Graph.open(request.graph_dir), request.top
    texts_b = np.unique(np.linspace(0, graph.n_texts - 1, min(graph.n_texts, _SAMPLED_ROWS)).astype(np.int64))
    own = 0
    for start in range(0, len(texts_b), ROW_BLOCK):
        some_b = texts_b[start : start + ROW_BLOCK]
        own += int(owned(graph, some_b, graph.rows(some_b).neighbor_ids[:, :top], top).sum())
    pairs, rate, device = round(own / len(texts_b) * graph.n_texts), *_measure(request.spec, graph, texts_b)
    return RescoreEstimate(
        pairs=pairs,
        exact=len(texts_b) == graph.n_texts,
        pairs_per_second=rate,
        device=device,
        seconds=pairs / rate,
        bytes=graph.n_texts * (4 + top * (4 + 2 + 2)),
    )


def _measure(spec: EncoderSpec, graph: Graph, texts_b: NDArray[np.int64]) -> tuple[float, str]:
    """Pairs a second, in both orders, on some of the graph's, and where."""
    scorer = load_cross_encoder(spec)
    chosen = texts_b[np.linspace(0, len(texts_b) - 1, _PROBE_PAIRS).astype(np.int64)]
    nearest = graph.rows(chosen).neighbor_ids[:, 0]
    texts = graph.texts_of(np.concatenate([chosen, nearest]))
    pairs = [(texts[int(first)], texts[int(second)]) for first, second in zip(chosen, nearest, strict=True)]
    # The first call of a process loads kernels, and is no measure.
    scorer.similarities(pairs[:2])
    started = monotonic()
    scorer.similarities(pairs)
    return len(pairs) / max(monotonic() - started, 1e-9), scorer.device
