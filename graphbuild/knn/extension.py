"""The neighbours that a graph had before texts were appended: which of its shards can be extended, and their rows.

A row's K nearest among all texts are among its K nearest of the older ones and the new texts. So old rows are compared with
new texts only, wherever the same K is kept; the result is that of a search made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.knn.engines.base import Neighbors
from graphbuild.knn.engines.choose import in_row_blocks
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, damage
from graphbuild.store.manifest import Manifest
from graphbuild.store.neighbors import map_shard


@dataclass(frozen=True, slots=True)
class Extension:
    """Old shards to go on from; small, because it travels with each task."""

    first_new: int
    """The first text that their rows were not compared with."""
    receipts: dict[int, Receipt]
    """By number of the shard; those that are intact."""

    def stored(self, graph_dir: Path, shard: ShardRange) -> Neighbors | None:
        """Return the old rows of a shard; None where there are none to go on from, or a killed run has replaced them already."""
        receipt = self.receipts.get(shard.index)
        if receipt is None or damage(graph_dir, receipt):
            return None
        rows = map_shard(graph_dir, receipt, texts=self.first_new).rows
        return Neighbors(np.array(rows.neighbor_ids), np.array(rows.similarities), 0)


def find_extension(graph_dir: Path, manifest: Manifest, options: Mapping[str, Any], texts: int, device: str) -> Extension | None:
    """Return what an exact search on a CPU can go on from, or None: nothing was appended, or another K is kept."""
    old = manifest.superseded.get("knn")
    if old is None or device != "cpu" or old.config["method"] != "exact" or old.config["k"] != options["k"]:
        return None
    if options["method"] != "exact" or in_row_blocks(texts, options["k"]):
        return None
    current = manifest.column_digests("embed", [schemas.TEXT_ID, schemas.EMBEDDING])
    read = {name: digest for name, digest in old.inputs.items() if name.startswith(f"{schemas.EMBEDDINGS}/")}
    if not read or any(current.get(name) != digest for name, digest in read.items()):
        return None
    files = [receipt for _, receipt in sorted(old.files.items())]
    intact = {index: receipt for index, receipt in enumerate(files) if not damage(graph_dir, receipt)}
    return Extension(sum(receipt.rows for receipt in files), intact)
