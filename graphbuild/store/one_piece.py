"""What makes neighbour shards one graph: they follow one another, cover all texts, and were made from what the directory holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.store import schemas
from graphbuild.store.manifest import Manifest
from graphbuild.store.neighbors import Shard


def require_current_inputs(graph_dir: Path, manifest: Manifest, stage: str) -> None:
    """Compare what a stage read, column by column, with what the directory now holds."""
    current = {
        f"{name}:{column}": digest
        for other, entry in manifest.stages.items()
        if other != stage
        for name, receipt in entry.files.items()
        for column, digest in receipt.columns.items()
    }
    for name, digest in manifest.stages[stage].inputs.items():
        if ":" in name and current.get(name) != digest:
            raise ArtifactMismatch(
                f"{graph_dir}: the neighbours were computed from another {name} (digest {digest[:12]}) than the graph now "
                f"holds ({current.get(name, 'none')[:12]}). Run `graphbuild {stage} --overwrite` again."
            )


def listed_texts(graph_dir: Path, manifest: Manifest) -> int:
    """Count the texts that have vectors; an imported graph has texts alone."""
    stage, folder = ("embed", schemas.EMBEDDINGS) if "embed" in manifest.stages else ("text", schemas.TEXTS)
    return sum(receipt.rows for receipt in manifest.require(stage, graph_dir).in_folder(folder))


def require_one_piece(graph_dir: Path, shards: Sequence[Shard], listed: int) -> None:
    """Check that shards follow one another, are of one shape, and cover all texts."""
    expected = 0
    first = shards[0].rows
    for number, shard in enumerate(shards):
        shape = (shard.rows.neighbor_ids.shape[1], shard.rows.sketch.shape[1])
        if shard.first_id != expected or shape != (first.neighbor_ids.shape[1], first.sketch.shape[1]):
            raise ArtifactError(
                f"{graph_dir / schemas.part_name(schemas.KNN, number)} starts at text {shard.first_id} with (k, sketch) {shape}; "
                f"expected text {expected}, as wide as the first shard. Run `graphbuild knn --overwrite` again."
            )
        expected += len(shard.rows.sketch_scale)
    if listed != expected:
        raise ArtifactMismatch(
            f"{graph_dir}: neighbours of {expected:,} texts, but {listed:,} texts are there. "
            "Run `graphbuild knn --overwrite` again."
        )
