"""Exact caption-similarity graphs: captions in, a directory of embeddings and nearest neighbours out.

Importing this package loads nothing heavy; each command, and `graphbuild.open`, loads what it needs.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.knn.compiled import keep_compiled_kernels

if TYPE_CHECKING:
    from graphbuild.embed.build import build_embeddings
    from graphbuild.embed.config import EmbedConfig
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn
    from graphbuild.quality.view import GraphView

__version__ = "0.1.0"
__all__ = ["EmbedConfig", "KnnConfig", "build_embeddings", "build_knn", "open"]
_LAZY = {
    "EmbedConfig": "graphbuild.embed.config",
    "KnnConfig": "graphbuild.knn.config",
    "build_embeddings": "graphbuild.embed.build",
    "build_knn": "graphbuild.knn.stage",
}

keep_compiled_kernels(Path(__file__).parent)


def __getattr__(name: str) -> Any:
    # Public names are loaded when they are asked for, so that importing the package stays light.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open(graph_dir: str | PathLike[str], *, verify: bool | None = None) -> GraphView:
    """Return a graph directory as lazy Polars tables: `.texts`, `.samples`, `.edges`, `.embeddings`; see `graphbuild.quality.view`.

    >>> import polars as pl
    >>> import graphbuild
    >>> graph = graphbuild.open(example_graph)
    >>> graph.texts.select("text_id", "text", "sample_count").collect().rows()
    [(0, 'a dog', 3), (1, 'a puppy', 1), (2, 'a plane', 1), (3, 'a jet', 1)]
    >>> graph.edges.filter(pl.col("rank") == 1).select("src", "dst").collect(engine="streaming").rows()
    [(0, 1), (1, 0), (2, 3), (3, 2)]
    >>> graph.neighbors("a dog", count=1)["text"].to_list()
    ['a puppy']

    Args:
        graph_dir: The graph directory; made absolute at once.
        verify: Whether files are compared with their digests before they are read, once for each version of a file; None:
            unless `$GRAPHBUILD_VERIFY` is 0. Ids and offsets are checked in any case.

    Raises:
        ArtifactError: If there is no graph.
    """
    from graphbuild.quality.view import GraphView

    return GraphView(Path(graph_dir), verify=verify)
