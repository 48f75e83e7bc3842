"""Do neighbours agree with what is known about the samples? Labels, groups, and WordNet.

Shape letters: N texts, s texts of a sample, K neighbours stored.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graphbuild.errors import SourceError
from graphbuild.store import schemas

if TYPE_CHECKING:
    from graphbuild.store.frames import Frames

Codes = npt.NDArray[np.int32]
LABEL_NAMES = ("label", "class", "class_name", "wnid", "category")
GROUP_NAMES = ("group", "image_id")
WNID = "wnid"


def majority_labels(view: Frames, column: str) -> tuple[Codes, list[str]]:
    """Each text's most frequent label, as a code, and the names; ties go to the smaller name, -1 where all are null.

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


def text_groups(view: Frames, column: str) -> tuple[npt.NDArray[np.int64], Codes]:
    """The groups that each text's samples belong to, as ranges: text i has `codes[offsets[i]:offsets[i + 1]]`, sorted.

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


def purity_at(codes_N: Codes, ids_s: npt.NDArray[Any], ends_sK: Codes, ks: Sequence[int]) -> list[float]:
    """Mean share of the first k neighbours that have the text's label; texts without one are left out."""
    labelled = codes_N[ids_s] >= 0
    same = codes_N[ends_sK[labelled]] == codes_N[ids_s[labelled], None]
    return [float(same[:, :k].mean()) if same.size else 0.0 for k in ks]


@dataclass(frozen=True, slots=True)
class GroupAgreement:
    """Texts of one group (captions of one picture) among the neighbours."""

    first: float
    """Share of texts, of those that share a group with another, whose nearest neighbour is of their group."""
    found: float
    """Share of a text's group that is among its K neighbours; mean."""
    texts: int


def group_agreement(groups: tuple[npt.NDArray[np.int64], Codes], ids_s: npt.NDArray[Any], ends_sK: Codes) -> GroupAgreement | None:
    """Look for each sampled text's group among its neighbours; None where no sampled text shares one."""
    offsets, codes = groups
    texts = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max(initial=0) + 2))
    first, found = [], []
    for text_id, ends_K in zip(ids_s.tolist(), ends_sK, strict=True):
        mine = codes[offsets[text_id] : offsets[text_id + 1]]
        members = np.unique(np.concatenate([texts[:0], *(texts[order[starts[g] : starts[g + 1]]] for g in mine)]))
        members = members[members != text_id]
        if len(members):
            first.append(ends_K[0] in members)
            found.append(np.isin(members, ends_K).mean())
    return GroupAgreement(float(np.mean(first)), float(np.mean(found)), len(first)) if first else None


class WordNetDistance:
    """Path lengths between synsets: edges from one to the other over their lowest common hypernym."""

    def __init__(self, index: dict[str, int], table: npt.NDArray[np.floating]) -> None:
        self.index, self._table = index, table

    @classmethod
    def read(cls, path: Path) -> WordNetDistance:
        """From a TSV with columns `wnid` and `hypernym_path` (`entity > ... > tench`), or an NPZ with `wnids` and `dist`.

        Raises:
            SourceError: If the file is missing or is neither.
        """
        try:
            if path.suffix == ".npz":
                with np.load(path) as stored:
                    wnids, table = stored["wnids"].tolist(), stored["dist"].astype(np.float32)
                if table.shape != (len(wnids), len(wnids)):
                    raise ValueError(f"dist has shape {table.shape} for {len(wnids)} wnids")
            else:
                with path.open(encoding="utf-8", newline="") as stream:
                    rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
                wnids = [row[WNID] for row in rows]
                if not wnids:
                    raise ValueError("no row")
                table = _path_lengths([row["hypernym_path"].split(" > ") for row in rows])
        except (OSError, KeyError, ValueError, AttributeError) as error:
            raise SourceError(
                f"{path}: not WordNet distances ({type(error).__name__}: {error}). Give a TSV with columns wnid and hypernym_path "
                "('entity > ... > tench'), or an NPZ with wnids and dist."
            ) from error
        return cls({wnid: i for i, wnid in enumerate(wnids)}, table)

    def between(self, one: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Path lengths, by number in `index`."""
        return np.asarray(self._table[one, others], np.float32)


def _path_lengths(paths: list[list[str]]) -> npt.NDArray[np.float32]:
    """Steps up from one synset to the last name that both paths share, and down to the other."""
    longest = max(map(len, paths), default=0)
    names: dict[str, int] = {}
    padded = np.full((len(paths), longest), -1, np.int64)
    for i, path in enumerate(paths):
        padded[i, : len(path)] = [names.setdefault(name, len(names)) for name in path]
    lengths = np.array([len(path) for path in paths])
    table = np.empty((len(paths), len(paths)), np.float32)
    for i, path in enumerate(paths):
        same = (padded[:, : len(path)] == padded[i, : len(path)]).cumprod(axis=1).sum(axis=1)
        table[i] = lengths[i] + lengths - 2 * same
    return table


def wordnet_agreement(similarities_sK: npt.NDArray[Any], distances_sK: npt.NDArray[np.float32]) -> float:
    """Mean over rows of Spearman's rank correlation between similarity and nearness; rows of constant values are left out.

    Args:
        similarities_sK: Similarity of each stored neighbour.
        distances_sK: Its WordNet distance; NaN where that is not known.
    """
    values = []
    for similarity, distance in zip(similarities_sK.astype(np.float64), distances_sK.astype(np.float64), strict=True):
        known = np.isfinite(distance)
        one, other = average_ranks(similarity[known]), average_ranks(-distance[known])
        if known.sum() > 1 and one.std() > 0 and other.std() > 0:
            values.append(float(np.corrcoef(one, other)[0, 1]))
    return float(np.mean(values)) if values else float("nan")


def average_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
