"""Several graphs over the same samples as one: the weighted mean of their similarities, the largest, or the product.

For the mean of graphs of vectors, the vectors of each, scaled by the root of its weight and laid end to end, have just this mean as
their inner product, so the neighbours of the fused graph are exact as those of any other. Else neighbours are found among those
that the graphs store (`rescored`). A text of a fused graph is what its samples have in all the graphs.
Shape letters: G graphs, S samples, N texts of the fused graph, D vector width. Memory: the vectors of all graphs, in float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphbuild.embed.graph_encoder import FUSED
from graphbuild.errors import OptionError, SourceError
from graphbuild.exchange.fusion import FuseConfig, Fusion
from graphbuild.exchange.relate.config import describe_absent
from graphbuild.exchange.rescored import Rule
from graphbuild.store.manifest import Manifest
from graphbuild.store.mixture import share_weights
from graphbuild.store.stage import writing
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.progress import progress


@dataclass(frozen=True, kw_only=True, slots=True)
class FuseResult(Answer):
    """What was fused, by which rule, and what was counted."""

    graph_dir: Path
    counts: dict[str, int]
    dim: int | None
    """Of the vectors; None where the fused graph has none, and neighbours were found."""
    weights: tuple[float, ...]
    rule: Rule
    facts: dict[str, Any]
    """Of the neighbours that were found."""
    already_done: bool

    def summary(self) -> str:
        """Return a few lines for people."""
        done = ": already done, nothing to do" if self.already_done else ""
        how = " + ".join(f"{weight:.3g}" for weight in self.weights) if self.rule == "mean" else self.rule
        head = f"{self.graph_dir}: {self.counts['samples']:,} samples, {self.counts['texts']:,} texts"
        if self.dim is not None:
            return f"{head}, {self.dim:,} wide, {how}{done}\n{next_steps('graphbuild knn', graph_dir=self.graph_dir)}"
        proven, texts = self.facts["certified_rows"] + self.facts["recomputed_rows"], self.facts["texts"]
        lines = [
            f"{head}, {self.facts['k']:,} neighbours a text, {how}{done}",
            f"{proven:,} of {texts:,} rows ({proven / texts:.1%}) are proven exact, {self.facts['recomputed_rows']:,} of them by a "
            "search of all texts",
            *describe_absent(self.facts),
            next_steps("graphbuild verify", graph_dir=self.graph_dir),
        ]
        return "\n".join(lines)


def fuse_graphs(graphs: Sequence[Path], out: Path, config: FuseConfig) -> FuseResult:
    """Write the graph of a rule of similarities: up to index.faiss for the mean of graphs of vectors, else with its neighbours.

    Args:
        graphs: Two or more, with vectors or neighbours; texts and kept columns are taken from the first.
        out: Where the fused graph goes.
        config: The rule and the weights.

    Raises:
        ArtifactError: If a graph is not finished, or a file of it is missing or damaged.
        OptionError: If weights are wrong, or `out` is one of the graphs or holds another one.
        SourceError: If the graphs hold different samples (how many match is said), or several texts of one sample.
    """
    if len(graphs) < 2:
        raise OptionError("fuse takes two graphs or more.")
    if any(out.resolve() == graph.resolve() for graph in graphs):
        raise OptionError(f"--out {out}: is one of the graphs. Choose another folder.")
    if config.weights and config.rule != "mean":
        raise OptionError(f"--weights are of the mean; --rule {config.rule} has none. Leave them out.")
    weights = share_weights(config.weights, len(graphs))
    origins = [Manifest.load(graph) for graph in graphs]
    by_vectors = config.rule == "mean" and not any(origin.without_vectors for origin in origins)
    if by_vectors and config.k is not None:
        raise OptionError(
            "--k: the mean of graphs of vectors is a graph of vectors. Leave --k out, and give it to `graphbuild knn`."
        )
    for origin, graph in zip(origins, graphs, strict=True):
        for stage in ("text", "lookup", "embed" if by_vectors else "knn"):
            origin.require(stage, graph)
        if "knn" in origin.stages and origin.stages["knn"].config["method"] == FUSED:
            raise SourceError(f"{graph}: was fused without vectors, so not all of its pairs are known. Fuse what it was made of.")
    with progress("fusing", None), writing(out) as manifest:
        if manifest.stages and manifest.dataset.get("name") != FUSED:
            raise OptionError(f"{out}: holds a graph that was not fused. Choose another --out.")
        built = Fusion(list(graphs), origins, weights, out, manifest, config).run(by_vectors=by_vectors)
    return FuseResult(
        graph_dir=out,
        counts=manifest.counts,
        dim=manifest.encoder.get("dim"),
        weights=weights,
        rule=config.rule,
        facts={} if by_vectors else manifest.stages["knn"].facts,
        already_done=not built,
    )
