"""Hugging Face data: folders that `datasets` saves, Parquet as on the hub, and the hub itself, here on the loopback interface."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_hub import Hub, serve_hub
from PIL import Image as Picture

from graphbuild.datasets.base import OpenSource, SourceOptions
from graphbuild.datasets.registry import get_source
from graphbuild.embed.build import build_embeddings, default_graph_dir
from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.pictures import picture_bytes
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.system.hub import find_split, split_files
from train.data.join import join
from train.data.prepare import absolute
from train.data.sources import open_images, recorded_images

datasets = pytest.importorskip("datasets")
CLASSES = ["polar_bear", "tabby cat", "dog"]


def pictures(count: int, seed: int) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(seed).integers(0, 255, (count, 8, 8, 3), np.uint8)
    found = []
    for pixels in drawn:
        buffer = io.BytesIO()
        Picture.fromarray(pixels).save(buffer, format="PNG")
        found.append({"bytes": buffer.getvalue(), "path": None})
    return found


def made(count: int, seed: int = 0) -> Any:
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "caption": datasets.Value("string"),
            "label": datasets.ClassLabel(names=CLASSES),
            "key": datasets.Value("int64"),
        }
    )
    columns = {
        "picture": pictures(count, seed),
        "caption": [f"picture {row} of {seed}" for row in range(count)],
        "label": [row % len(CLASSES) for row in range(count)],
        "key": [1000 + row for row in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "animals"
    both = datasets.DatasetDict({"train": made(9), "test": made(4, seed=1)})
    both.save_to_disk(folder, num_shards={"train": 2, "test": 1})
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet as `push_to_hub` lays it out: two configurations, told by the card."""
    folder = tmp_path_factory.mktemp("repository") / "animals"
    parts = {"small/train": made(5), "small/test": made(3, seed=1), "large/train": made(8, seed=2)}
    for name, part in parts.items():
        config, split = name.split("/")
        (folder / config).mkdir(parents=True, exist_ok=True)
        part.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
    lines = ["---", "configs:"]
    for config, splits in {"small": ("train", "test"), "large": ("train",)}.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [line for split in splits for line in (f"  - split: {split}", f"    path: {config}/{split}-*")]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# Animals", ""]))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub(monkeypatch, tmp_path / "cache") as served:
        yield served


def opened(source: str | Path, **options: Any) -> OpenSource:
    return get_source("hf").open(SourceOptions(sources=(str(source),), **options), Path("graph"))


def read(source: OpenSource) -> tuple[list[str], list[list[str | None]]]:
    batches = list(source.read())
    return [one for batch in batches for one in batch.sample_ids], [one for batch in batches for one in batch.captions]


def test_saved_split_has_the_captions_that_datasets_loads(saved: Path) -> None:
    ids, captions = read(opened(f"{saved}:train", caption_column="caption"))
    assert captions == [[text] for text in datasets.load_from_disk(saved)["train"]["caption"]]
    assert ids[0] == "data-00000-of-00002.arrow:0"
    assert len(set(ids)) == 9


def test_data_set_saved_alone_needs_no_split(saved: Path) -> None:
    assert read(opened(saved / "test", caption_column="caption"))[1][0] == ["picture 0 of 1"]


def test_class_labels_become_prompts_by_their_names(saved: Path) -> None:
    source = opened(f"{saved}:train", caption_column="label")
    assert source.class_names
    assert [one[0] for one in read(source)[1][:3]] == ["polar bear", "tabby cat", "dog"]


@pytest.mark.parametrize("form", ["saved", "parquet"])
@pytest.mark.parametrize("id_column", [None, "key"])
def test_training_takes_the_ids_and_pictures_that_embed_took(
    form: str, id_column: str | None, saved: Path, repository: Path, tmp_path: Path
) -> None:
    source = f"{saved}:train" if form == "saved" else f"{repository}:small/train"
    config = EmbedConfig(dataset="hf", sources=(source,), caption_column="caption", id_column=id_column, encoder="hashing:16")
    build_embeddings(tmp_path / "graph", config)
    build_knn(tmp_path / "graph", KnnConfig())
    graph = Graph.open(tmp_path / "graph")
    arguments = recorded_images(graph.manifest.dataset, graph.path)
    assert arguments is not None
    images = open_images(**arguments)
    joined = join(images, graph)
    assert joined.unknown == 0
    reference = (
        datasets.load_from_disk(saved)["train"]
        if form == "saved"
        else datasets.Dataset.from_parquet(
            str(repository / "small/train-00000-of-00001.parquet"), cache_dir=str(tmp_path / "cache")
        )
    )
    assert len(images) == len(reference)
    last = len(images) - 1
    stored = images.encoded([last, 0])
    for row, content in zip((last, 0), stored, strict=True):
        assert isinstance(content, bytes)
        assert np.array_equal(np.asarray(Picture.open(io.BytesIO(content))), np.asarray(reference[row]["picture"]))
    assert images.metas([last])[0]["key"] == 1000 + last
    assert images.labels("label").codes.tolist() == reference["label"][:]
    shown, note = picture_bytes(graph.path, graph.manifest, [str(images.sample_ids[0])], pixels=8)
    assert len(shown) == 1
    assert note == ""


def test_splits_of_a_card_are_those_that_datasets_finds(repository: Path, tmp_path: Path) -> None:
    for config, split in (("small", "train"), ("small", "test"), ("large", "train")):
        loaded = datasets.load_dataset(str(repository), config, split=split, cache_dir=str(tmp_path / "cache"))
        assert read(opened(f"{repository}:{config}/{split}", caption_column="caption"))[1] == [[text] for text in loaded["caption"]]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], {"train", "test"}),
        (["default/train/0000.parquet", "default/partial-test/0000.parquet"], {"default/train", "default/test"}),
        (["train.parquet", "valid.parquet", "dev/0.parquet"], {"train", "validation"}),
        (["a.parquet", "b.parquet"], {"train"}),
    ],
)
def test_splits_without_a_card_go_by_the_names(names: list[str], splits: set[str]) -> None:
    found = split_files(names, "# No card\n")
    assert set(found) == splits
    assert sorted(name for files in found.values() for name in files) == sorted(names)


def test_card_patterns_stay_within_folders_unless_doubled() -> None:
    card = "---\nconfigs:\n- config_name: a\n  data_files: '*.parquet'\n- config_name: b\n  data_dir: deep\n---\n"
    names = ["one.parquet", "deep/two.parquet", "deep/er/three.parquet"]
    assert split_files(names, card) == {"a/train": ["one.parquet"], "b/train": ["deep/two.parquet", "deep/er/three.parquet"]}


def test_one_split_of_the_hub_is_fetched_and_found_again_without_it(hub: Hub, repository: Path) -> None:
    hub.repositories[("user/animals", "main")] = repository
    source = opened("user/animals:small/test", caption_column="caption")
    assert read(source)[1] == [[f"picture {row} of 1"] for row in range(3)]
    assert source.facts["revision"]
    assert not any("large" in path for path in hub.asked)
    assert source.images is not None
    before = len(hub.asked)
    assert len(open_images(f"hf:{source.images.path}")) == 3
    assert len(hub.asked) == before


def test_data_sets_of_other_formats_come_from_the_hubs_own_parquet(hub: Hub, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "main/data.csv").write_text("caption\na\n")
    converted = tmp_path / "converted/default/train"
    converted.mkdir(parents=True)
    shutil.copy(repository / "small/train-00000-of-00001.parquet", converted / "0000.parquet")
    hub.repositories = {("user/a", "main"): tmp_path / "main", ("user/a", "refs/convert/parquet"): tmp_path / "converted"}
    assert len(read(opened("user/a:train", caption_column="caption"))[0]) == 5


def test_graph_is_called_after_data_set_and_split() -> None:
    assert default_graph_dir(EmbedConfig(dataset="hf", sources=("user/name@v1:small/train",))) == Path("graphs/name-small-train")
    assert default_graph_dir(EmbedConfig(dataset="hf", sources=("user/name",))) == Path("graphs/name")


def test_data_option_of_training_is_absolute_for_folders_and_left_alone_for_the_hub(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    assert absolute("hf:animals:train") == f"hf:{saved}:train"
    assert absolute("hf:user/name:train") == "hf:user/name:train"


def test_error_without_a_split_lists_them(saved: Path, repository: Path) -> None:
    with pytest.raises(SourceError, match=r"2 splits to choose from; there are: train, test"):
        find_split(str(saved))
    with pytest.raises(SourceError, match=r"no split 'val'; there are: small/train, small/test, large/train"):
        find_split(f"{repository}:val")
    with pytest.raises(SourceError, match=r"2 splits to choose from"):
        find_split(f"{repository}:train")


def test_error_for_what_the_hub_does_not_have(hub: Hub) -> None:
    with pytest.raises(SourceError, match=r"user/nothing: neither a folder here, nor could it be fetched .*Not ?Found"):
        find_split("user/nothing:train")
    with pytest.raises(SourceError, match="no such folder, and no name on the Hugging Face hub"):
        find_split("/nowhere/at/all")
    with pytest.raises(OptionError, match="takes one --source"):
        get_source("hf").open(SourceOptions(sources=("a", "b")), Path("graph"))


def test_error_for_a_saved_selection_a_strange_state_and_a_cut_stream(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    shutil.copytree(saved / "test", folder)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(SourceError, match="flatten_indices"):
        find_split(str(folder))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../elsewhere.arrow"}]}))
    with pytest.raises(SourceError, match="names files outside its folder"):
        find_split(str(folder))
    (folder / "state.json").write_text("[]")
    with pytest.raises(SourceError, match="not as `datasets` writes it"):
        find_split(str(folder))
    (folder / "state.json").write_text(json.dumps(state))
    stream = folder / state["_data_files"][0]["filename"]
    stream.write_bytes(stream.read_bytes()[:300])
    with pytest.raises(SourceError, match=r"not an Arrow stream, or a truncated one"):
        opened(folder, caption_column="caption")


def test_error_for_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds neither what `datasets` saves"):
        find_split(str(tmp_path))


def test_manifest_records_where_the_pictures_are(saved: Path, tmp_path: Path) -> None:
    build_embeddings(
        tmp_path / "graph", EmbedConfig(dataset="hf", sources=(f"{saved}:test",), caption_column="label", encoder="hashing:16")
    )
    images = Manifest.load(tmp_path / "graph").dataset["images"]
    assert images["kind"] == "hf"
    assert images["path"] == f"{saved}:test"
    assert images["image_column"] == "picture"
