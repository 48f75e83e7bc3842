"""The drawn data set: what captions say, what is random, and what is not."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from graphbuild.datasets.base import SourceOptions
from graphbuild.datasets.scenes.draw import BACKGROUND_PAINTERS, render
from graphbuild.datasets.scenes.shapes import SHAPES
from graphbuild.datasets.scenes.source import LABELS, SOURCE, parse_config
from graphbuild.datasets.scenes.words import BACKGROUNDS, COLOURS, OBJECTS, PLACES, SIZES, Scene, describe, draw_scene
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import OptionError, SourceError
from graphbuild.store.manifest import Manifest

SMALL = SourceOptions(sources=("train=1500,val=500",))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph_dir = tmp_path_factory.mktemp("scenes")
    SOURCE.prepare(SMALL, graph_dir)
    return graph_dir


def _table(graph_dir: Path, split: str) -> pa.Table:
    return pq.read_table(graph_dir / "images" / f"{split}-00000.parquet")


def _pixels(table: pa.Table) -> NDArray[np.float64]:
    return np.stack([np.asarray(Image.open(io.BytesIO(data)), dtype=np.float64) for data in table["image"].to_pylist()])


def _scenes(count: int) -> list[tuple[Scene, str]]:
    generators = (np.random.default_rng((7, index)) for index in range(count))
    return [(scene := draw_scene(rng), describe(scene, rng)) for rng in generators]


def _named(caption: str, vocabulary: dict[str, tuple[str, ...]]) -> set[str]:
    """Labels whose words stand in a caption as whole words, the longest match first."""
    found = set()
    rest = f" {caption.replace(',', ' ')} "
    rest = " " + " ".join(rest.split()) + " "
    for word, label in sorted(
        ((w.replace(",", ""), label) for label, words in vocabulary.items() for w in words), key=lambda p: -len(p[0])
    ):
        if word and f" {word} " in rest:
            found.add(label)
            rest = rest.replace(f" {word} ", " | ")
    return found


@pytest.mark.parametrize(("factor", "vocabulary"), [("object", OBJECTS), ("attribute", COLOURS), ("background", BACKGROUNDS)])
def test_captions_name_exactly_the_label_that_is_drawn(factor: str, vocabulary: dict[str, tuple[str, ...]]) -> None:
    assert all(_named(caption, vocabulary) == {getattr(scene, factor)} for scene, caption in _scenes(2_000))


def test_captions_name_exactly_the_place_and_size_that_are_drawn() -> None:
    places = {str(place): words for place, words in PLACES.items()}
    for scene, caption in _scenes(2_000):
        assert _named(caption, places) == {str(scene.place)}
        assert _named(caption, SIZES) == ({scene.size} - {"medium"})


@pytest.mark.parametrize("vocabulary", [OBJECTS, COLOURS, BACKGROUNDS, SIZES, PLACES])
def test_no_word_stands_for_two_labels(vocabulary: dict[object, tuple[str, ...]]) -> None:
    words = [word for names in vocabulary.values() for word in names]
    assert len(words) == len(set(words))


def test_articles_agree_with_the_word_that_follows() -> None:
    for _, caption in _scenes(2_000):
        for article, word in itertools.pairwise(caption.split()):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), caption


def test_every_label_can_be_drawn() -> None:
    assert set(SHAPES) == set(OBJECTS)
    assert set(BACKGROUND_PAINTERS) == set(BACKGROUNDS)


def test_equal_options_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        SOURCE.prepare(SourceOptions(sources=("train=150,val=50",)), tmp_path / folder)
    for name in ("images/train-00000.parquet", "images/val-00000.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_larger_set_begins_with_the_smaller_one(drawn: Path, tmp_path: Path) -> None:
    SOURCE.prepare(SourceOptions(sources=("train=40,val=9",)), tmp_path)
    assert _table(tmp_path, "train").equals(_table(drawn, "train").slice(0, 40))


def test_another_seed_gives_other_pictures(drawn: Path, tmp_path: Path) -> None:
    SOURCE.prepare(SourceOptions(sources=("train=40,val=9,seed=1",)), tmp_path)
    assert not set(_table(tmp_path, "train")["image"].to_pylist()) & set(_table(drawn, "train")["image"].to_pylist())


def test_pictures_that_are_there_are_not_drawn_again(drawn: Path) -> None:
    before = (drawn / "images/train-00000.parquet").stat().st_mtime_ns
    SOURCE.prepare(SMALL, drawn)
    assert (drawn / "images/train-00000.parquet").stat().st_mtime_ns == before


def test_a_damaged_file_is_drawn_again(tmp_path: Path) -> None:
    options = SourceOptions(sources=("train=30,val=5",))
    SOURCE.prepare(options, tmp_path)
    path = tmp_path / "images/train-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    SOURCE.prepare(options, tmp_path)
    assert path.read_bytes() == whole


def test_train_and_val_share_no_picture(drawn: Path) -> None:
    train, val = (_table(drawn, split)["image"].to_pylist() for split in ("train", "val"))
    assert len({*train, *val}) == len(train) + len(val)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations((*LABELS, "size", "place"), 2)))
def test_labels_are_independent(drawn: Path, one: str, other: str) -> None:
    """Pearson's chi-square stays under its mean plus five standard deviations (df + 5 sqrt(2 df))."""
    table = _table(drawn, "train")
    first, second = (np.unique(table[name].to_pylist(), return_inverse=True)[1] for name in (one, other))
    counts = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(counts, (first, second), 1)
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_pictures_of_one_scene_differ() -> None:
    scene = Scene(object="boat", attribute="red", background="water", size="medium", place=(1, 1))
    first, second = (render(scene, 32, np.random.default_rng(seed)).astype(int) for seed in (0, 1))
    assert np.abs(first - second).mean() > 5


@pytest.mark.parametrize("side", [32, 64])
def test_a_thing_covers_a_good_part_of_the_picture(side: int) -> None:
    rgb = {"red": np.array([206, 38, 42])}
    scene = Scene(object="circle", attribute="red", background="sky", size="large", place=(1, 1))
    picture = render(scene, side, np.random.default_rng(3)).astype(int)
    share = (np.abs(picture - rgb["red"]).max(axis=2) < 60).mean()
    assert 0.25 < share < 0.5


@pytest.mark.parametrize(("label", "most"), [("object", 0.4), ("attribute", 0.8), ("background", 0.9)])
def test_a_linear_model_on_pixels_is_far_from_perfect(drawn: Path, label: str, most: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, val = _table(drawn, "train"), _table(drawn, "val")
    x, y = (_pixels(table).reshape(len(table), -1) / 255 - 0.5 for table in (train, val))
    model = linear_model.RidgeClassifier(300.0).fit(x, train[label].to_pylist())
    assert model.score(y, val[label].to_pylist()) < most


def test_open_reads_every_caption_with_its_id_and_kept_columns(drawn: Path) -> None:
    (batch,) = SOURCE.open(SourceOptions(sources=SMALL.sources, keep_columns=("object",)), drawn).read()
    table = _table(drawn, "train")
    assert batch.sample_ids == table["sample_id"].to_pylist()
    assert [caption for (caption,) in batch.captions] == table["caption"].to_pylist()
    assert batch.kept.equals(table.select(["object"]))


def test_the_source_says_that_it_is_synthetic(drawn: Path) -> None:
    images = SOURCE.open(SMALL, drawn).images
    assert "ynthetic" in SOURCE.info.what
    assert images is not None
    assert "synthetic" in (images.note or "")


@pytest.mark.parametrize("source", ["pictures.parquet", "train=0", "train=x", "side=2", "train"])
def test_error_for_a_source_that_means_nothing_names_it(source: str) -> None:
    with pytest.raises(OptionError, match=source):
        parse_config((source,))


def test_error_for_a_missing_column_to_keep_lists_those_that_exist(drawn: Path) -> None:
    with pytest.raises(SourceError, match=r"'shape'.*object, attribute, background"):
        SOURCE.open(SourceOptions(sources=SMALL.sources, keep_columns=("shape",)), drawn)


def test_pictures_of_a_finished_graph_are_replaced_only_when_asked(tmp_path: Path) -> None:
    first = EmbedConfig(dataset="scenes", sources=("train=30,val=5",), encoder="hashing:16", workers=0)
    build_embeddings(tmp_path, first)
    before = (tmp_path / "images/train-00000.parquet").read_bytes()
    with pytest.raises(OptionError, match=r"train=30,val=5.*train=31,val=5.*--overwrite"):
        build_embeddings(tmp_path, replace(first, sources=("train=31,val=5",)))
    assert (tmp_path / "images/train-00000.parquet").read_bytes() == before
    assert build_embeddings(tmp_path, replace(first, sources=("train=31,val=5",), overwrite=True)).counts["samples"] == 31


def test_the_graph_records_where_the_pictures_are_and_that_they_are_synthetic(tmp_path: Path) -> None:
    build_embeddings(tmp_path, EmbedConfig(dataset="scenes", sources=("train=30,val=5",), encoder="hashing:16", workers=0))
    images = Manifest.load(tmp_path).dataset["images"]
    assert (tmp_path / "images").is_dir()
    assert list(tmp_path.glob(images["path"]))
    assert list(tmp_path.glob(images["val"]))
    assert "synthetic" in images["note"]
