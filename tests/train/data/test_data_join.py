"""Which images a graph knows: the 95 % rule, classes, and the message for a graph of another data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_graph import clustered_vectors, write_graph
from helpers_train import draw, encode, tiny_config, write_images, write_tiny_graph

from graphbuild.errors import ArtifactMismatch, OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from train.data.join import join
from train.data.prepare import open_data, prepare
from train.data.sources import open_images


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_graph(tmp_path_factory.mktemp("join") / "graph", 96)


def test_images_get_the_texts_of_their_sample_ids(tmp_path: Path, graph_dir: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 50)), id_column="id")
    joined = join(source, Graph.open(graph_dir))
    assert joined.text_ids.tolist() == [i % 40 for i in range(50)]
    assert joined.offsets.tolist() == list(range(51))
    assert (joined.unknown, joined.by) == (0, "sample id")


def test_ninety_five_percent_known_is_enough_and_the_rest_is_left_out(tmp_path: Path, graph_dir: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 100)), id_column="id")
    joined = join(source, Graph.open(graph_dir))
    assert joined.indices.tolist() == list(range(96))
    assert (joined.unknown, joined.examples) == (4, ("img-96", "img-97", "img-98"))


def test_fewer_are_an_error_with_counts_and_ids_of_both_sides(tmp_path: Path, graph_dir: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 110)), id_column="id")
    with pytest.raises(
        ArtifactMismatch, match=r"knows 96 of the 110 images of .*'img-96'.*96 samples such as 'img-0'.*--allow-missing"
    ):
        join(source, Graph.open(graph_dir))
    assert len(join(source, Graph.open(graph_dir), allow_missing=True).indices) == 96


def test_graph_of_another_data_set_is_refused_even_if_missing_images_are_allowed(tmp_path: Path, graph_dir: Path) -> None:
    source = open_images(str(write_images(tmp_path / "a.parquet", 10, prefix="photo")), id_column="id")
    with pytest.raises(ArtifactMismatch, match=r"knows 0 of the 10 .*'photo-0'.*'img-0'.*Are they of one data set\?"):
        join(source, Graph.open(graph_dir), allow_missing=True)


def test_folders_join_a_graph_of_classes_by_their_names(tmp_path: Path) -> None:
    write_graph(tmp_path / "graph", clustered_vectors(3, 8), samples=[("n01", 0), ("n02", 1), ("n03", 2)])
    build_knn(tmp_path / "graph", KnnConfig(sketch_dim=0))
    for name in ("n03/a.png", "n01/b.png", "n03/c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(encode(draw(1)))
    joined = join(open_images(str(tmp_path / "images")), Graph.open(tmp_path / "graph"))
    assert (joined.by, joined.text_ids.tolist()) == ("class", [0, 2, 2])


def test_simclr_needs_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAPHBUILD_DIR", raising=False)
    opened = open_data(tiny_config(objective="simclr", data=str(write_images(tmp_path / "a.parquet", 9))))
    assert opened.graph is None
    assert len(opened.source) == 9


def test_error_when_nobody_says_where_the_images_are(graph_dir: Path) -> None:
    with pytest.raises(OptionError, match=r"does not record where its images are. Name them with --data"):
        open_data(tiny_config(graph_dir=str(graph_dir)))


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.parquet", 5, broken=tuple(range(5)))
    with pytest.raises(SourceError, match="none of the 5 images can be read"):
        prepare(tiny_config(objective="simclr", data=str(path)))


def test_labels_come_from_the_images_and_follow_the_known_ones(tmp_path: Path, graph_dir: Path) -> None:
    data = prepare(tiny_config(data=str(write_images(tmp_path / "a.parquet", 98)), graph_dir=str(graph_dir)))
    assert data.labels("label").codes.tolist() == [i % 5 for i in range(96)]
    with pytest.raises(SourceError, match="no label column 'colour'; there are: id, label, sample_id"):
        data.labels("colour")


def test_fingerprint_changes_with_images_and_graph(tmp_path: Path, graph_dir: Path) -> None:
    other = write_tiny_graph(tmp_path / "other", 96, k=6)
    paths = [write_images(tmp_path / f"{count}.parquet", count) for count in (95, 96)]
    prints = {
        prepare(tiny_config(data=str(path), graph_dir=str(graph))).fingerprint() for path in paths for graph in (graph_dir, other)
    }
    assert len(prints) == 4
