"""The ImageNet, CC3M and CC12M recipes over a few pictures in the publishers' layouts, and what their dry run finds."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from helpers_evaluate import write_challenge
from helpers_train import draw, encode, write_tar_shards

from graphbuild.datasets.published.imagenet import read_classes
from graphbuild.errors import OptionError
from pipelines.recipe import parse_settings
from train.config.files import load_config
from train.run.metrics import read_metrics

TINY = {
    "model": "small",
    "image_size": 16,
    "batch_size": 8,
    "epochs": 1,
    "workers": 1,
    "device": "cpu",
    "precision": "float32",
    "projector_hidden": 16,
    "projector_dim": 8,
    "log_every": 1,
    "warmup_epochs": 0,
    "chunk": 4,
}


def recipe(name: str, *arguments: str, settings: tuple[str, ...] = ()) -> Result:
    command = getattr(importlib.import_module(f"pipelines.{name}"), name)
    options = [part for setting in (*(f"{name}={value}" for name, value in TINY.items()), *settings) for part in ("--set", setting)]
    return CliRunner().invoke(command, [*arguments, "--encoder", "hashing:32", *options])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def write_imagenet(root: Path) -> None:
    """Four of the classes, with the file names of the publisher."""
    for split, first, count in (("train", 0, 8), ("val", 8, 3)):
        for number, one in enumerate(read_classes()[:4]):
            (root / split / one.folder).mkdir(parents=True)
            for i in range(count):
                name = f"{one.folder}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{i:08d}.JPEG"
                (root / split / one.folder / name).write_bytes(encode(draw(5 * (first + i) + number, height=20, width=24), "jpeg"))


def test_imagenet_recipe_goes_from_prompts_to_scores_and_a_report(place: Path) -> None:
    write_imagenet(place / "imagenet")
    done = recipe("imagenet", "--data", "imagenet")
    assert done.exit_code == 0, done.output + repr(done.exception)
    # 32 pictures in batches of eight.
    assert read_metrics(place / "runs/imagenet/xclr")[-1]["step"] == 4
    assert "| xclr |" in done.stdout
    assert (place / "runs/imagenet/report.html").exists()
    assert "1,000 texts" in done.stdout
    assert load_config(place / "runs/imagenet/recipe.toml", {}).tau_s == 0.1
    again = recipe("imagenet", "--data", "imagenet", "--dry-run", "--timed-steps", "1")
    assert again.exit_code == 0, again.output
    assert "images (100.0%), by class" in again.stdout
    assert again.stdout.endswith("ready\n")


def test_recipe_of_captions_prints_the_papers_measures_of_its_own_runs(place: Path) -> None:
    write_tar_shards(place / "shards", 32, prefix="https://pictures.example/p")
    write_imagenet(place / "imagenet")
    write_challenge(place / "in9")
    told = ("--data", "shards", "--imagenet", "imagenet", "--imagenet9", "in9")
    done = recipe("cc3m", *told)
    assert done.exit_code == 0, done.output + repr(done.exception)
    scores = json.loads((place / "runs/cc3m/xclr/eval.json").read_text())["scores"]
    table = done.stdout.split("The paper's measures")[1]
    for encoder, name in (("trained", "xclr"), ("untrained", "untrained")):
        found, challenge = scores[encoder]["label"]["linear_top1"], scores[encoder]["imagenet-9"]
        shown = [f"{100 * value:.1f}" for value in (found, challenge["mixed_same"], challenge["mixed_rand"])]
        assert f"| {name} | {shown[0]} | – | {shown[1]} | {shown[2]} | – | – | – |" in table
    assert table.rstrip().endswith("Not measured: give --real-labels, --objectnet, --mit-states.")
    assert "evaluated before, reused" in recipe("cc3m", *told).stdout


def test_sets_that_need_imagenets_classes_are_refused_without_them(place: Path) -> None:
    write_tar_shards(place / "shards", 8, prefix="https://pictures.example/p")
    (place / "in9").mkdir()
    assert "--imagenet9 needs --imagenet" in str(recipe("cc3m", "--data", "shards", "--imagenet9", "in9").exception)
    assert "No such option" in recipe("imagenet", "--data", "imagenet", "--imagenet", "imagenet").output


def write_nouns(path: Path) -> Path:
    """Every class in the format of WordNet's data.noun, each at the byte that its wnid says."""
    content = bytearray()
    for wnid in sorted(one.folder for one in read_classes()):
        content += b" " * (int(wnid[1:]) - len(content) - 1) + b"\n"
        content += f"{wnid[1:]} 05 n 01 word 0 000 | number {wnid[1:]}\n".encode()
    path.write_bytes(content)
    return path


def test_imagenet_recipe_with_definitions_softens_the_target_unless_told_otherwise(place: Path) -> None:
    write_imagenet(place / "imagenet")
    nouns = write_nouns(place / "data.noun")
    done = recipe("imagenet", "--data", "imagenet", "--definitions", str(nouns))
    assert done.exit_code == 0, done.output + repr(done.exception)
    texts = pq.read_table(place / "graphs/imagenet/texts/part-00000.parquet")["text"].to_pylist()
    assert texts[0] == "tench: number 01440764"
    assert _toml(place / "runs/imagenet/recipe.toml")["tau_s"] == 0.15
    # The graph of definitions is not taken for one of prompts.
    refused = recipe("imagenet", "--data", "imagenet")
    assert "built with other options (definitions: " in str(refused.exception)
    assert "choose another --graph-dir" in str(refused.exception)
    told = ("--data", "imagenet", "--definitions", str(nouns), "--out", "other")
    assert recipe("imagenet", *told, settings=("tau_s=0.3",)).exit_code == 0
    assert _toml(place / "other/recipe.toml")["tau_s"] == 0.3


def test_recipe_of_captions_has_no_definitions() -> None:
    assert "No such option" in recipe("cc3m", "--data", "shards", "--definitions", "x").output


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_conceptual_recipe_trains_on_shards_of_img2dataset(place: Path, name: str) -> None:
    write_tar_shards(place / "shards", 32, prefix="https://pictures.example/p")
    checked = recipe(name, "--data", "shards", "--dry-run", "--timed-steps", "1")
    assert checked.exit_code == 1
    assert "PROBLEM  graphs/" in checked.stdout
    assert "no graph here" in checked.stdout
    assert "4 steps take" in checked.stdout, "the time is told without a graph, too"
    assert not (place / "graphs").exists()
    done = recipe(name, "--data", "shards")
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert read_metrics(place / f"runs/{name}/xclr")[-1]["step"] == 4
    assert load_config(place / f"runs/{name}/recipe.toml", {}).batches == "neighbors"


def _toml(path: Path) -> dict[str, object]:
    import tomllib

    return tomllib.loads(path.read_text())


def test_dry_run_names_a_damaged_graph_file_corrupt_images_and_foreign_pictures(place: Path) -> None:
    write_tar_shards(place / "shards", 32, prefix="https://pictures.example/p", broken=tuple(range(0, 32, 2)))
    settings = ("max_corrupt=20",)
    assert recipe("cc3m", "--data", "shards", settings=settings).exit_code == 0
    found = recipe("cc3m", "--data", "shards", "--dry-run", "--timed-steps", "1", settings=("max_corrupt=3",))
    assert "16 cannot be read, such as https://pictures.example/p-0: no image of a known format (--max-corrupt 3)" in found.stdout
    shard = next((place / "graphs/cc3m/knn").glob("*.arrow"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    found = recipe("cc3m", "--data", "shards", "--dry-run", "--timed-steps", "1", settings=settings)
    assert f"{shard.relative_to(place)} has other bytes than were written" in found.stdout
    shard.write_bytes(whole)
    write_tar_shards(place / "others", 16, prefix="https://elsewhere.example/p")
    found = recipe("cc3m", "--data", "others", "--dry-run", "--timed-steps", "1", settings=settings)
    assert "knows 0 of the 16 images" in found.stdout
    assert found.exit_code == 1


@pytest.mark.parametrize(("name", "message"), [("imagenet", "train: no such folder"), ("cc12m", "no shards (00000.tar, ...) here")])
def test_missing_data_are_one_error(place: Path, name: str, message: str) -> None:
    (place / "empty").mkdir()
    assert message in str(recipe(name, "--data", "empty").exception)


def test_settings_are_typed_and_unknown_ones_refused() -> None:
    given = parse_settings(["epochs=3", "lr=0.5", "objective=simclr", 'model="resnet18"', "--allow-missing=true"])
    assert given == {"epochs": 3, "lr": 0.5, "objective": "simclr", "model": "resnet18", "allow_missing": True}
    for bad in ("epoch=3", "epochs"):
        with pytest.raises(OptionError, match="write NAME=VALUE"):
            parse_settings([bad])
