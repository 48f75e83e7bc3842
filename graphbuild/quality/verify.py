"""Is a graph directory what its manifest says? Digests, invariants, and exactness on a sample.

Shape letters: n texts of a shard, K neighbours stored. The first kind of fault found ends the check: what follows from a
damaged file says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphbuild.embed.graph_encoder import FUSED
from graphbuild.errors import ArtifactError, SourceError
from graphbuild.knn.blockwise import Similarity
from graphbuild.quality.recall import Quality, measure
from graphbuild.quality.rescored import RESCORE_REMEDY, check_rescored, require_symmetric
from graphbuild.quality.verify_texts import EMBED_REMEDY, check_samples, check_text_ids, check_texts
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, damage, read_receipt, receipt_path
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest, Stage
from graphbuild.store.neighbors import Rows
from graphbuild.store.verified import repair_by
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.progress import progress, stages

_LEAST_SAMPLE = 1000
_ROW_BLOCK = 8192
_NAMED = 3
_PARTITION_REMEDY = repair_by("partition")
_KNN_REMEDY = repair_by("knn")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyResult(Answer):
    """What was checked and found right."""

    graph_dir: Path
    files: int
    bytes: int
    texts: int
    samples: int
    k: int | None
    """None where the knn stage is not there."""
    complete: bool
    method: str | None
    recomputed_rows: int | None
    quality: Quality | None
    """None where there are no neighbours to measure."""
    unmeasured: str | None = None
    """Why neighbours could not be compared with a brute force, where there are some."""

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [f"{self.graph_dir}: {self.files} files, {self.bytes / 1e6:,.1f} MB, digests are right"]
        lines.append(f"{self.texts:,} texts, {self.samples:,} sample rows: ids, hashes, counts and lengths are right")
        if self.k is None:
            lines.append("neighbours: the knn stage is not there (`graphbuild knn` makes it)")
        elif self.k == 0:
            lines.append("neighbours: none, because there is only one text")
        else:
            width = "all other texts" if self.complete else f"{self.k:,} a text"
            lines.append(f"neighbours ({width}, {self.method}): order, range, self and symmetry are right")
            lines += self._quality_lines(self.quality) if self.quality else []
            lines += [f"recall: not measured, for {self.unmeasured}"] if self.unmeasured else []
        commands = ("graphbuild knn",) if self.k is None else ("graphbuild report", "train run")
        return "\n".join([*lines, next_steps(*commands, graph_dir=self.graph_dir)])

    @staticmethod
    def _quality_lines(quality: Quality) -> list[str]:
        lines = [f"recall against a float64 brute force on {quality.rows:,} rows: {quality.recall:.6f}"]
        for name, error in (("random pairs", quality.sketch_error), ("stored edges", quality.sketch_error_edges)):
            if error is not None:
                shown = ", ".join(f"{quantile} {value:.4f}" for quantile, value in error.items())
                lines.append(f"sketch error on {name}: {shown}")
        return lines


Known = Callable[[Graph], Similarity | None]
"""Tells the similarity of any texts of a graph without vectors; None where only its edges say."""


def verify_graph(
    graph_dir: Path, *, exact_sample: int = _LEAST_SAMPLE, seed: int = 0, known: Known = lambda _graph: None
) -> VerifyResult:
    """Check everything that a graph directory promises.

    Args:
        graph_dir: With or without the knn stage.
        exact_sample: Rows compared with a float64 brute force; at least 1,000, or all if there are fewer.
        seed: Of the sample.
        known: What a graph without vectors is compared by; a SourceError of it is told, and no fault of the graph.

    Raises:
        ArtifactError: If a file is missing or damaged, or breaks an invariant; the message names it.
        ArtifactMismatch: If files do not belong together.
    """
    manifest = Manifest.load(graph_dir)
    knn = manifest.stages.get("knn")
    for stage in ("text",) if manifest.without_vectors else ("text", "embed"):
        manifest.require(stage, graph_dir)
    receipts = [receipt for stage in manifest.stages.values() for receipt in stage.files.values()]
    receipts += _picture_receipts(graph_dir, manifest)
    with _remedies(manifest), stages("digests", "texts and samples", "rows", "brute force"):
        _check_digests(graph_dir, receipts)
        with progress("texts and samples", None):
            texts = check_text_ids(graph_dir, manifest) if manifest.without_vectors else check_texts(graph_dir, manifest)
            samples = check_samples(graph_dir, manifest, texts)
        quality, unmeasured = None, None
        if knn:
            graph = Graph.open(graph_dir)
            _check_neighbors(graph, manifest, seed)
            quality, unmeasured = _measure(graph, manifest, max(exact_sample, _LEAST_SAMPLE), seed, known)
            if "rescore" in manifest.stages:
                check_rescored(graph, manifest, seed)
    return VerifyResult(
        graph_dir=graph_dir,
        files=len(receipts),
        bytes=sum(receipt.bytes for receipt in receipts),
        texts=texts,
        samples=samples,
        k=knn.config["k"] if knn else None,
        complete=bool(knn and knn.facts.get("complete")),
        method=knn.config["method"] if knn else None,
        recomputed_rows=knn.facts.get("recomputed_rows") if knn else None,
        quality=quality,
        unmeasured=unmeasured,
    )


@contextmanager
def _remedies(manifest: Manifest) -> Iterator[None]:
    """Have errors name the command that made the graph, where one made texts and neighbours alike."""
    try:
        yield
    except ArtifactError as error:
        if not manifest.without_vectors:
            raise
        message = str(error)
        for command in ("`graphbuild embed`", "`graphbuild knn`"):
            message = message.replace(command, manifest.maker)
        raise type(error)(message) from None


def _picture_receipts(graph_dir: Path, manifest: Manifest) -> list[Receipt]:
    """Receipts of pictures that were drawn into the graph; those of other data sets lie elsewhere, and are not ours."""
    images = manifest.dataset.get("images")
    if not images or Path(images["path"]).is_absolute():
        return []
    records = receipt_path(graph_dir, f"{schemas.IMAGES}/any").parent.glob("*.json")
    return [receipt for path in sorted(records) if (receipt := read_receipt(path)) is not None]


def _check_digests(graph_dir: Path, receipts: list[Receipt]) -> None:
    found: dict[str, str] = {}
    with progress("digests", sum(receipt.bytes for receipt in receipts) >> 20, unit="MiB") as meter:
        for receipt in receipts:
            if problem := damage(graph_dir, receipt):
                found[receipt.path] = f"{graph_dir / receipt.path} {problem}"
            meter.advance(receipt.bytes >> 20)
    if found:
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        remedies = {
            f"{schemas.KNN}/": _KNN_REMEDY,
            f"{schemas.RESCORED}/": RESCORE_REMEDY,
            f"{schemas.PARTITION}/": _PARTITION_REMEDY,
        }
        remedy = next((text for folder, text in remedies.items() if all(path.startswith(folder) for path in found)), EMBED_REMEDY)
        raise ArtifactError(f"{'; '.join(list(found.values())[:_NAMED])}{more}. {remedy}")


def _check_neighbors(graph: Graph, manifest: Manifest, seed: int) -> None:
    graph_dir = graph.path
    with progress("rows", graph.n_texts, unit="texts") as meter:
        for path, first, block in _row_blocks(graph_dir, manifest, graph):
            _check_rows(path, first, block)
            meter.advance(len(block.sketch_scale))
    require_symmetric(graph, graph_dir / schemas.KNN, seed, _KNN_REMEDY)


def _measure(graph: Graph, manifest: Manifest, rows: int, seed: int, known: Known) -> tuple[Quality | None, str | None]:
    """What the neighbours are worth, or why that cannot be told; neither where there are none."""
    graph_dir = graph.path
    if graph.k == 0:
        return None, None
    similarity = None
    if "embed" not in manifest.stages:
        try:
            similarity = known(graph)
        except SourceError as error:
            return None, str(error)
        if similarity is None:
            # Edges that were imported are the nearest of nothing that is stored.
            return None, None
    quality = measure(graph, rows=rows, seed=seed, similarity=similarity)
    if quality.inexact:
        raise ArtifactError(
            f"{_file_of(graph_dir, manifest, quality.worst_inexact_row)}: {quality.inexact:,} similarities of {quality.rows:,} "
            f"sampled rows are over one float16 step off (text_id {quality.worst_inexact_row} among them). {_KNN_REMEDY}"
        )
    if quality.recall < 1 and _promises_exact(manifest.stages["knn"], graph.n_texts):
        raise ArtifactError(
            f"{_file_of(graph_dir, manifest, quality.worst_row)}: the neighbours of text_id {quality.worst_row} are not "
            f"the nearest (recall {quality.recall:.6f} on {quality.rows:,} rows, and exact means 1). {_KNN_REMEDY}"
        )
    return quality, None


def _promises_exact(knn: Stage, texts: int) -> bool:
    if knn.config["method"] == FUSED:
        return bool(knn.facts["certified_rows"] + knn.facts["recomputed_rows"] >= texts)
    return bool(knn.config["method"] != "ivf")


def _row_blocks(graph_dir: Path, manifest: Manifest, graph: Graph) -> Iterator[tuple[Path, int, Rows]]:
    """Path, first text id and rows of blocks of the neighbour shards."""
    start = 0
    for receipt in manifest.files("knn", schemas.KNN):
        for first in range(start, start + receipt.rows, _ROW_BLOCK):
            last = min(first + _ROW_BLOCK, start + receipt.rows)
            yield graph_dir / receipt.path, first, graph.rows(np.arange(first, last))
        start += receipt.rows


def _check_rows(path: Path, first: int, rows: Rows) -> None:
    """Every row: not the text itself, none twice, ordered; a sketch no longer than a unit vector."""
    ids_nK, values_nK = rows.neighbor_ids, rows.similarities
    own_n1 = np.arange(first, first + len(ids_nK))[:, None]
    sorted_nK = np.sort(ids_nK, axis=1)
    falls = values_nK[:, 1:] < values_nK[:, :-1]
    ties_up = (values_nK[:, 1:] == values_nK[:, :-1]) & (ids_nK[:, 1:] > ids_nK[:, :-1])
    lengths_n = np.sqrt(np.square(rows.sketch.astype(np.float32)).sum(axis=1)) * rows.sketch_scale
    faults = {
        "holds itself": (ids_nK == own_n1).any(axis=1),
        "holds a neighbour twice": (sorted_nK[:, 1:] == sorted_nK[:, :-1]).any(axis=1),
        "is not ordered by similarity, then id": ~(falls | ties_up).all(axis=1),
        # The sketch is a projection of a unit vector, quantised.
        "has a sketch longer than its vector, or not finite": ~(lengths_n <= 1 + 1 / 32),
    }
    for what, bad_n in faults.items():
        if bad_n.any():
            raise ArtifactError(f"{path}: the row of text_id {first + int(bad_n.argmax())} {what}. {_KNN_REMEDY}")


def _file_of(graph_dir: Path, manifest: Manifest, text_id: int | None) -> Path:
    start = 0
    for receipt in manifest.files("knn", schemas.KNN):
        start += receipt.rows
        if text_id is not None and text_id < start:
            return graph_dir / receipt.path
    return graph_dir / schemas.KNN
