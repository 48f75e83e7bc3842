"""Tiny-ImageNet's and WordNet's files with ten classes of noise, and evaluations that are short."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from helpers_train import encode

ANIMALS, THINGS = ("cat", "dog", "frog", "newt", "crab"), ("bus", "cup", "reel", "drum", "sock")
NAMES = ANIMALS + THINGS


def draw(label: int, seed: int) -> bytes:
    """Noise of the class's colour."""
    rng = np.random.default_rng(seed)
    colour = np.random.default_rng(1000 + label).integers(40, 215, 3)
    return encode((colour + rng.integers(-30, 30, (12, 12, 3))).clip(0, 255).astype(np.uint8), "jpeg")


def write_images(path: Path, each: int, seed: int) -> None:
    labels = [label for label in range(len(NAMES)) for _ in range(each)]
    columns: Mapping[str, Sequence[object]] = {
        "image": [draw(label, seed * 10_000 + row) for row, label in enumerate(labels)],
        "file": [f"{path.stem}_{row}.JPEG" for row in range(len(labels))],
        "label": labels,
        "wnid": [f"n{label:08}" for label in labels],
        "name": [NAMES[label] for label in labels],
    }
    pl.DataFrame(columns).write_parquet(path)


def write_source(root: Path) -> None:
    """Write tiny_imagenet/ and classes/."""
    (root / "tiny_imagenet").mkdir()
    (root / "classes").mkdir()
    for shard in range(2):
        write_images(root / f"tiny_imagenet/train-0{shard}-of-02.parquet", 12, shard)
    write_images(root / "tiny_imagenet/val.parquet", 4, 7)
    heads = ["label", "wnid", "name", "synonyms", "simple_name", "imagenet1k_index", "coarse_derived", "hypernym_path"]
    lines = ["\t".join(heads)]
    for label, name in enumerate(NAMES):
        kind = "animal" if name in ANIMALS else "artifact"
        lines.append(f"{label}\tn{label:08}\t{name}\t{name}\t{name}\t{label}\t{kind}\tentity > {kind} > {name}")
    (root / "classes/tiny_imagenet_classes.tsv").write_text("\n".join(lines) + "\n")
    synsets = [
        {"id": f"{row:08}-n", "pos": "n", "lexfile": f"noun.{kind}", "members": name, "definition": text, "hypernyms": above}
        for row, (kind, name, text, above) in enumerate(
            [
                ("act", "reel", "a lively dance", ""),
                ("artifact", "reel", "a winder for film", ""),
                ("person", "cat", "a spiteful woman", ""),
                ("animal", "beast|animal", "a living thing", ""),
                ("group", "cat", "a pet that purrs", "00000003-n"),
            ]
        )
    ]
    pl.DataFrame(synsets).write_parquet(root / "classes/oewn_synsets.parquet")
    distance = np.where(np.arange(10)[:, None] // 5 == np.arange(10) // 5, 2, 4) * (1 - np.eye(10, dtype=int))
    names = np.array([f"n{label:08}" for label in range(10)])
    np.savez(root / "classes/tiny_imagenet_wordnet_pathdist.npz", wnids=names, dist=distance.astype(np.uint8))
    (root / "classes/clip_imagenet_templates.json").write_text('["a photo of a {}.", "a drawing of a {}."]')


@contextmanager
def short_evaluations() -> Iterator[None]:
    """Which scores come out is what is looked at here, not how good they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.evaluate.protocols.linear.ITERATIONS", 3)
        patch.setattr("train.evaluate.protocols.low_data.DRAWS", 1)
        patch.setattr("train.evaluate.protocols.few_shot.DRAWS", 2)
        yield
