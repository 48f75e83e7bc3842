"""Labels, groups and WordNet: which columns are looked at, and what their agreement is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphbuild.quality.health import labels, verdicts
from graphbuild.quality.health.result import HealthConfig
from graphbuild.quality.health.sample import Findings, RowSample
from graphbuild.quality.samples import has_several_captions
from graphbuild.store import schemas
from graphbuild.store.frames import Frames
from graphbuild.store.hierarchy import read_hierarchy
from graphbuild.store.images import recorded

_PURITY_RANKS = (1, 5, 10)


def agreement(view: Frames, sample: RowSample, config: HealthConfig) -> Findings:
    """Measure whether neighbours agree with what is known about the samples.

    Raises:
        SourceError: If a column or the WordNet file is not there.
    """
    found = Findings()
    columns = _label_columns(view, config)
    for column in columns:
        found.add(_labels(view, sample, column))
    if (group := _group_column(view, config, columns)) is not None:
        found.add(_groups(view, sample, group))
    if config.wordnet is not None:
        found.add(_wordnet(view, sample, config.wordnet))
    return found


def _label_columns(view: Frames, config: HealthConfig) -> tuple[str, ...]:
    if config.label_columns:
        return config.label_columns
    usual = _usual(view, labels.LABEL_NAMES)
    images = recorded(view.manifest.dataset)
    label = images.label_column if images else None
    return (label, *usual) if label is not None and label in view.graph.sample_columns and label not in usual else usual


def _group_column(view: Frames, config: HealthConfig, label_columns: tuple[str, ...]) -> str | None:
    """The column of what belongs together; one that was named as a label is none, whatever it is called."""
    if config.group_column is not None:
        return config.group_column
    usual = [name for name in _usual(view, labels.GROUP_NAMES) if name not in label_columns]
    return usual[0] if usual else schemas.SAMPLE_ID if has_several_captions(view.manifest) else None


def _labels(view: Frames, sample: RowSample, column: str) -> Findings:
    graph = sample.graph
    codes_N, names = labels.majority_labels(view, column)
    if len(names) > graph.n_texts // 2:
        return Findings(notes=[f"purity of {column}: {len(names):,} values for {graph.n_texts:,} texts, hardly any of them shared"])
    ranks = [rank for rank in sorted({*_PURITY_RANKS, graph.k}) if rank <= graph.k]
    stored = labels.purity_at(codes_N, sample.ids_s, sample.rows.neighbor_ids, ranks)
    shuffled = labels.purity_at(codes_N, sample.ids_s, sample.shuffled_sK, ranks)
    within_reach = labels.purity_within_reach(codes_N, sample.ids_s, ranks)
    found = Findings([verdicts.purity(column, *figures) for figures in zip(ranks, stored, shuffled, within_reach, strict=True)])
    if missing := int((codes_N < 0).sum()):
        found.notes.append(f"purity of {column}: {missing:,} texts have no {column} and are left out")
    return found


def _groups(view: Frames, sample: RowSample, column: str) -> Findings:
    groups = labels.text_groups(view, column)
    stored = labels.group_agreement(groups, sample.ids_s, sample.rows.neighbor_ids)
    shuffled = labels.group_agreement(groups, sample.ids_s, sample.shuffled_sK)
    if stored is None or shuffled is None:
        return Findings(notes=[f"same {column}: no two sampled texts share one"])
    return Findings(
        [
            verdicts.group_first(column, stored.first, shuffled.first),
            verdicts.group_found(column, stored.found, shuffled.found, stored.within_reach, sample.graph.k),
        ]
    )


def _wordnet(view: Frames, sample: RowSample, path: Path) -> Findings:
    hierarchy = read_hierarchy(path, "--wordnet")
    column = labels.WNID if labels.WNID in sample.graph.sample_columns else schemas.SAMPLE_ID
    codes_N, names = labels.majority_labels(view, column)
    number = np.array([hierarchy.places.get(name, -1) for name in names] + [-1])
    nodes_N = number[codes_N]
    known = nodes_N[sample.ids_s] >= 0
    found = Findings()
    if missing := int((nodes_N < 0).sum()):
        found.notes.append(f"WordNet: {missing:,} texts have no {column} that {path.name} knows, and are left out")
    if not known.any():
        return found
    values = []
    for ends_sK in (sample.rows.neighbor_ids[known], sample.shuffled_sK[known]):
        lengths = hierarchy.distances[nodes_N[sample.ids_s[known], None], nodes_N[ends_sK]]
        values.append(labels.wordnet_agreement(sample.rows.similarities[known], np.where(nodes_N[ends_sK] >= 0, lengths, np.nan)))
    if np.isfinite(values).all():
        found.measures.append(verdicts.wordnet(*values))
    else:
        found.notes.append("WordNet: no row has neighbours of different distances")
    return found


def _usual(view: Frames, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in view.graph.sample_columns if name.lower() in names)
