"""The study over a few drawn pictures in Tiny-ImageNet's layout, and its parts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from helpers_study import NAMES, short_evaluations, write_source
from numpy.typing import NDArray

from graphbuild.errors import ArtifactMismatch, OptionError, SourceError
from graphbuild.store.graph import Graph
from pipelines.study.__main__ import study
from pipelines.study.data import StudyData, describe_classes, hold_out, prepare_data
from pipelines.study.execute import StudyConfig
from pipelines.study.graphs import build_graph, shuffle, similarity_of
from pipelines.study.jobs import claim
from pipelines.study.plan import ARMS, plan
from pipelines.study.scenes import prepare_scenes
from train.results.compare.table import compare

ENCODER = "hashing:32"
ARMS_RUN = ("simclr", "xclr", "xclr-shuffled")
SELECTED = tuple(word for arm in ARMS_RUN for word in ("--only", arm))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny-ImageNet's and WordNet's files, with ten classes."""
    root = tmp_path_factory.mktemp("source")
    write_source(root)
    return root


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return prepare_data(source, tmp_path_factory.mktemp("prepared"))


def test_held_out_classes_are_a_fifth_and_fixed() -> None:
    assert hold_out(list(NAMES)) == hold_out(list(reversed(NAMES))) == ["dog", "frog"]


def test_no_image_of_a_held_out_class_is_trained_on(data: StudyData) -> None:
    held = set(data.held_out.read_text().split())
    assert len(held) == 2
    assert set(pl.read_parquet(data.seen)["name"]) == set(NAMES) - held
    assert set(pl.read_parquet(data.val)["name"]) == set(pl.read_parquet(data.known)["name"]) == set(NAMES)
    assert len(pl.read_parquet(data.seen)) == 8 * 24


def test_definition_is_that_of_the_sense_that_the_class_means(source: Path) -> None:
    described = dict(describe_classes(source / "classes").select("name", "described").iter_rows())
    assert described["reel"] == "reel: a winder for film"
    assert described["cat"] == "cat: a pet that purrs"
    assert described["bus"] == "bus: bus"


def test_definitions_of_real_classes_fit(shared_data: Path) -> None:
    described = dict(describe_classes(shared_data / "classes").select("name", "described").iter_rows())
    assert "citric" in described["lemon"] or "fruit" in described["lemon"]
    assert "ball" in described["volleyball"].split(": ")[1]
    assert len(described) == 200


def similarity(graph_dir: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Texts of a complete graph, and the similarity of each to each."""
    graph = Graph.open(graph_dir)
    rows, matrix = graph.rows(np.arange(graph.n_texts)), np.ones((graph.n_texts, graph.n_texts), np.float32)
    np.put_along_axis(matrix, rows.neighbor_ids, rows.similarities.astype(np.float32), axis=1)
    return pl.read_parquet(graph_dir / "texts/*.parquet")["text"].to_list(), matrix


def test_shuffled_graph_has_the_same_weights_between_other_texts(data: StudyData, tmp_path: Path) -> None:
    names, true = similarity(build_graph("prompts", data, tmp_path, ENCODER))
    shuffled_names, shuffled = similarity(build_graph("prompts+shuffled", data, tmp_path, ENCODER))
    order = [names.index(f"a photo of a {name}") for name in shuffled_names]
    aligned = true[np.ix_(order, order)]
    off = ~np.eye(len(order), dtype=bool)
    np.testing.assert_allclose(np.sort(shuffled[off]), np.sort(aligned[off]), atol=2e-3)
    assert np.abs(shuffled - aligned)[off].mean() > 0.02


def test_random_graph_has_the_same_weights_between_random_pairs(data: StudyData, tmp_path: Path) -> None:
    names, true = similarity(build_graph("prompts", data, tmp_path, ENCODER))
    drawn_names, drawn = similarity(build_graph("prompts+random", data, tmp_path, ENCODER))
    off = ~np.eye(len(names), dtype=bool)
    np.testing.assert_allclose(np.sort(drawn[off]), np.sort(true[off]), atol=2e-3)
    np.testing.assert_array_equal(drawn, drawn.T)
    # A shuffled graph is the true one under other names; rows of this one are not those of any text.
    assert not any(np.allclose(np.sort(row), np.sort(other), atol=2e-3) for row in drawn for other in true)
    assert len(drawn_names) == len(names)


def test_arm_of_a_second_encoder_is_planned_where_one_is_named(data: StudyData, tmp_path: Path) -> None:
    assert "xclr-second-encoder/seed-0" not in [planned.name for planned in plan([], None)]
    assert [planned.name for planned in plan(["xclr-second-encoder"], None, second=True)] == ["xclr-second-encoder/seed-0"]
    with pytest.raises(OptionError, match="with --second-encoder"):
        plan(["xclr-second-encoder"], None)
    texts = [
        similarity(build_graph(name, data, tmp_path, f"hashing:{dim}")) for name, dim in (("prompts", 32), ("second-prompts", 16))
    ]
    assert texts[0][0] == texts[1][0]
    assert np.abs(texts[0][1] - texts[1][1]).max() > 0.05


def test_shuffling_leaves_no_text_in_its_place() -> None:
    matrix = np.diag(np.arange(50.0))
    assert not (np.diag(shuffle(matrix)) == np.arange(50)).any()
    assert sorted(np.diag(shuffle(matrix))) == list(range(50))


def test_pictures_have_the_captions_of_others_in_the_shuffled_graph_of_captions(tmp_path: Path) -> None:
    captions = [[f"a {colour} {thing}", f"the {thing}"] for colour in ("red", "blue") for thing in NAMES]
    files = [f"{row}.jpg" for row in range(len(captions))]
    pl.DataFrame({"image": [b""] * len(files), "file": files, "captions": captions}).write_parquet(tmp_path / "flickr.parquet")
    data = StudyData(tmp_path, tmp_path)
    assert data.images("flickr+shuffled") == data.images("flickr") == tmp_path / "flickr.parquet"
    shown = {}
    for name in ("flickr", "flickr+shuffled"):
        graph = Graph.open(build_graph(name, data, tmp_path / "graphs", ENCODER))
        texts = pl.read_parquet(graph.path / "texts/*.parquet").sort("text_id")["text"]
        found = graph.sample_texts(files)
        shown[name] = [set(texts.gather(found.text_ids[start:stop])) for start, stop in pairwise(found.offsets)]
        assert graph.sketch_dim
    assert all(own != other for own, other in zip(shown["flickr"], shown["flickr+shuffled"], strict=True))
    assert sorted(map(sorted, shown["flickr"])) == sorted(map(sorted, shown["flickr+shuffled"]))


def test_centring_forgets_what_all_texts_share() -> None:
    vectors, shared = np.random.default_rng(0).standard_normal((30, 8)), np.arange(8.0)
    np.testing.assert_allclose(similarity_of(vectors + shared, centred=True), similarity_of(vectors, centred=True), atol=1e-12)
    assert similarity_of(vectors + shared, centred=False).min() > 0.5


def test_wordnet_graph_is_one_less_an_eighth_of_the_distance(data: StudyData, tmp_path: Path) -> None:
    names, matrix = similarity(build_graph("wordnet", data, tmp_path, ENCODER))
    assert matrix[names.index("cat"), names.index("newt")] == 0.75
    assert matrix[names.index("cat"), names.index("bus")] == 0.5


def test_every_run_has_a_folder_of_its_own() -> None:
    names = [planned.name for planned in plan([], None)]
    assert len(names) == len(set(names)) > 30


def test_all_arms_of_a_group_get_a_seed_before_the_next() -> None:
    assert [planned.name for planned in plan(["core"], 2)] == [
        f"{arm}/seed-{seed}" for seed in (0, 1) for arm in ("simclr", "supcon", "xclr", "xclr-shuffled")
    ]
    assert [planned.name for planned in plan(["xclr-names"], None)] == ["xclr-names/seed-0"]


def test_runs_with_few_pictures_see_a_share_of_the_budget(tmp_path: Path) -> None:
    config = StudyConfig(out=tmp_path, budget=320_000, batch_size=256, encoder=ENCODER, records=tmp_path)
    steps = {arm.group: config.steps(arm) for arm in ARMS}
    assert (steps["core"], steps["flickr"], steps["scenes"]) == (1250, 96_000 // 256, 48_000 // 256)


def test_an_unknown_arm_is_refused_with_those_that_exist() -> None:
    with pytest.raises(OptionError, match=r"--only byol: no such arm or group\. There are: core, "):
        plan(["byol"], None)


def run_study(source: Path, out: Path, *options: str, budget: int = 64) -> str:
    arguments = ["--data", str(source), "--out", str(out), "--budget", str(budget), "--batch-size", "32", "--encoder", ENCODER]
    result = CliRunner().invoke(study, [*arguments, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    with short_evaluations():
        run_study(source, out, *SELECTED, "--seeds", "1")
    return out


def test_every_run_saw_the_budget_and_was_evaluated(finished: Path) -> None:
    runs = sorted(finished.glob("runs/*/seed-0"))
    assert [run.parent.name for run in runs] == list(ARMS_RUN)
    for run in runs:
        assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["images_seen"] == 64
        scores = json.loads((run / "eval.json").read_text())["scores"]["trained"]["name"]
        assert scores["classes"] == 8
        assert {"knn_top1", "linear_top1", "superclass_p10", "few_shot_mean_5", "severity_all"} <= set(scores)


def test_runs_differ_in_what_their_arms_name_alone(finished: Path) -> None:
    lines = [set((finished / f"runs/{arm}/seed-0/config.toml").read_text().splitlines()) for arm in ("xclr", "xclr-shuffled")]
    assert {line.split(" =")[0] for line in lines[0] ^ lines[1]} == {"graph_dir", "absent"}


def test_a_second_call_does_nothing_but_what_is_missing(source: Path, finished: Path) -> None:
    weights = finished / "runs/xclr/seed-0/model.safetensors"
    before = weights.stat().st_mtime_ns
    evaluated = finished / "runs/simclr/seed-0/eval.json"
    evaluated.unlink()
    (finished / "records/simclr/seed-0/eval.json").unlink()
    output = run_study(source, finished, *SELECTED, "--seeds", "1")
    assert (output.count("was finished before"), output.count("was trained before")) == (2, 1)
    assert weights.stat().st_mtime_ns == before
    assert evaluated.exists()


def test_dry_run_tells_what_is_done(source: Path, finished: Path) -> None:
    output = run_study(source, finished, *SELECTED, "--seeds", "2", "--dry-run")
    assert [line.split()[0] for line in output.splitlines()] == ["done"] * 3 + ["to"] * 3


def test_recorded_runs_are_not_made_again_and_give_the_same_table(source: Path, finished: Path, tmp_path: Path) -> None:
    output = run_study(source, tmp_path, *SELECTED, "--seeds", "1", "--records", str(finished / "records"))
    assert output.count("was finished before") == 3
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "tables/core.md").read_text() == (finished / "tables/core.md").read_text()


def test_records_name_no_place(finished: Path) -> None:
    files = sorted((finished / "records").glob("*/seed-0/*"))
    assert [path.name for path in files] == ["config.toml", "eval.json"] * 3
    assert not [path for path in files if str(finished) in path.read_text() or "/tmp" in path.read_text()]


def test_seeds_of_one_arm_from_two_places_are_one_arm(source: Path, finished: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    shutil.copytree(finished / "records", records)
    # As if the first seed had been trained on a machine with bfloat16.
    config = records / "simclr/seed-0/config.toml"
    config.write_text(config.read_text().replace("# Trained in float32", "# Trained in bfloat16"))
    with short_evaluations():
        run_study(source, tmp_path / "elsewhere", "--only", "simclr", "--seeds", "2", "--records", str(records))
    found = compare(sorted(records.glob("simclr/seed-*")))
    assert [(arm.name, sorted(arm.scores)) for arm in found.arms] == [("simclr", [0, 1])]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_records_of_another_budget_are_refused_before_anything_is_trained(
    source: Path, finished: Path, tmp_path: Path, dry: tuple[str, ...]
) -> None:
    options = ("--only", "supcon", "--seeds", "1", "--records", str(finished / "records"), *dry)
    with pytest.raises(ArtifactMismatch, match=r"simclr/seed-0: was made with steps 2, and 4 is asked for"):
        run_study(source, tmp_path, *options, budget=128)
    assert not (tmp_path / "runs").exists()


def test_a_trained_run_of_another_budget_is_refused(source: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatch, match=r"runs/simclr/seed-0: was made with steps 2, and 4 is asked for"):
        run_study(source, finished, *SELECTED, "--seeds", "1", "--records", str(tmp_path / "none"), budget=128)


def command(source: Path, out: Path, *options: str, budget: int = 64) -> list[str]:
    """A study of a real process, whose evaluations are as long as ever."""
    arguments = ["--data", str(source), "--out", str(out), "--budget", str(budget), "--batch-size", "32", "--encoder", ENCODER]
    return [sys.executable, "-m", "pipelines.study", *arguments, *options]


@pytest.mark.slow
def test_jobs_share_the_runs_and_make_each_once(source: Path, finished: Path, tmp_path: Path) -> None:
    options = ("--only", "simclr", "--only", "xclr", "--seeds", "1", "--jobs", "2")
    done = subprocess.run(command(source, tmp_path, *options), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    begun = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("[")]
    assert sorted(begun) == ["simclr/seed-0", "xclr/seed-0"]
    assert "| xclr | 1 |" in (tmp_path / "tables/core.md").read_text()
    # What a run comes to does not depend on who makes it.
    for name in ("simclr/seed-0", "xclr/seed-0"):
        lines = [json.loads((out / f"runs/{name}/metrics.jsonl").read_text().splitlines()[-1]) for out in (finished, tmp_path)]
        assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_study_that_is_stopped_stops_its_jobs_which_leave_checkpoints(source: Path, tmp_path: Path) -> None:
    options = ("--only", "simclr", "--only", "xclr", "--seeds", "1", "--jobs", "2")
    long = command(source, tmp_path, *options, budget=3_200_000)
    process = subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    runs = [tmp_path / f"runs/{arm}/seed-0" for arm in ("simclr", "xclr")]
    deadline = time.monotonic() + 120
    while not all((run / "metrics.jsonl").exists() for run in runs):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # As a terminal does it: every process of the group gets it.
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    for run in runs:
        assert list((run / "checkpoints").iterdir())
        with claim(run) as free:
            assert free


def test_records_with_other_checkpoints_are_the_same_study(source: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "records", tmp_path / "records")
    for config in (tmp_path / "records").glob("*/*/config.toml"):
        config.write_text(config.read_text().replace("checkpoint_every = ", "checkpoint_every = 3"))
    output = run_study(source, tmp_path / "elsewhere", *SELECTED, "--seeds", "1", "--records", str(tmp_path / "records"))
    assert output.count("was finished before") == 3


def test_runs_of_another_process_are_left_to_it_and_named(source: Path, tmp_path: Path) -> None:
    with claim(tmp_path / "runs/simclr/seed-0"):
        output = run_study(source, tmp_path, "--only", "simclr", "--seeds", "1")
    assert "1 runs are left to another process, which is at them: simclr/seed-0" in output
    assert not (tmp_path / "runs/simclr/seed-0").exists()


def test_comparison_of_the_runs_has_a_row_an_arm(finished: Path) -> None:
    found = compare(sorted(finished.glob("runs/*/seed-*")), baseline="simclr")
    assert [arm.name for arm in found.arms] == list(ARMS_RUN)


def test_table_of_the_core_is_what_compare_gives(finished: Path) -> None:
    found = compare(sorted(finished.glob("runs/*/seed-*")), baseline="xclr-shuffled")
    assert (finished / "tables/core.md").read_text() == found.to_markdown() + "\n"
    assert not (finished / "tables/scenes.md").exists()


def test_scenes_are_correlated_to_train_on_and_not_when_asked(tmp_path: Path) -> None:
    prepare_scenes(tmp_path, drawn=1200, val=300)
    train, val = (pl.read_parquet(tmp_path / f"scenes-{split}.parquet") for split in ("train", "val"))
    together = train.group_by("object", "background").len().sort("len").group_by("object").last()
    assert 0.8 < together["len"].sum() / len(train) <= 1
    assert train["follows"].mean() == pytest.approx(0.9, abs=0.01)
    assert val["follows"].mean() < 0.2
    assert (train["object_matched"] == train["object"]).all()
    assert val["object_matched"].is_not_null().to_list() == val["object_broken"].is_null().to_list() == val["follows"].to_list()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"tiny_imagenet/train-\*\.parquet: no such file"):
        prepare_data(tmp_path, tmp_path / "out")


def test_no_group_is_named_like_an_arm() -> None:
    assert not {arm.group for arm in ARMS} & {arm.name for arm in ARMS}
