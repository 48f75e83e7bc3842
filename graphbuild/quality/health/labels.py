"""Do neighbours agree with what is known about the samples? Labels, groups, and WordNet.

Shape letters: N texts, s texts of a sample, K neighbours stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graphbuild.errors import SourceError
from graphbuild.store import schemas
from graphbuild.store.arrays import Int32

if TYPE_CHECKING:
    from graphbuild.store.frames import Frames

LABEL_NAMES = ("label", "class", "class_name", "wnid", "category")
GROUP_NAMES = ("group", "image_id")
WNID = "wnid"


def majority_labels(view: Frames, column: str) -> tuple[Int32, list[str]]:
    """Return each text's most frequent label, as a code, and the names; ties go to the smaller name, -1 where all are null.

    Raises:
        SourceError: If the samples have no such column.
    """
    import polars as pl

    name = pl.col(column).cast(pl.String)
    counted = _column(view, column).filter(name.is_not_null()).group_by(schemas.TEXT_ID, name.alias(column)).len()
    best = counted.sort([schemas.TEXT_ID, "len", column], descending=[False, True, False])
    frame = best.group_by(schemas.TEXT_ID, maintain_order=True).first().collect(engine="streaming")
    names, codes = np.unique(frame[column].to_numpy(), return_inverse=True)
    out = np.full(view.graph.n_texts, -1, np.int32)
    out[frame[schemas.TEXT_ID].to_numpy()] = codes
    return out, [str(value) for value in names]


def text_groups(view: Frames, column: str) -> tuple[npt.NDArray[np.int64], Int32]:
    """Return the groups that each text's samples belong to, as ranges: text i has `codes[offsets[i]:offsets[i + 1]]`, sorted.

    Raises:
        SourceError: If the samples have no such column.
    """
    import polars as pl

    frame = _column(view, column).drop_nulls().unique().sort(schemas.TEXT_ID).collect(engine="streaming")
    codes = frame[column].rank("dense").cast(pl.Int32).to_numpy()
    counts = np.bincount(frame[schemas.TEXT_ID].to_numpy(), minlength=view.graph.n_texts)
    order = np.lexsort((codes, frame[schemas.TEXT_ID].to_numpy()))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), codes[order].astype(np.int32)


def _column(view: Frames, column: str) -> Any:
    names = view.samples.collect_schema().names()
    if column not in names:
        raise SourceError(
            f"{view.path}: samples have no column {column!r}; there are {', '.join(names)}. "
            "Add it with `graphbuild embed --keep-columns`."
        )
    return view.samples.select(sorted({schemas.TEXT_ID, column}))


def purity_at(codes_N: Int32, ids_s: npt.NDArray[Any], ends_sK: Int32, ks: Sequence[int]) -> list[float]:
    """Return the mean share of the first k neighbours that have the text's label, for each k; texts without one are left out."""
    labelled = codes_N[ids_s] >= 0
    same = codes_N[ends_sK[labelled]] == codes_N[ids_s[labelled], None]
    return [float(same[:, :k].mean()) if same.size else 0.0 for k in ks]


def purity_within_reach(codes_N: Int32, ids_s: npt.NDArray[Any], ks: Sequence[int]) -> list[float]:
    """Return the purity of the best possible graph, for each k: a class of m texts fills m - 1 of k places at most."""
    sizes = np.bincount(codes_N[codes_N >= 0]) if (codes_N >= 0).any() else np.zeros(1, np.int64)
    labelled = codes_N[ids_s]
    others = sizes[labelled[labelled >= 0]] - 1
    return [float(np.minimum(others, k).mean() / k) if len(others) else 0.0 for k in ks]


@dataclass(frozen=True, slots=True)
class GroupAgreement:
    """Texts of one group (captions of one picture) among the neighbours."""

    first: float
    """Share of texts, of those that share a group with another, whose nearest neighbour is of their group."""
    found: float
    """Share of a text's group that is among its K neighbours; mean."""
    within_reach: float
    """The same if all K were of the group: less than 1 where groups are larger than K."""
    texts: int


def group_agreement(groups: tuple[npt.NDArray[np.int64], Int32], ids_s: npt.NDArray[Any], ends_sK: Int32) -> GroupAgreement | None:
    """Look for each sampled text's group among its neighbours; return None where no sampled text shares one."""
    offsets, codes = groups
    texts = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max(initial=0) + 2))
    first, found, reach = [], [], []
    for text_id, ends_K in zip(ids_s.tolist(), ends_sK, strict=True):
        mine = codes[offsets[text_id] : offsets[text_id + 1]]
        members = np.unique(np.concatenate([texts[:0], *(texts[order[starts[g] : starts[g + 1]]] for g in mine)]))
        members = members[members != text_id]
        if len(members):
            first.append(ends_K[0] in members)
            found.append(np.isin(members, ends_K).mean())
            reach.append(min(1.0, len(ends_K) / len(members)))
    if not first:
        return None
    return GroupAgreement(float(np.mean(first)), float(np.mean(found)), float(np.mean(reach)), len(first))


def wordnet_agreement(similarities_sK: npt.NDArray[Any], distances_sK: npt.NDArray[np.float32]) -> float:
    """Return Spearman's rank correlation between similarity and nearness, mean over rows that vary; NaN where none does.

    Args:
        similarities_sK: Similarity of each stored neighbour.
        distances_sK: Its WordNet distance; NaN where that is not known.
    """
    from scipy.stats import rankdata

    values = []
    for similarity, distance in zip(similarities_sK.astype(np.float64), distances_sK.astype(np.float64), strict=True):
        known = np.isfinite(distance)
        one, other = rankdata(similarity[known]), rankdata(-distance[known])
        if known.sum() > 1 and one.std() > 0 and other.std() > 0:
            values.append(float(np.corrcoef(one, other)[0, 1]))
    return float(np.mean(values)) if values else float("nan")
