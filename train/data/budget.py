"""Training on a share of each class: which images, by their ids and the run's seed alone.

Of two budgets with one seed the smaller is part of the larger, so that runs of several budgets see nested sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Bool, Int64
from graphbuild.system.progress import say
from train.config import TrainConfig
from train.data.base import ImageSource, encode_labels
from train.data.held_out import default_label_column, held_out_mask


def trained_mask(source: ImageSource, config: TrainConfig, dataset: Mapping[str, Any]) -> Bool | None:
    """Return which images of a source a run is trained on, as far as its options say, (N,); None if it is all.

    Args:
        source: The images.
        config: Of the run.
        dataset: What the graph's manifest says of its data set; nothing without a graph.

    Raises:
        OptionError: If nothing or everything would be held out, or --per-class knows no classes.
        SourceError: If --val-ids names images that the source does not have.
    """
    held_out = held_out_mask(source, config.val_ids, config.val_fraction)
    if held_out is not None:
        say(f"{source.name}: {int(held_out.sum()):,} of {len(source):,} images are held out for `train eval`")
    told = config.budget
    if not told:
        return None if held_out is None else ~held_out
    kept = np.ones(len(source), np.bool_) if held_out is None else ~held_out
    rows = np.flatnonzero(kept)
    codes = _classes(source, config, dataset)[rows]
    kept[rows] = _within_budget(np.array([source.sample_ids[row] for row in rows.tolist()]), codes, config)
    short = int((np.bincount(codes[codes >= 0]) < (config.per_class or 0)).sum())
    less = f"; {short:,} classes have fewer" if short else ""
    say(f"{source.name}: {told}: {int(kept.sum()):,} of {len(rows):,} images are trained on{less}")
    return kept


def _classes(source: ImageSource, config: TrainConfig, dataset: Mapping[str, Any]) -> Int64:
    """The class of every image, -1 where it has none; without classes, one for all of --fraction."""
    column = default_label_column(config, dataset, source)
    if column is not None:
        return source.labels(column).codes
    if (ids := source.class_ids()) is not None:
        return encode_labels(ids).codes
    if config.per_class is not None:
        raise OptionError(
            f"--per-class {config.per_class}: {source.name} says no classes. Name their column with --label-column: "
            f"{', '.join(source.label_columns()) or 'none exist'}. Or use --fraction, which takes a share of all images."
        )
    return np.zeros(len(source), np.int64)


def _within_budget(ids: np.ndarray, codes: Int64, config: TrainConfig) -> Bool:
    """Which images are the first of their class in the order of their ids' hashes; those without a class never are."""
    hashes = np.array([xxhash.xxh3_64_intdigest(str(name).encode(), seed=config.seed) for name in ids], np.uint64)
    order = np.lexsort((hashes, codes))
    counts = np.unique(codes, return_counts=True)[1]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    # At least one of each class, however small the share.
    most = np.full(len(counts), config.per_class) if config.per_class else np.maximum(1, np.round(config.fraction * counts))
    kept = np.zeros(len(ids), np.bool_)
    kept[order] = rank < np.repeat(most, counts)
    return kept & (codes >= 0)
