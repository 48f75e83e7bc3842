"""Published folders as `datasets` reads them, their cards as the hub does, and uploads to a hub on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from helpers_hub import serve_hub

from graphbuild.cli import cli
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import OptionError, ResourceError
from graphbuild.exchange.publish import Measured, PublishConfig, loading_code, publish_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.frames import Frames
from graphbuild.store.graph import Graph
from graphbuild.system.cards import last_name

datasets = pytest.importorskip("datasets")
NOTHING = Measured(recall=None, recall_rows=None, health=())


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish")
    rows = 40
    captions = [f"a picture of {row % 30} things" for row in range(rows)]
    pl.DataFrame({"key": [f"s{row}" for row in range(rows)], "caption": captions}).write_parquet(folder / "captions.parquet")
    config = EmbedConfig(
        dataset="parquet", sources=(str(folder / "captions.parquet"),), id_column="key", encoder="hashing:32", shard_size=16
    )
    build_embeddings(folder / "graph", config)
    build_knn(folder / "graph", KnnConfig(k=5))
    return folder / "graph"


def publish(graph_dir: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(
        cli, ["publish", "--graph-dir", str(graph_dir), "--out", str(out), "--license", "cc-by-4.0", *options]
    )


@pytest.fixture(scope="module")
def published(graph_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "folder"
    result = publish(graph_dir, out)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("name", ["texts", "samples", "edges", "knn"])
def test_datasets_loads_each_configuration_with_the_graphs_values(
    name: str, graph_dir: Path, published: Path, tmp_path: Path
) -> None:
    loaded = datasets.load_dataset(str(published), name, split="train", cache_dir=str(tmp_path / "cache"))
    if name == "knn":
        stored = Graph.open(graph_dir).rows(np.arange(30))
        assert np.array_equal(np.array(loaded["neighbor_ids"][:]), stored.neighbor_ids)
        assert np.array_equal(np.array(loaded["similarities"][:], np.float16), stored.similarities)
        assert np.array_equal(np.array(loaded["sketch"][:], np.int8), stored.sketch)
        return
    expected = Frames(graph_dir).tables()[name].collect()
    assert loaded.column_names == expected.columns
    assert loaded.to_pandas().to_dict("list") == {column: expected[column].to_list() for column in expected.columns}


def test_card_is_read_by_the_hub_and_says_what_was_measured(graph_dir: Path, published: Path) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(published / "README.md")
    assert card.data.to_dict()["license"] == "cc-by-4.0"
    assert [one["config_name"] for one in card.data.to_dict()["configs"]] == ["texts", "samples", "edges", "knn"]
    for line in (
        "| encoder | hashing:32 |",
        "| neighbours a text (k) | 5 |",
        "| texts (N) | 30 |",
        "| recall | 1.000000, against a float64 brute force on 30 random texts |",
        "| licence of the captions | cc-by-4.0 |",
    ):
        assert line in card.text
    assert re.search(r"\| encoder's weights, sha256 \| [0-9a-f]{64} \|", card.text)
    assert "| certificate share | " in card.text
    assert "| rows proven exact | 100.0% |" in card.text
    assert str(graph_dir.parent) not in card.content
    assert str(published.parent) not in card.content


def test_the_four_lines_of_the_card_load_it(published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(published.parent)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (code,) = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.S)
    assert len(code.splitlines()) == 4
    names: dict[str, object] = {}
    exec(code, names)
    assert names["edges"].num_rows == 30 * 5  # type: ignore[attr-defined]
    assert '"user/name"' in loading_code("user/name")


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/home/me/graphs/a", "a"),
        ("hf:/home/me/animals:train", "hf:animals:train"),
        ("cifar10:/home/me/data", "cifar10:data"),
        ("hf:user/animals:train", "hf:user/animals:train"),
        ("user/encoder", "user/encoder"),
        (None, None),
    ],
)
def test_cards_say_the_last_name_of_a_place_on_this_machine(place: str | None, shown: str | None) -> None:
    assert last_name(place) == shown


def test_published_again_removes_shards_that_are_gone(graph_dir: Path, published: Path, tmp_path: Path) -> None:
    first = publish_graph(graph_dir, tmp_path / "out", PublishConfig(license="unknown"), NOTHING)
    (tmp_path / "out/edges/part-00009.parquet").write_bytes(b"of a larger graph")
    second = publish_graph(graph_dir, tmp_path / "out", PublishConfig(license="unknown"), NOTHING)
    assert second == first
    assert not (tmp_path / "out/edges/part-00009.parquet").exists()
    for path in sorted((tmp_path / "out").glob("*/*")):
        assert path.read_bytes() == (published / path.relative_to(tmp_path / "out")).read_bytes()


def test_what_a_killed_command_left_does_not_bar_the_next_and_goes(graph_dir: Path, tmp_path: Path) -> None:
    # No process has such a number.
    left = [
        tmp_path / "out" / name for name in (".README.md.99999999-0a1b2c3d.tmp", "texts/.part-00000.parquet.99999999-0a1b2c3d.tmp")
    ]
    left[0].parent.mkdir()
    left[0].write_text("half a card")
    assert publish(graph_dir, tmp_path / "out").exit_code == 0
    left[1].write_text("half a shard")
    assert publish(graph_dir, tmp_path / "out").exit_code == 0
    assert not [path for path in left if path.exists()]


def test_upload_brings_every_file_with_the_token(graph_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        result = publish_graph(graph_dir, tmp_path / "out", PublishConfig(license="unknown", repo="user/graph"), NOTHING)
    assert hub.created[0] == hub.created[0] | {"name": "graph", "type": "dataset"}
    assert hub.tokens == {"hf_of_the_test"}
    written = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(hub.uploaded) == set(written)
    assert all(hub.uploaded[name] == path.read_bytes() for name, path in written.items())
    assert result.url is not None
    assert "hf_of_the_test" not in (tmp_path / "out/README.md").read_text()


def test_folder_is_complete_where_the_upload_fails(graph_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match=r"user/graph: could not be uploaded .* is complete: run the same command again"):
        publish_graph(graph_dir, tmp_path / "out", PublishConfig(license="unknown", repo="user/graph"), NOTHING)
    assert "Not finished" not in (tmp_path / "out/README.md").read_text()


def test_what_cannot_be_published_is_refused_before_it_is_measured(
    graph_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    refused = {
        "would lie over the graph": (graph_dir, PublishConfig(license="unknown")),
        "holds other files": (tmp_path / "mine", PublishConfig(license="unknown")),
        "--license is empty": (tmp_path / "out", PublishConfig(license=" ")),
        "there is no token": (tmp_path / "out", PublishConfig(license="unknown", repo="user/graph")),
        "not of the form user/name": (tmp_path / "out", PublishConfig(license="unknown", repo="graph")),
    }
    for message, (out, config) in refused.items():
        with pytest.raises(OptionError, match=message):
            publish_graph(graph_dir, out, config, NOTHING)
    assert not (tmp_path / "out").exists()
