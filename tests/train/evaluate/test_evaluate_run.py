"""`evaluate_run` on a run that was trained for a few steps on drawn squares."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from graphbuild.errors import ArtifactError, OptionError, SourceError
from train.config import TrainConfig
from train.data.parquet import ParquetImages
from train.data.store import CorruptImages, ImageStore
from train.evaluate.features import extract_features
from train.evaluate.options import EvalOptions, ProtocolName
from train.evaluate.protocols.knn import knn_predict
from train.evaluate.run import evaluate_run
from train.run.checkpoint import load_encoder, save_encoder
from train.run.loop import train
from train.run.scores import read_scores
from train.run.trainer import build_model

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
BASE = TrainConfig(objective="simclr", image_size=16, batch_size=16, steps=3, device="cpu", precision="float32")


def write_squares(path: Path, count: int, *, seed: int, broken: int = 0) -> Path:
    """Noisy squares of three colours, a bright corner on half of them; the last `broken` are no images."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        colour, corner = list(COLOURS)[i % 3], bool(rng.integers(2))
        pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 25, (20, 20, 3)), 0, 255).astype(np.uint8)
        pixels[:6, :6] = 255 if corner else pixels[:6, :6]
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        content = stream.getvalue() if i < count - broken else b"no image"
        rows.append({"image": content, "label": colour, "corner": "lit" if corner else None, "id": f"{path.stem}-{i}"})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("squares")
    return write_squares(folder / "train.parquet", 96, seed=0), write_squares(folder / "val.parquet", 48, seed=1, broken=2)


@pytest.fixture(scope="module")
def run_dir(squares: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "simclr-1"
    train(replace(BASE, data=str(squares[0])), folder)
    return folder


def test_a_run_is_scored_and_the_scores_lie_in_its_folder(run_dir: Path, squares: tuple[Path, Path]) -> None:
    result = evaluate_run(run_dir, EvalOptions(data=str(squares[1]), device="cpu"))
    assert read_scores(run_dir / "eval.json") == result.to_json()
    assert set(result.scores) == {"trained", "untrained"}
    # Colours are told apart by any net, trained or not.
    assert result.scores["trained"]["label"]["knn_top1"] > 0.9
    assert not list(run_dir.glob(".eval*"))


def test_images_that_cannot_be_read_are_left_out_and_counted(run_dir: Path, squares: tuple[Path, Path]) -> None:
    result = evaluate_run(run_dir, EvalOptions(data=str(squares[1]), untrained=False))
    assert (result.images, result.train_images, result.corrupt_images) == (46, 96, 2)


def test_every_label_column_has_its_row_in_the_table(run_dir: Path, squares: tuple[Path, Path]) -> None:
    result = evaluate_run(run_dir, EvalOptions(data=str(squares[1]), label_columns=("label", "corner")))
    lines = [line.split()[:2] for line in result.summary().splitlines()[1:]]
    assert lines[0] == ["scores", "of"]
    assert all([column, name] in lines for column in ("label", "corner") for name in ("chance", "knn_top1", "linear_top1"))
    assert result.scores["trained"]["corner"]["unlabelled"] > 0


def test_untrained_scores_are_those_of_the_initial_weights(run_dir: Path, squares: tuple[Path, Path]) -> None:
    result = evaluate_run(run_dir, EvalOptions(data=str(squares[1])))
    encoder = build_model(BASE, torch.device("cpu"))
    sides = []
    for path in squares:
        source = ParquetImages([path])
        store = ImageStore(source, size=16, corrupt=CorruptImages("x", 10))
        found = extract_features([encoder], store, device=torch.device("cpu"))
        sides += [found.by_encoder[0], torch.from_numpy(source.labels("label").codes[found.rows])]
    expected = knn_predict(sides[0], sides[1], sides[2], ks=(20,), classes=3)[20] == sides[3]
    assert result.scores["untrained"]["label"]["knn_top1"] == pytest.approx(float(expected.float().mean()), abs=0.05)


def test_features_do_not_depend_on_what_else_is_in_the_batch(squares: tuple[Path, Path]) -> None:
    encoder = build_model(BASE, torch.device("cpu"))
    source = ParquetImages([squares[0]])
    whole, part = (
        extract_features(
            [encoder], ImageStore(source, size=16, corrupt=CorruptImages("x", 0), indices=rows), device=torch.device("cpu")
        )
        for rows in (None, np.array([70, 3]))
    )
    torch.testing.assert_close(part.by_encoder[0], whole.by_encoder[0][[70, 3]], rtol=1e-4, atol=1e-5)


def test_classes_are_matched_by_name_and_not_by_number(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    # Without red, the numbers of the other two classes differ from those of training.
    table = pq.read_table(squares[1]).slice(0, 40)
    keep = pa.array([name != "blue" for name in table["label"].to_pylist()])
    pq.write_table(table.filter(keep), tmp_path / "two.parquet")
    result = evaluate_run(run_dir, EvalOptions(data=str(tmp_path / "two.parquet"), untrained=False))
    assert result.scores["trained"]["label"]["knn_top1"] > 0.9


def test_other_images_to_learn_from_may_be_named(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    few = write_squares(tmp_path / "few.parquet", 12, seed=3)
    result = evaluate_run(run_dir, EvalOptions(data=str(squares[1]), train_data=str(few), untrained=False))
    assert (result.train_images, result.train_data) == (12, str(few))


def test_an_unknown_label_column_names_those_that_exist(run_dir: Path, squares: tuple[Path, Path]) -> None:
    with pytest.raises(SourceError, match=r"'breed'.*label, corner, id"):
        evaluate_run(run_dir, EvalOptions(data=str(squares[1]), label_columns=("breed",)))


def test_without_a_usual_label_column_the_choice_is_asked_for(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    pq.write_table(pq.read_table(squares[0], columns=["image", "corner"]), tmp_path / "bare.parquet")
    with pytest.raises(OptionError, match="--label-column: corner"):
        evaluate_run(run_dir, EvalOptions(data=str(squares[1]), train_data=str(tmp_path / "bare.parquet")))


def test_features_are_kept_and_a_second_call_decodes_nothing(
    run_dir: Path, squares: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate_run(run_dir, EvalOptions(data=str(squares[1])))
    monkeypatch.setattr("train.evaluate.cache.extract_features", None)
    assert evaluate_run(run_dir, EvalOptions(data=str(squares[1]))) == first


@pytest.mark.parametrize("change", ["an image", "the weights", "a cut file", "a flipped bit"])
def test_features_are_made_anew_where_anything_changed(
    run_dir: Path, squares: tuple[Path, Path], tmp_path: Path, change: str
) -> None:
    folder, val = Path(shutil.copytree(run_dir, tmp_path / "run")), Path(shutil.copy(squares[1], tmp_path / "val.parquet"))
    options = EvalOptions(data=str(val), untrained=False, protocols=("knn",))
    evaluate_run(folder, options)
    before = {path: path.stat().st_mtime_ns for path in (folder / "features").iterdir()}
    if change == "an image":
        write_squares(val, 48, seed=5)
    elif change == "the weights":
        encoder = load_encoder(folder)
        torch.nn.init.zeros_(next(encoder.parameters()))
        save_encoder(folder / "model.safetensors", encoder)
    elif change == "a cut file":
        for path in before:
            path.write_bytes(path.read_bytes()[:100])
    else:
        for path in before:
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content)
    evaluate_run(folder, options)
    made = [path for path in (folder / "features").iterdir() if before.get(path) != path.stat().st_mtime_ns]
    assert len(made) == {"an image": 1, "the weights": 2, "a cut file": len(before), "a flipped bit": len(before)}[change]


def test_without_a_cache_nothing_is_kept(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("features"))
    evaluate_run(tmp_path / "run", EvalOptions(data=str(squares[1]), cache=False, protocols=("knn",)))
    assert not (tmp_path / "run/features").exists()


def test_held_out_classes_are_asked_of_few_shot_alone(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("blue\nred\n")
    result = evaluate_run(run_dir, EvalOptions(data=str(squares[1]), held_out=str(tmp_path / "held.txt"), untrained=False))
    scores = result.scores["trained"]["label"]
    assert (scores["classes"], scores["held_out_classes"]) == (1.0, 2.0)
    assert scores["n_train"] == 32
    assert scores["held_out_knn"] > 0.9
    assert scores["few_shot_mean_5"] > 0.8


def test_what_is_not_asked_for_is_not_measured(run_dir: Path, squares: tuple[Path, Path]) -> None:
    scores = evaluate_run(run_dir, EvalOptions(data=str(squares[1]), protocols=("retrieval",))).scores["trained"]["label"]
    assert "retrieval_p10" in scores
    assert not {"knn_top1", "linear_top1", "linear_n1"} & set(scores)


def test_severity_comes_with_a_hierarchy(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    lines = ["name\thypernym_path", *(f"{name}\tcolour > {name}" for name in COLOURS)]
    (tmp_path / "paths.tsv").write_text("\n".join(lines))
    options = EvalOptions(data=str(squares[1]), hierarchy=str(tmp_path / "paths.tsv"), protocols=("severity",))
    assert evaluate_run(run_dir, options).scores["trained"]["label"]["severity_chance"] == pytest.approx(2)


@pytest.mark.parametrize(("protocol", "option"), [("few-shot", "held-out"), ("severity", "hierarchy")])
def test_a_protocol_without_its_file_names_the_option(run_dir: Path, protocol: ProtocolName, option: str) -> None:
    with pytest.raises(OptionError, match=f"--protocol {protocol} needs --{option}"):
        evaluate_run(run_dir, EvalOptions(protocols=(protocol,)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hierarchy": "paths.tsv"}, r"--hierarchy is for the protocol severity, .* Add --protocol severity"),
        ({"superclass_column": "coarse"}, r"--superclass-column is for the protocol retrieval"),
        ({"templates": "prompts.json"}, r"--templates is for the protocol zero-shot"),
        ({"objectnet": "pictures"}, r"--objectnet is for the protocol objectnet"),
        ({"protocols": (), "in9_map": "map.json"}, r"--in9-map is for the protocol imagenet-9, .* Add --imagenet9"),
    ],
)
def test_an_option_of_a_protocol_that_is_not_asked_for_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        EvalOptions(**{"protocols": ("knn", "few-shot"), "held_out": "classes.txt", **options}).chosen()


def test_held_out_names_that_are_no_classes_are_an_error(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("purple\n")
    with pytest.raises(SourceError, match="no class of label is listed"):
        evaluate_run(run_dir, EvalOptions(data=str(squares[1]), held_out=str(tmp_path / "held.txt")))


def test_an_encoder_alone_scores_as_in_its_run(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    options = EvalOptions(data=str(squares[1]), train_data=str(squares[0]), untrained=False, protocols=("knn",))
    in_run = evaluate_run(run_dir, options)
    alone = evaluate_run(Path(shutil.copy(run_dir / "model.safetensors", tmp_path / "net.safetensors")), options)
    assert alone.scores == in_run.scores
    assert json.loads((tmp_path / "net.eval.json").read_text())["objective"] == "not recorded"
    assert list((tmp_path / "net.features").glob("*.safetensors"))


def test_an_exported_backbone_scores_as_its_run(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    options = EvalOptions(data=str(squares[1]), train_data=str(squares[0]), untrained=False, protocols=("knn",))
    weights = {name: tensor.contiguous() for name, tensor in load_encoder(run_dir).backbone.state_dict().items()}
    save_file(weights, tmp_path / "backbone.safetensors", {"format": "pt", "model": "small", "image_size": "16"})
    assert evaluate_run(tmp_path / "backbone.safetensors", options).scores == evaluate_run(run_dir, options).scores


@pytest.mark.parametrize("kind", ["cut", "of another network", "missing"])
def test_a_damaged_encoder_is_named(run_dir: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.safetensors"
    if kind == "cut":
        path.write_bytes((run_dir / "model.safetensors").read_bytes()[:200])
    elif kind == "of another network":
        save_file({"weight": torch.zeros(3)}, path, {"format": "pt", "model": "resnet18", "image_size": "16"})
    with pytest.raises(ArtifactError, match=r"net\.safetensors"):
        evaluate_run(path, EvalOptions(data="x", train_data="x"))


def test_an_encoder_alone_needs_images_to_be_named(run_dir: Path, tmp_path: Path) -> None:
    shutil.copy(run_dir / "model.safetensors", tmp_path / "net.safetensors")
    with pytest.raises(OptionError, match="--train-data"):
        evaluate_run(tmp_path / "net.safetensors")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not the folder of a run"):
        evaluate_run(tmp_path)


def test_an_unfinished_run_is_refused(run_dir: Path, squares: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes((run_dir / "config.toml").read_bytes())
    with pytest.raises(ArtifactError, match="not finished"):
        evaluate_run(tmp_path, EvalOptions(data=str(squares[1])))
