"""Drawn scenes whose backgrounds go with their objects in training, and do not when asked: what does a net hold on to?

In the drawings objects, colours and backgrounds are independent. To train on, nine of ten pictures show their object before
the background that is its own; the pictures asked about are drawn without that rule. `object_matched` holds the object of
those that follow it all the same, `object_broken` of the others; in the pictures to learn from both hold the object.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.study.data import write_frame

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("object_matched", "object_broken", "attribute")
_DRAWN, _VAL = 60_000, 4_000
_FOLLOWING = 0.9
"""Share of the pictures to train on that follow the rule."""
_SEED = 0


def prepare_scenes(folder: Path, *, drawn: int = _DRAWN, val: int = _VAL) -> None:
    """Draw the pictures and write scenes-train.parquet and scenes-val.parquet, unless they are there.

    Args:
        folder: Where to.
        drawn: Pictures that those to train on are chosen from: one in ten follows the rule by chance.
        val: Pictures to ask about.
    """
    import polars as pl

    from graphbuild.datasets.scenes.source import ScenesConfig, draw_pictures

    train_file, val_file = folder / "scenes-train.parquet", folder / "scenes-val.parquet"
    if train_file.exists() and val_file.exists():
        return
    draw_pictures(folder / "scenes", ScenesConfig(train=drawn, val=val))
    pictures = {split: pl.read_parquet(folder / f"scenes/images/{split}-*.parquet") for split in ("train", "val")}
    own = own_backgrounds(pictures["train"])
    chosen = choose_correlated(with_rule(pictures["train"], own))
    write_frame(chosen.with_columns(pl.col("object").alias(name) for name in COLUMNS[:2]), train_file)
    test = with_rule(pictures["val"], own)
    test = test.with_columns(
        pl.when("follows").then("object").alias(COLUMNS[0]), pl.when(~pl.col("follows")).then("object").alias(COLUMNS[1])
    )
    write_frame(test, val_file)


def own_backgrounds(pictures: pl.DataFrame) -> dict[str, str]:
    """Return the background that goes with each object: the i-th of the sorted ones, in turn."""
    backgrounds = pictures["background"].unique().sort().to_list()
    return {name: backgrounds[place % len(backgrounds)] for place, name in enumerate(pictures["object"].unique().sort())}


def with_rule(pictures: pl.DataFrame, own: dict[str, str]) -> pl.DataFrame:
    """Return the pictures, and whether each shows its object before its own background."""
    import polars as pl

    return pictures.with_columns((pl.col("object").replace_strict(own) == pl.col("background")).alias("follows"))


def choose_correlated(pictures: pl.DataFrame) -> pl.DataFrame:
    """Return all pictures that follow the rule, and so many random others that nine of ten do; in random order."""
    import polars as pl

    following = pictures.filter("follows")
    others = round(len(following) * (1 - _FOLLOWING) / _FOLLOWING)
    rest = pictures.filter(~pl.col("follows")).sample(others, seed=_SEED, shuffle=True)
    return pl.concat([following, rest]).sample(fraction=1.0, seed=_SEED, shuffle=True)
