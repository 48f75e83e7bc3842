"""`train compare` against SciPy, and over run folders made by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from helpers_train import tiny_config, write_images, write_tiny_graph
from PIL import Image

from graphbuild.errors import ArtifactError, OptionError
from train.cli import cli
from train.config import Objective, TrainConfig
from train.results.compare.differences import difference, holm_adjusted
from train.results.compare.figure import accuracy_curve
from train.results.compare.matrices import draw
from train.results.compare.table import Cell, compare
from train.run.loop import train

KNN = {"simclr": (0.10, 0.12, 0.11), "xclr": (0.15, 0.17, 0.165), "twin": (0.102, 0.119, 0.112)}


def write_run(folder: Path, seed: int, knn: float, *, objective: Objective = "simclr", tau: float = 0.1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(TrainConfig(objective=objective, seed=seed, tau=tau).to_toml())
    return write_scores(folder, knn)


def write_scores(folder: Path, knn: float) -> Path:
    scores = {"knn_top1": knn, "linear_top1": knn + 0.1, "linear_n1": knn / 4, "linear_n5": knn / 2}
    column = {**scores, "n_train": 1000.0, "classes": 10.0, "severity": 7.5}
    (folder / "eval.json").write_text(json.dumps({"scores": {"trained": {"label": column}}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three arms of three seeds."""
    objectives: dict[str, Objective] = {"simclr": "simclr", "xclr": "xclr", "twin": "supcon"}
    return [
        write_run(tmp_path / name / f"seed-{seed}", seed, value, objective=objectives[name])
        for name, values in KNN.items()
        for seed, value in enumerate(values)
    ]


def test_paired_difference_is_scipys() -> None:
    one, other = np.array(KNN["xclr"]), np.array(KNN["simclr"])
    found = difference(dict(enumerate(one)), dict(enumerate(other)))
    low, high = scipy.stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found.paired
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), rel=1e-4)


def test_unpaired_difference_is_scipys_welch() -> None:
    one, other = {0: 0.1, 1: 0.14, 2: 0.2}, {5: 0.3, 6: 0.31, 7: 0.28, 8: 0.29}
    found = difference(one, other)
    test = scipy.stats.ttest_ind(list(one.values()), list(other.values()), equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert not found.paired
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.p == pytest.approx(test.pvalue)


def test_p_value_of_pairs_is_scipys() -> None:
    one, other = np.array(KNN["xclr"]), np.array(KNN["simclr"])
    assert difference(dict(enumerate(one)), dict(enumerate(other))).p == pytest.approx(scipy.stats.ttest_rel(one, other).pvalue)


def test_holm_gives_the_values_of_a_published_example() -> None:
    # Aickin and Gensler 1996, American Journal of Public Health 86(5), and R's p.adjust(p, "holm").
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjusted([]) == []


def test_equivalence_is_two_one_sided_tests_at_5_percent() -> None:
    gaps = np.array([0.0004, -0.0011, 0.0009, -0.0002, 0.0007])
    found = difference(dict(enumerate(gaps)), dict.fromkeys(range(5), 0.0))
    for bound in (0.0005, 0.0008, 0.001, 0.0015, 0.002):
        lower = scipy.stats.ttest_1samp(gaps, -bound, alternative="greater").pvalue
        upper = scipy.stats.ttest_1samp(gaps, bound, alternative="less").pvalue
        assert found.equivalent(bound) == (max(lower, upper) < 0.05)
    assert [found.equivalent(bound) for bound in (0.0005, 0.002)] == [False, True]
    assert difference({0: 0.1}, {0: 0.1}).equivalent(1) is None


def test_pairing_finds_what_the_spread_over_seeds_hides() -> None:
    one, other = {0: 0.1, 1: 0.5, 2: 0.9}, {0: 0.11, 1: 0.511, 2: 0.909}
    assert difference(other, one).significant
    assert not difference({seed + 5: value for seed, value in other.items()}, one).significant


def test_single_runs_are_neither_alike_nor_different() -> None:
    assert difference({0: 0.1}, {0: 0.9}).significant is None


def test_runs_that_differ_in_their_seed_alone_are_one_arm(runs: list[Path]) -> None:
    found = compare(runs)
    assert [(arm.name, sorted(arm.scores)) for arm in found.arms] == [(name, [0, 1, 2]) for name in KNN]


def test_what_is_not_told_apart_from_the_baseline_is_marked(runs: list[Path]) -> None:
    cells = {(cell.arm, cell.measure): cell.text() for cell in compare(runs).cells}
    assert cells["simclr", "knn_top1"].startswith("11.0 ± ")
    assert "≈" not in cells["xclr", "knn_top1"]
    assert cells["twin", "knn_top1"].endswith("≈")


def test_intervals_are_scipys(runs: list[Path]) -> None:
    cell = next(cell for cell in compare(runs).cells if (cell.arm, cell.measure) == ("xclr", "knn_top1"))
    values = KNN["xclr"]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert cell.half is not None
    assert (cell.mean - cell.half, cell.mean + cell.half) == pytest.approx((low, high), rel=1e-4)


def test_markdown_has_a_row_an_arm_and_a_cell_a_measure(runs: list[Path]) -> None:
    lines = compare(runs, measures=("knn_top1", "label/severity")).to_markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert cells[0] == ["arm", "runs", "knn_top1", "severity"]
    assert [row[:2] for row in cells[2:]] == [[name, "3"] for name in KNN]
    assert cells[2][3] == "7.50 ± 0.00"


def test_csv_and_json_hold_the_same_cells(runs: list[Path]) -> None:
    found = compare(runs, baseline="xclr")
    rows, cells = list(csv.DictReader(io.StringIO(found.to_csv()))), found.to_json()["cells"]
    assert [(row["arm"], row["measure"], float(row["mean"])) for row in rows] == [
        (cell["arm"], cell["measure"], cell["mean"]) for cell in cells
    ]
    assert {cell["significant"] for cell in cells if cell["arm"] == "xclr"} == {None}


def test_arms_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"simclr-{n}", 0, 0.1, tau=tau) for n, tau in ((1, 0.1), (2, 0.2))]
    assert [arm.name for arm in compare(paths).arms] == ["simclr (1)", "simclr (2)"]


def test_two_runs_of_one_seed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="second run of simclr with seed 0"):
        compare([write_run(tmp_path / f"simclr-{n}", 0, 0.1) for n in (1, 2)])


def test_a_run_that_was_not_evaluated_names_the_command(runs: list[Path]) -> None:
    (runs[4] / "eval.json").unlink()
    with pytest.raises(ArtifactError, match="train eval"):
        compare(runs)


def test_a_damaged_evaluation_is_named(runs: list[Path]) -> None:
    (runs[4] / "eval.json").write_text('{"scores": []}')
    with pytest.raises(ArtifactError, match=r"seed-1/eval\.json: cannot be read"):
        compare(runs)


@pytest.mark.parametrize(
    ("options", "message"), [({"measures": ("fid",)}, "--measure fid"), ({"baseline": "byol"}, "There are: simclr, xclr, twin")]
)
def test_unknown_names_are_refused_with_those_that_exist(runs: list[Path], options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        compare(runs, **options)  # type: ignore[arg-type]


def test_curve_is_accuracy_by_samples_per_class(runs: list[Path]) -> None:
    arm = compare(runs).arms[0]
    assert [(samples, round(mean, 4)) for samples, mean, _ in accuracy_curve(arm, "label")] == [
        (1, 0.0275),
        (5, 0.055),
        (100, 0.21),
    ]


def test_command_prints_the_table_and_draws_the_figure(runs: list[Path], tmp_path: Path) -> None:
    arguments = ["compare", *map(str, runs), "--format", "json", "--figure", str(tmp_path / "curves.png")]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["baseline"] == "simclr"
    assert Image.open(tmp_path / "curves.png").size[0] > 600


def test_matrices_of_texts_and_of_every_arm_are_drawn(tmp_path: Path) -> None:
    write_images(tmp_path / "images.parquet", 40)
    write_tiny_graph(tmp_path / "graph", 40)
    config = tiny_config(data=str(tmp_path / "images.parquet"), graph_dir=str(tmp_path / "graph"), epochs=1)
    objectives: tuple[Objective, ...] = ("xclr", "simclr")
    for objective in objectives:
        train(replace(config, objective=objective), tmp_path / objective)
        write_scores(tmp_path / objective, 0.1)
    paths = [str(tmp_path / objective) for objective in objectives]
    result = CliRunner().invoke(cli, ["compare", *paths, "--matrices", str(tmp_path / "matrices.png")], catch_exceptions=False)
    assert result.exit_code == 0
    # Texts, the untrained net and two arms, side by side.
    width, height = Image.open(tmp_path / "matrices.png").size
    assert 3 < width / height < 4


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_figure_is_the_same_bytes_every_time_and_whole_or_not_there(suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for path in paths:
        draw({"texts": np.eye(4, dtype=np.float32)}, path)
    whole = paths[0].read_bytes()
    assert whole == paths[1].read_bytes()
    # Such a title fails only when the figure is saved.
    with pytest.raises(ValueError, match="frac"):
        draw({"$\\frac$": np.eye(4, dtype=np.float32)}, paths[0])
    assert paths[0].read_bytes() == whole
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_figure_of_an_unknown_form_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\.png, \.svg, \.pdf"):
        CliRunner().invoke(cli, ["compare", *map(str, runs), "--figure", str(tmp_path / "a.docx")], catch_exceptions=False)


def test_differences_stand_in_place_of_means_but_for_the_baseline(runs: list[Path]) -> None:
    result = CliRunner().invoke(cli, ["compare", *map(str, runs), "--differences", "--measure", "knn_top1"])
    assert result.exit_code == 0, result.output
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[2].strip(" |") for line in result.output.splitlines()[2:5]}
    gaps = np.array(KNN["xclr"]) - np.array(KNN["simclr"])
    low, high = scipy.stats.t.interval(0.95, 2, gaps.mean(), gaps.std(ddof=1) / np.sqrt(3))
    assert rows["xclr"] == f"+{100 * gaps.mean():.2f} ± {50 * (high - low):.2f}"
    assert rows["twin"].endswith("≈")
    assert rows["simclr"].startswith("11.0 ± ")


def test_holm_corrects_over_all_differences_of_the_table(runs: list[Path]) -> None:
    found = compare(runs, measures=("knn_top1", "linear_n5"), holm=True)
    tested = [cell for cell in found.cells if cell.versus is not None]
    assert len(tested) == 4
    plain = [cell.versus.p for cell in tested if cell.versus is not None]
    assert [cell.holm_p for cell in tested] == holm_adjusted([p for p in plain if p is not None])
    assert "over 4 differences by Holm's method" in found.to_markdown()


def test_a_difference_can_lose_its_mark_of_significance_by_the_correction_alone(tmp_path: Path) -> None:
    gaps = {"plain": (0, 0, 0), "near": (0.010, 0.012, 0.005), "noise": (0.01, -0.01, 0.001)}
    bases = (0.1, 0.15, 0.2)
    paths = [
        write_run(tmp_path / name / f"seed-{seed}", seed, bases[seed] + gap, tau=0.1 + place / 10)
        for place, (name, values) in enumerate(gaps.items())
        for seed, gap in enumerate(values)
    ]
    near = {corrected: _cell(paths, "near", holm=corrected).significant for corrected in (False, True)}
    assert near == {False: True, True: False}
    assert not _cell(paths, "noise", holm=True).significant


def _cell(paths: list[Path], arm: str, *, holm: bool) -> Cell:
    found = compare(paths, measures=("knn_top1",), holm=holm)
    return next(cell for cell in found.cells if cell.arm == arm)


def test_command_marks_what_lies_within_the_bound_of_equivalence_but_not_severity(runs: list[Path]) -> None:
    measures = ["--measure", "knn_top1", "--measure", "severity"]
    arguments = ["compare", *map(str, runs), "--differences", "--holm", "--equivalence", "0.6", *measures]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[2:] for line in result.output.splitlines()[2:5]}
    assert [cell.split()[3:] for cell in rows["twin"]] == [["≈", "="], ["≈"]]
    assert "=" not in "".join(rows["xclr"])
    assert "no difference above 0.6 points" in result.output
    cells = json.loads(CliRunner().invoke(cli, [*arguments, "--format", "json"]).output)["cells"]
    assert {cell["equivalent"] for cell in cells if cell["arm"] == "twin" and cell["measure"] == "knn_top1"} == {True}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"precision": "bfloat16"}, "different precision (seed 0: bfloat16 and float32)"),
        ({"device": "cuda:1"}, "different device (seed 0: cuda and cpu)"),
        ({"data": "/b.parquet"}, "different images to train on (seed 0: /b.parquet and /a.parquet)"),
        ({"val_fraction": 0.1}, "different images to train on (seed 0: /a.parquet --val-fraction 0.1 and /a.parquet)"),
    ],
)
def test_pairs_of_runs_under_different_conditions_are_told(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    paths = [write_run(tmp_path / name / f"seed-{seed}", seed, 0.1 + seed / 100) for name in ("one", "two") for seed in (0, 1)]
    alike = TrainConfig(precision="float32", device="cpu", data="/a.parquet")
    for seed, path in enumerate(paths):
        other = {"objective": "simclr", **changes} if path.parent.name == "two" else {}
        (path / "config.toml").write_text(replace(alike, seed=seed % 2, **other).to_toml())  # type: ignore[arg-type]
    (note,) = compare(paths).notes
    assert note == f"two and one: 2 of 2 pairs of runs are of {told}."
    assert note in compare(paths).to_markdown()
    csv_result = CliRunner().invoke(cli, ["compare", *map(str, paths), "--format", "csv"], catch_exceptions=False)
    assert note in csv_result.stderr
    assert note not in csv_result.stdout


def test_pairs_that_were_scored_on_other_images_are_told_and_equal_ones_are_not(runs: list[Path]) -> None:
    assert compare(runs).notes == ()
    file = runs[4] / "eval.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "data": "/val.parquet"}))
    (note,) = compare(runs).notes
    assert note == "xclr and simclr: 1 of 3 pairs of runs are of different images to score on (seed 1: /val.parquet and None)."
