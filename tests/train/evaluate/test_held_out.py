"""Which images an evaluation learns from and classifies: never one for both without a word."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph
from helpers_train import draw, encode, tiny_config, write_images
from PIL import Image

from graphbuild.errors import ArtifactError, OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.cli import cli
from train.config import TrainConfig
from train.evaluate.options import EvalOptions
from train.evaluate.run import EvalResult, evaluate_run
from train.run.loop import train
from train.run.result import RunResult

COUNT, HALF = 80, 40


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)


def write_noise(root: Path) -> list[str]:
    """Pictures of pure noise in class folders; their ids."""
    ids = []
    for number in range(COUNT):
        path = root / f"class {number % 4}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number)).save(path)
        ids.append(path.relative_to(root).as_posix())
    return ids


def train_steps(config: TrainConfig, run_dir: Path) -> RunResult:
    return train(replace(config, steps=1), run_dir)


def score(run_dir: Path, **options: object) -> EvalResult:
    return evaluate_run(run_dir, EvalOptions(protocols=("knn",), untrained=False, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose graph knows half of a folder of noise; the other half lies in `asked`, too."""
    root = tmp_path_factory.mktemp("half")
    ids = write_noise(root / "all")
    for name in ids[HALF:]:
        (root / "asked" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "all" / name, root / "asked" / name)
    write_graph(root / "graph", clustered_vectors(HALF, 16), samples=[(name, row) for row, name in enumerate(ids[:HALF])])
    build_knn(root / "graph", KnnConfig(k=5, sketch_dim=8))
    config = tiny_config(graph_dir=str(root / "graph"), data=str(root / "all"), id_column=None, allow_missing=True)
    train_steps(config, root / "run")
    return root


def test_the_gallery_is_the_runs_own_samples_and_not_the_whole_folder(half: Path) -> None:
    result = score(half / "run", data=str(half / "asked"))
    assert (result.train_images, result.images, result.overlap) == (HALF, HALF, 0)
    # With the pictures to classify in the gallery this is 1: each is its own nearest neighbour.
    assert result.scores["trained"]["label"]["knn_top1_k1"] < 0.6


def test_pictures_to_classify_that_stand_in_the_gallery_are_refused(half: Path) -> None:
    with pytest.raises(OptionError, match=r"40 of 40 images to classify are among .*class 0/040.png.*--allow-overlap"):
        score(half / "run", data=str(half / "asked"), train_data=str(half / "all"))
    result = score(half / "run", data=str(half / "asked"), train_data=str(half / "all"), allow_overlap=True)
    assert result.overlap == HALF
    assert "40 of which are in both" in result.summary()


def test_a_few_pictures_in_both_sets_are_named(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [encode(noise(1000 + row)) for row in range(199)]
    cells.append((half / "all/class 3/003.png").read_bytes())
    names = ["class 0", "class 1", "class 2", "class 3"] * 50
    pq.write_table(pa.table({"image": cells, "label": names}), tmp_path / "other.parquet")
    assert score(half / "run", data=str(tmp_path / "other.parquet")).overlap == 1
    assert "1 of 200 images to classify are among those to learn from (other.parquet:199)" in capsys.readouterr().err


def test_equal_names_in_different_folders_are_different_pictures(half: Path, tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "other" / f"class {number % 4}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(500 + number)).save(path)
    assert score(half / "run", data=str(tmp_path / "other")).overlap == 0


def test_one_url_is_one_picture_however_it_is_stored(tmp_path: Path) -> None:
    ids = [f"https://example.org/{number}.jpg" for number in range(24)]
    for name, kind in (("train", "png"), ("val", "bmp")):
        cells = [encode(draw(number), kind) for number in range(24)]
        pq.write_table(pa.table({"image": cells, "id": ids, "label": ["a", "b"] * 12}), tmp_path / f"{name}.parquet")
    train_steps(tiny_config(objective="simclr", data=str(tmp_path / "train.parquet")), tmp_path / "run")
    assert score(tmp_path / "run", data=str(tmp_path / "train.parquet"), allow_overlap=True).overlap == 24


def test_without_its_graph_a_runs_samples_are_not_guessed(half: Path, tmp_path: Path) -> None:
    shutil.copytree(half / "run", tmp_path / "run")
    text = (half / "run/config.toml").read_text().replace(str(half / "graph"), str(tmp_path / "gone"))
    (tmp_path / "run/config.toml").write_text(text)
    with pytest.raises(ArtifactError, match=r"not known without its graph .*--train-data"):
        score(tmp_path / "run", data=str(half / "asked"))
    kept = score(tmp_path / "run", data=str(half / "asked"), train_data=str(half / "asked"), allow_overlap=True)
    assert kept.train_images == HALF


def test_val_ids_are_classified_and_not_learned_from(half: Path, tmp_path: Path) -> None:
    names = [path.relative_to(half / "asked").as_posix() for path in sorted((half / "asked").rglob("*.png"))]
    (tmp_path / "val.txt").write_text("\n".join(names) + "\n")
    result = score(half / "run", val_ids=str(tmp_path / "val.txt"))
    assert (result.train_images, result.images) == (HALF, HALF)


def test_val_ids_that_the_run_was_trained_on_are_told(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "val.txt").write_text("class 0/000.png\nclass 1/041.png\n")
    result = score(half / "run", val_ids=str(tmp_path / "val.txt"))
    assert (result.train_images, result.images) == (HALF - 1, 2)
    assert "trained on 1 of the 2 images to classify" in capsys.readouterr().err


def test_val_ids_that_are_no_images_are_refused(half: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("class 0/000.png\nnobody.png\n")
    with pytest.raises(SourceError, match=r"1 of 2 ids are no images of .* such as 'nobody.png'; its ids look like 'class 0/"):
        score(half / "run", val_ids=str(tmp_path / "val.txt"))


@pytest.mark.parametrize("with_graph", [False, True])
def test_a_fraction_held_out_in_training_is_what_is_classified(tmp_path: Path, with_graph: bool) -> None:
    ids = [f"img-{number}" for number in range(100)]
    write_images(tmp_path / "images.parquet", 100)
    config = tiny_config(objective="simclr", data=str(tmp_path / "images.parquet"), val_fraction=0.3)
    if with_graph:
        write_graph(tmp_path / "graph", clustered_vectors(100, 16), samples=[(name, row) for row, name in enumerate(ids)])
        build_knn(tmp_path / "graph", KnnConfig(k=5, sketch_dim=8))
        config = replace(config, graph_dir=str(tmp_path / "graph"), objective="xclr")
    done = train_steps(config, tmp_path / "run")
    result = score(tmp_path / "run")
    assert result.images + result.train_images == 100
    assert 15 <= result.images <= 45
    assert done.eval_command == f"train eval {shlex.quote(str(tmp_path / 'run'))}"


def test_the_same_images_are_held_out_whatever_else_the_source_holds(tmp_path: Path) -> None:
    from train.data.held_out import held_out_mask
    from train.data.sources import open_images

    found = []
    for count in (60, 90):
        write_images(tmp_path / f"{count}.parquet", count)
        source = open_images(str(tmp_path / f"{count}.parquet"), id_column="id")
        mask = held_out_mask(source, None, 0.4)
        assert mask is not None
        found.append({name for name, held in zip(source.sample_ids, mask, strict=True) if held})
    assert found[0] == {name for name in found[1] if int(name.split("-")[1]) < 60}


@pytest.mark.parametrize("place", ["val", "test", "val.parquet"])
def test_a_validation_set_beside_the_images_is_found_and_said(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place != "val.parquet"
    write_images(tmp_path / ("train/a.parquet" if folder else "train.parquet"), 40)
    write_images(tmp_path / (f"{place}/b.parquet" if folder else place), 12, prefix="val")
    table = pq.read_table(tmp_path / (f"{place}/b.parquet" if folder else place))
    cells = pa.array([encode(draw(500 + row)) for row in range(12)], pa.binary())
    pq.write_table(table.set_column(0, "image", cells), tmp_path / (f"{place}/b.parquet" if folder else place))
    data = str(tmp_path / ("train" if folder else "train.parquet"))
    done = train_steps(tiny_config(objective="simclr", data=data), tmp_path / "run")
    assert done.eval_command == f"train eval {shlex.quote(str(tmp_path / 'run'))}"
    assert score(tmp_path / "run").images == 12
    assert f"{tmp_path / place}" in capsys.readouterr().err


def test_the_hint_after_a_run_names_what_is_missing_and_works_once_it_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images.parquet", 40)
    table = pq.read_table(tmp_path / "images.parquet").rename_columns(["image", "id", "breed"])
    pq.write_table(table, tmp_path / "images.parquet")
    done = train_steps(tiny_config(objective="simclr", data=str(tmp_path / "images.parquet")), tmp_path / "run")
    assert done.eval_command.endswith("--data HELD_OUT_IMAGES --label-column COLUMN")
    assert done.eval_command in done.summary()
    with pytest.raises(OptionError, match=r"--data.*--val-ids"):
        score(tmp_path / "run")
    cells = pa.array([encode(draw(500 + row)) for row in range(40)], pa.binary())
    pq.write_table(table.set_column(0, "image", cells), tmp_path / "other.parquet")
    command = done.eval_command.replace("HELD_OUT_IMAGES", str(tmp_path / "other.parquet")).replace("COLUMN", "breed")
    result = CliRunner().invoke(cli, [*shlex.split(command)[1:], "--protocol", "knn"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("fraction", [1.0, 1e-9])
def test_all_or_nothing_held_out_is_refused(tmp_path: Path, fraction: float) -> None:
    write_images(tmp_path / "images.parquet", 20)
    with pytest.raises(OptionError, match="would be held out"):
        train_steps(tiny_config(objective="simclr", data=str(tmp_path / "images.parquet"), val_fraction=fraction), tmp_path / "run")
