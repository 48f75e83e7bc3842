"""The study's images: Tiny-ImageNet with some classes held out, with superclasses and definitions beside the names.

OUT/data/ seen.parquet (to train on) · known.parquet (to learn from in evaluations, all classes) · val.parquet (to classify) ·
held_out.txt · classes.parquet (a row a seen class) · flickr.parquet (the training split, with its captions) · scenes-*.parquet
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.errors import SourceError
from graphbuild.store.atomic import atomic_path, write_text

if TYPE_CHECKING:
    import polars as pl

TINY, CLASSES, FLICKR = "tiny_imagenet", "classes", "flickr8k/flickr8k_96.parquet"
CLASS_TABLE, SYNSETS = "tiny_imagenet_classes.tsv", "oewn_synsets.parquet"
DISTANCES = "tiny_imagenet_wordnet_pathdist.npz"
_SEED = 0
"""Decides the held-out classes of `hold_out`."""
_HELD_SHARE = 0.2
_KNOWN_PER_CLASS = 50
"""Images of each class that evaluations learn from: a tenth, so that an evaluation takes a minute."""
_LEXICON = {"animal": "animal", "artifact": "artifact", "food": "food", "geological formation": "object", "plant": "plant"}
"""Part of the path to the root, and the section of WordNet that its words stand in."""


@dataclass(frozen=True, slots=True)
class StudyData:
    """Where the prepared images are."""

    folder: Path
    source: Path
    """The folder that they were made from."""

    @property
    def seen(self) -> Path:
        """Images to train on: those of the seen classes."""
        return self.folder / "seen.parquet"

    @property
    def known(self) -> Path:
        """A part of the training images of all classes, for evaluations to learn from."""
        return self.folder / "known.parquet"

    @property
    def val(self) -> Path:
        """Validation images of all classes."""
        return self.folder / "val.parquet"

    @property
    def held_out(self) -> Path:
        """Names of the held-out classes, one a line."""
        return self.folder / "held_out.txt"

    @property
    def classes(self) -> Path:
        """Seen classes: name, wnid, described (name and definition)."""
        return self.folder / "classes.parquet"

    @property
    def flickr(self) -> Path:
        """The file of Flickr8k's training split."""
        return self.folder / "flickr.parquet"

    @property
    def scenes(self) -> Path:
        """Drawn scenes to train on."""
        return self.folder / "scenes-train.parquet"

    @property
    def scenes_val(self) -> Path:
        """Drawn scenes to classify."""
        return self.folder / "scenes-val.parquet"

    def images(self, graph: str) -> Path:
        """Return the images that a graph is about."""
        return {"flickr": self.flickr, "scenes": self.scenes}.get(graph.partition("+")[0], self.seen)

    @property
    def distances(self) -> Path:
        """WordNet distances between all classes."""
        return self.source / CLASSES / DISTANCES


def prepare_data(source: Path, out: Path, choose: Callable[[list[str]], list[str]] | None = None) -> StudyData:
    """Write what is missing of OUT/data.

    Args:
        source: Holds tiny_imagenet/, classes/ and flickr8k/.
        out: The study's folder.
        choose: Names of the classes that are held out, of all; None: those of `hold_out`.

    Raises:
        SourceError: If a file is missing.
    """
    data = StudyData(out / "data", source)
    shards = sorted((source / TINY).glob("train-*.parquet"))
    _require([*(shards or [source / TINY / "train-*.parquet"]), source / TINY / "val.parquet", source / CLASSES / CLASS_TABLE])
    _require([source / CLASSES / SYNSETS, data.distances])
    data.folder.mkdir(parents=True, exist_ok=True)
    if not all(path.exists() for path in (data.seen, data.known, data.val, data.held_out, data.classes)):
        _write_tiny(shards, data, choose or hold_out)
    if (source / FLICKR).exists() and not data.flickr.exists():
        _write_flickr(source / FLICKR, data.flickr)
    return data


def _require(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise SourceError(
                f"{path}: no such file. --data takes a folder with tiny_imagenet/train-*.parquet and val.parquet, and classes/ "
                f"with {CLASS_TABLE}, {DISTANCES} and {SYNSETS}."
            )


def _write_tiny(shards: list[Path], data: StudyData, choose: Callable[[list[str]], list[str]]) -> None:
    import polars as pl

    table = describe_classes(data.source / CLASSES)
    held = choose(table["name"].to_list())
    beside = table.select("wnid", "coarse", "described")

    def read(path: Path) -> pl.DataFrame:
        return pl.read_parquet(path, columns=["image", "file", "wnid", "name"]).join(beside, on="wnid", maintain_order="left")

    write_frame(pl.concat([read(path) for path in shards]).filter(~pl.col("name").is_in(held)), data.seen)
    write_frame(read(shards[0]).group_by("name", maintain_order=True).head(_KNOWN_PER_CLASS), data.known)
    write_frame(read(data.source / TINY / "val.parquet"), data.val)
    write_frame(table.filter(~pl.col("name").is_in(held)).select("name", "wnid", "described"), data.classes)
    write_text(data.held_out, "\n".join(held) + "\n")


def _write_flickr(path: Path, out: Path) -> None:
    import polars as pl

    write_frame(pl.read_parquet(path).filter(pl.col("split") == "train").select("image", "file", "captions"), out)


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write a Parquet file so that a crash leaves the old one or the new one."""
    with atomic_path(path) as temporary:
        # Small row groups: a reader that shuffles holds them all, and one that does not needs few.
        frame.write_parquet(temporary, row_group_size=4096)


def hold_out(names: list[str]) -> list[str]:
    """Return a fifth of the classes, by a fixed seed; sorted."""
    import numpy as np

    ordered = sorted(names)
    return sorted(np.random.default_rng(_SEED).permutation(ordered)[: round(len(ordered) * _HELD_SHARE)].tolist())


def describe_classes(folder: Path) -> pl.DataFrame:
    """Return a row a class: wnid, name, coarse (its superclass), described ("name: definition")."""
    import polars as pl

    synsets = pl.read_parquet(folder / SYNSETS, columns=["id", "pos", "lexfile", "members", "definition", "hypernyms"])
    nouns = synsets.filter(pl.col("pos") == "n").to_dicts()
    by_name: dict[str, list[dict[str, Any]]] = {}
    for noun in nouns:
        for member in noun["members"].split("|"):
            by_name.setdefault(member.lower(), []).append(noun)
    members = {noun["id"]: noun["members"].lower().split("|") for noun in nouns}
    with (folder / CLASS_TABLE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return pl.DataFrame(
        [
            {
                "wnid": row["wnid"],
                "name": row["name"],
                "coarse": row["coarse_derived"],
                "described": f"{row['name']}: {_definition(row, by_name, members)}",
            }
            for row in rows
        ]
    )


def _definition(row: dict[str, str], by_name: dict[str, list[dict[str, Any]]], members: dict[str, list[str]]) -> str:
    """The definition of the sense that the class means: by its hypernym, else by its section of WordNet, else the first."""
    names = [row["name"], *row["synonyms"].split(",")]
    senses = [sense for name in names for sense in by_name.get(name.strip().lower(), [])]
    if not senses:
        return row["synonyms"]
    path = [part.strip().lower() for part in row["hypernym_path"].split(">")]
    sections = {f"noun.{section}" for part, section in _LEXICON.items() if part in path}

    def score(sense: dict[str, Any]) -> tuple[bool, bool]:
        above = {member for hypernym in (sense["hypernyms"] or "").split("|") for member in members.get(hypernym, ())}
        return bool(above & set(path[:-1])), sense["lexfile"] in sections

    return str(max(senses, key=score)["definition"])
