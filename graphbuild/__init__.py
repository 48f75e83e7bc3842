"""Exact caption-similarity graphs: captions in, a directory of embeddings and nearest neighbours out.

Importing this package loads nothing heavy; each command, and `graphbuild.open`, loads what it needs.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphbuild.view import GraphView

__version__ = "0.1.0"
__all__ = ["open"]


def open(graph_dir: str | PathLike[str]) -> GraphView:
    """A graph directory as lazy Polars tables: `.texts`, `.samples`, `.edges`, `.embeddings`; see `graphbuild.view`.

    >>> import polars as pl
    >>> import graphbuild
    >>> graph = graphbuild.open(example_graph)
    >>> graph.texts.select("text_id", "text", "sample_count").collect().rows()
    [(0, 'a dog', 3), (1, 'a puppy', 1), (2, 'a plane', 1), (3, 'a jet', 1)]
    >>> graph.edges.filter(pl.col("rank") == 1).select("src", "dst").collect(engine="streaming").rows()
    [(0, 1), (1, 0), (2, 3), (3, 2)]
    >>> graph.neighbors("a dog", count=1)["text"].to_list()
    ['a puppy']

    Raises:
        ArtifactError: If there is no graph.
    """
    from pathlib import Path

    from graphbuild.view import GraphView

    return GraphView(Path(graph_dir))
