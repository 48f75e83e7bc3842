"""Images whose sample ids repeat, told apart as the graph tells its samples apart (`graphbuild embed --on-duplicate`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.errors import ArtifactError
from graphbuild.store.arrays import Bool, Int64
from graphbuild.store.graph import Graph
from graphbuild.store.hashes import hash_strings
from graphbuild.store.manifest import Manifest
from graphbuild.store.repeats import OnDuplicate, numbered, occurrences
from train.data.base import ImageSource
from train.data.subset import Subset
from train.data.tar import MappedIds

_NUMBER = re.compile(r"(.*)#([1-9]\d{0,8})", re.DOTALL)
_KEPT = ("image_column", "id_column", "random_order_note")
"""What callers ask of a source, beside what every source has."""


class DistinctImages(Subset):
    """The images of a source under ids that differ."""

    def __init__(self, source: ImageSource, before: Int64, rule: OnDuplicate) -> None:
        """Number repeated ids, or leave out all but the first image of each.

        Args:
            source: The images.
            before: Of each image, how many of the same id come before it; (N,).
            rule: `first` or `suffix`.
        """
        kept = np.flatnonzero(before == 0) if rule == "first" else np.arange(len(source))
        super().__init__(source, kept)
        self.name = source.name
        skipped: Mapping[str, int] = getattr(source, "skipped", {})
        self.skipped = {**skipped, "images whose id came before": len(source) - len(kept)}
        """What was left out."""
        if rule == "suffix":
            self.sample_ids = [numbered(one, count) for one, count in zip(self.sample_ids, before.tolist(), strict=True)]
        for name in _KEPT:
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))


def settle_repeats(source: ImageSource, rule: OnDuplicate | None) -> ImageSource:
    """Return the images under the ids that a graph of this rule has."""
    if rule is None or rule == "error":
        return source
    ids = source.sample_ids
    before = occurrences(ids.hashes() if isinstance(ids, MappedIds) else hash_strings(ids))
    return DistinctImages(source, before, rule) if before.any() else source


def reading_rules(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `open_images` must do as `embed` did, from a manifest's `dataset`."""
    return {name: dataset[name] for name in ("on_duplicate", "skip_broken") if dataset.get(name)}


def rules_of_graph(graph_dir: str | None) -> dict[str, Any]:
    """Return the same of a run's graph; nothing where that is gone, which is told by whoever needs it."""
    try:
        return reading_rules(Manifest.load(Path(graph_dir)).dataset) if graph_dir else {}
    except ArtifactError:
        return {}


def miscounted(source: ImageSource, graph: Graph) -> Bool:
    """Tell of which images the graph has more samples under one id than there are images; (N,).

    An image of such an id is missing here, so that those after it would take each other's captions.
    """
    out = np.zeros(len(source), np.bool_)
    if graph.manifest.dataset.get("on_duplicate") != "suffix":
        return out
    parts = [_NUMBER.fullmatch(sample_id) for sample_id in source.sample_ids]
    plain = [found[1] if found else sample_id for found, sample_id in zip(parts, source.sample_ids, strict=True)]
    after = [numbered(one, int(found[2]) if found else 1) for found, one in zip(parts, plain, strict=True)]
    missing = ~np.isin(hash_strings(after), hash_strings(source.sample_ids)) & graph.sample_texts(after).known
    ids = {plain[row] for row in np.flatnonzero(missing)}
    return np.fromiter((one in ids for one in plain), np.bool_, len(plain)) if ids else out
