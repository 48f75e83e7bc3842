"""One part of the knn stage: every N-th shard, for arrays of jobs without a scheduler."""

from __future__ import annotations

from pathlib import Path

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import Request
from graphbuild.store import schemas
from graphbuild.store.files import finished
from graphbuild.store.manifest import Manifest, stage_key, up_to_date
from graphbuild.store.parts import Part, PartResult, working_at


def build_knn_part(graph_dir: Path, config: KnnConfig, part: Part) -> PartResult:
    """Search for the neighbours of a part's texts and write its shards; the manifest is left alone.

    Raises:
        LockedError: If another process is at this part.
        OptionError: If the stage is done with other options, or an option does not go with parts.
        ArtifactError: If the embeddings are missing or damaged.
    """
    if config.overwrite or config.scheduler is not None or config.workers or config.method != "exact":
        raise OptionError("--part is an exact search in one process. Leave out --overwrite, --workers, --scheduler and --method.")
    manifest = Manifest.load(graph_dir)
    with working_at(graph_dir, "knn", part):
        request = Request.read(graph_dir, manifest, config)
        if up_to_date(manifest, graph_dir, "knn", request.options, request.inputs, overwrite=False):
            return PartResult(graph_dir=graph_dir, stage="knn", part=str(part), written=0, open=0)
        search = request.search(part)
        written = search.missing
        search.run()
    key = stage_key(request.options, request.inputs)
    names = [schemas.part_name(schemas.KNN, shard.index) for shard in manifest.ranges("embed", schemas.EMBEDDINGS)]
    still_open = sum(finished(graph_dir, name, key=key) is None for name in names)
    return PartResult(graph_dir=graph_dir, stage="knn", part=str(part), written=written, open=still_open)
