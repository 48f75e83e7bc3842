"""The knn stage: embedding shards in, neighbour shards out, one at a time, each with a receipt.

Shape letters: N texts, K neighbours kept.
A run that was killed goes on with the shards that are missing, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig, KnnResult
from graphbuild.knn.plan import Estimate, Layout, MemoryPlan, plan_memory
from graphbuild.knn.sketch import FEWEST_TEXTS, fit_correction
from graphbuild.store import schemas
from graphbuild.store.files import Receipt
from graphbuild.store.manifest import Manifest, Stage, stage_key, up_to_date
from graphbuild.store.neighbors import map_shard
from graphbuild.store.parts import Part, require_no_parts
from graphbuild.store.sketches import FACT
from graphbuild.store.stage import Made, run_stage, writing
from graphbuild.system.cluster import Workers
from graphbuild.system.memory import resolve_limit
from graphbuild.system.progress import stages

if TYPE_CHECKING:
    from graphbuild.knn.search import Search

_AUTO_COMPLETE = 4096
_FITTED_TEXTS, _FITTED_SHARDS = 2048, 8
"""Texts whose pairs the sketches' correction is fitted on, and shards that they are of."""
_AUTO_K = 256


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, and from what."""

    graph_dir: Path
    manifest: Manifest
    config: KnnConfig
    layout: Layout
    options: dict[str, Any]
    inputs: dict[str, str]
    ivf_recall: float | None
    """Recall to reach through the index; None for an exact search."""

    @classmethod
    def read(cls, graph_dir: Path, manifest: Manifest, config: KnnConfig) -> Request:
        """Read what `config` asks for, with the digests of what is read."""
        count = sum(receipt.rows for receipt in manifest.require("embed", graph_dir).files.values())
        layout = Layout(
            texts=count,
            dim=manifest.encoder["dim"],
            k=stored_k(config.k, count),
            sketch_dim=config.sketch_dim,
            shard_texts=max(map(len, manifest.ranges("embed", schemas.EMBEDDINGS))),
        )
        inputs = manifest.column_digests("embed", [schemas.TEXT_ID, schemas.EMBEDDING])
        if config.sketch_dim:
            inputs |= manifest.column_digests("text", [schemas.SAMPLE_COUNT])
        options = {"method": "exact", "k": layout.k, "sketch_dim": config.sketch_dim, "shard_size": manifest.shard_size}
        ivf_recall = _ivf_recall(manifest, graph_dir, config)
        if ivf_recall is not None:
            options |= {"method": "ivf", "recall": ivf_recall}
            inputs |= {name: receipt.digest for name, receipt in manifest.stages["index"].files.items()}
        return cls(graph_dir, manifest, config, layout, options, inputs, ivf_recall)

    def work(self, _key: str) -> Made:
        """Search for what is missing."""
        _say_k(self.config.k, self.layout)
        search = self.search()
        receipts = search.run()
        return Made(receipts, {**_facts(self.config, self.layout, receipts, search.reused), **self._correction(search, receipts)})

    def _correction(self, search: Search, receipts: Sequence[Receipt]) -> dict[str, list[float]]:
        """What sketches leave out, fitted on some texts; nothing where there are no sketches, or few texts."""
        if not self.layout.sketch_dim or self.layout.texts <= FEWEST_TEXTS:
            return {}
        ids_n = _spread_texts(receipts)
        codes, scales, last = [], [], []
        for shard in (map_shard(self.graph_dir, receipt, texts=self.layout.texts) for receipt in receipts):
            rows, own = shard.rows, ids_n - shard.first_id
            places = own[(own >= 0) & (own < len(shard.rows.sketch_scale))]
            codes.append(rows.sketch[places])
            scales.append(rows.sketch_scale[places])
            last.append(rows.similarities[places, -1])
        return {
            FACT: list(
                fit_correction(search.embeddings(ids_n), np.concatenate(codes), np.concatenate(scales), np.concatenate(last))
            )
        }

    def plan(self) -> MemoryPlan:
        """Plan how memory is divided, and on which device.

        Raises:
            OptionError: If the memory limit cannot be read, or there is no such device.
            ResourceError: If the memory limit is too small to work within.
        """
        from graphbuild.knn.engines.devices import resolve_device

        device = "cpu" if self.ivf_recall is not None else resolve_device(self.config.device)
        processes = 1 if self.config.scheduler else self.config.workers if self.config.workers > 1 else 0
        return plan_memory(self.layout, resolve_limit(self.config.memory_limit), workers=processes, device=device)

    def search(self, part: Part | None = None) -> Search:
        """Return the work that is left; with a part, that of its shards."""
        from graphbuild.knn.extension import find_extension
        from graphbuild.knn.search import Search

        memory = self.plan()
        return Search(
            self.graph_dir,
            self.manifest,
            self.layout,
            memory,
            stage_key(self.options, self.inputs),
            workers=Workers(count=self.config.workers, scheduler=self.config.scheduler),
            ivf_recall=self.ivf_recall,
            extension=find_extension(self.graph_dir, self.manifest, self.options, self.layout.texts, memory.device),
            part=part,
        )


def build_knn(graph_dir: Path, config: KnnConfig) -> KnnResult:
    """Find the k nearest texts of every text and enter the knn stage in the manifest.

    Raises:
        ArtifactError: If the embeddings are missing or damaged, or hold a zero or non-finite vector (the text is named).
        OptionError: If the stage is done with other options, or the memory limit cannot be read.
        ResourceError: If the memory limit is too small to work within.
    """
    Manifest.load(graph_dir).require("embed", graph_dir)
    with (
        stages("checking vectors", "sketch", "choosing lists", "neighbours"),
        writing(graph_dir, check=lambda: require_no_parts(graph_dir, "knn")) as manifest,
    ):
        request = Request.read(graph_dir, manifest, config)
        options, inputs = request.options, request.inputs
        built = run_stage(graph_dir, manifest, "knn", options, inputs, request.work, overwrite=config.overwrite, check=request.plan)
    return _result(graph_dir, config, manifest.stages["knn"], request.layout.texts, already_done=not built)


def _spread_texts(receipts: Sequence[Receipt]) -> NDArray[np.int64]:
    """Some texts of shards that lie evenly among all, ascending: few files are read, however many there are."""
    rows = np.array([receipt.rows for receipt in receipts])
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _FITTED_SHARDS)).astype(int))
    ids = np.concatenate([np.arange(rows[:shard].sum(), rows[: shard + 1].sum()) for shard in chosen])
    return np.sort(np.random.default_rng(0).choice(ids, min(len(ids), _FITTED_TEXTS), replace=False))


def _facts(config: KnnConfig, layout: Layout, receipts: Sequence[Receipt], reused: int) -> dict[str, Any]:
    recomputed = sum(receipt.facts["recomputed_rows"] for receipt in receipts)
    facts: dict[str, Any] = {
        "k_asked": config.k,
        "k": layout.k,
        "texts": layout.texts,
        "complete": layout.k == layout.texts - 1,
        "recomputed_rows": recomputed,
        "certified_rows": layout.texts - recomputed,
        "precision": ", ".join(sorted({receipt.facts["precision"] for receipt in receipts})),
        "reused_shards": reused,
        "extended_shards": sum(bool(receipt.facts.get("extended")) for receipt in receipts),
    }
    if "ivf" in receipts[0].facts:
        facts |= {"ivf": receipts[0].facts["ivf"], "certified_rows": recomputed}
    return facts


def estimate_knn(graph_dir: Path, config: KnnConfig) -> Estimate:
    """Return what `build_knn` would take, by a calibration of about five seconds; changes nothing.

    Raises:
        ArtifactError: If the embeddings are missing or damaged.
        OptionError: If the stage is done with other options, or the memory limit cannot be read.
        ResourceError: If the memory limit is too small to work within.
    """
    manifest = Manifest.load(graph_dir)
    request = Request.read(graph_dir, manifest, config)
    if request.ivf_recall is not None:
        raise OptionError("--dry-run tells what the exact search takes, and ivf beside it. Leave out --method ivf.")
    up_to_date(manifest, graph_dir, "knn", request.options, request.inputs, overwrite=config.overwrite)
    return request.search().estimate(recall=config.recall)


def stored_k(asked: int | str, count: int) -> int:
    """Return the number of neighbours that are stored for each of `count` texts: never more than the other texts there are."""
    if asked == "auto":
        asked = count - 1 if count <= _AUTO_COMPLETE else _AUTO_K
    return count - 1 if asked == "all" else min(int(asked), count - 1)


def _ivf_recall(manifest: Manifest, graph_dir: Path, config: KnnConfig) -> float | None:
    """The recall to reach through the index, or None where the search is exact: as asked, or because the index is."""
    if config.method == "exact":
        return None
    if config.workers > 1 or config.scheduler is not None:
        raise OptionError("--method ivf searches in this process. Leave out --workers and --scheduler.")
    if manifest.require("index", graph_dir).config["kind"] == "flat":
        click.echo("ivf: the index of so few texts is flat, which is exact; the exact search is used and recorded", err=True)
        return None
    return config.recall


def _say_k(asked: int | str, layout: Layout) -> None:
    if layout.k < layout.texts - 1 and asked == "auto":
        click.echo(f"k: {layout.k} of {layout.texts - 1:,} other texts (auto)", err=True)
    elif isinstance(asked, int) and asked > layout.k:
        click.echo(f"k: {asked:,} asked, but there are only {layout.k:,} other texts: all are stored", err=True)


def _result(graph_dir: Path, config: KnnConfig, stage: Stage, count: int, *, already_done: bool) -> KnnResult:
    return KnnResult(
        graph_dir=graph_dir,
        texts=count,
        k=stage.facts["k"],
        k_asked=config.k,
        complete=stage.facts["complete"],
        sketch_dim=stage.config["sketch_dim"],
        seconds=stage.seconds,
        reused_shards=stage.facts["reused_shards"],
        extended_shards=stage.facts.get("extended_shards", 0),
        shards=len(stage.files),
        recomputed_rows=stage.facts["recomputed_rows"],
        precision=stage.facts["precision"],
        already_done=already_done,
    )
