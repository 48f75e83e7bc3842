"""Training on a share of each class: how many, which, and what is said of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_train import draw, encode, tiny_config, write_images

from graphbuild.errors import OptionError
from train.config import TrainConfig
from train.data.prepare import open_data
from train.evaluate.options import EvalOptions
from train.evaluate.run import evaluate_run
from train.results.compare.table import compare
from train.run.loop import train


def config_of(folder: Path, **changes: object) -> TrainConfig:
    """Fifty images of five classes, ten each."""
    data = write_images(folder / "images.parquet", 50)
    return replace(tiny_config(objective="simclr", data=str(data), epochs=1), **changes)  # type: ignore[arg-type]


def chosen(config: TrainConfig) -> set[str]:
    return set(open_data(config).source.sample_ids)


def by_class(ids: set[str]) -> list[int]:
    return sorted(Counter(int(name.removeprefix("img-")) % 5 for name in ids).values())


@pytest.mark.parametrize(("changes", "count"), [({"per_class": 3}, 3), ({"fraction": 0.4}, 4), ({"fraction": 0.001}, 1)])
def test_every_class_gives_the_same_number(tmp_path: Path, changes: dict[str, object], count: int) -> None:
    assert by_class(chosen(config_of(tmp_path, **changes))) == [count] * 5


def test_budgets_of_a_seed_are_nested_and_other_seeds_choose_others(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    two, five, other = (chosen(replace(config, per_class=n, seed=seed)) for n, seed in ((2, 0), (5, 0), (2, 1)))
    assert two < five
    assert two == chosen(replace(config, fraction=0.2))
    assert two != other


def test_images_held_out_are_in_no_budget(tmp_path: Path) -> None:
    config = config_of(tmp_path, val_fraction=0.3)
    assert chosen(replace(config, per_class=3)) < chosen(config)


def test_classes_that_have_fewer_are_taken_whole_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(chosen(config_of(tmp_path, per_class=11))) == 50
    assert "--per-class 11: 50 of 50 images are trained on; 5 classes have fewer" in capfd.readouterr().err


def write_without_classes(path: Path) -> str:
    pq.write_table(pa.table({"image": [encode(draw(i)) for i in range(20)], "id": [f"img-{i}" for i in range(20)]}), path)
    return str(path)


def test_fraction_of_images_without_classes_is_one_of_all(tmp_path: Path) -> None:
    config = config_of(tmp_path, data=write_without_classes(tmp_path / "plain.parquet"), fraction=0.25)
    assert len(chosen(config)) == 5


def test_per_class_without_classes_is_refused_and_names_the_option(tmp_path: Path) -> None:
    config = config_of(tmp_path, data=write_without_classes(tmp_path / "plain.parquet"), per_class=2)
    with pytest.raises(OptionError, match=r"--per-class 2: .*says no classes.*--label-column.*--fraction"):
        open_data(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": 0}, "--per-class: 0 is not at least 1"),
        ({"fraction": 0.0}, "--fraction: 0.0 is not more than 0 and at most 1"),
        ({"fraction": 1.5}, "--fraction: 1.5 is not more than 0 and at most 1"),
        ({"per_class": 5, "fraction": 0.5}, "--per-class 5 and --fraction 0.5 are two budgets"),
    ],
)
def test_bad_budget_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainConfig(**changes)  # type: ignore[arg-type]


def test_evaluation_learns_from_the_budget_alone_and_it_is_told_with_the_comparison(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_images(tmp_path / "val.parquet", 10, prefix="val")
    for name, changes in (("all", {}), ("some", {"per_class": 4})):
        train(replace(config, **changes), tmp_path / name)  # type: ignore[arg-type]
        options = EvalOptions(data=str(tmp_path / "val.parquet"), protocols=("knn",), untrained=False, allow_overlap=True)
        result = evaluate_run(tmp_path / name, options)
        assert (result.budget, result.train_images) == (("--per-class 4", 20) if changes else ("", 50))
    (note,) = compare([tmp_path / "all", tmp_path / "some"], measures=("knn_top1",)).notes
    assert note.endswith("images.parquet --per-class 4 and " + str(config.data) + ").")
