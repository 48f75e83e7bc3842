"""Several graphs in one run: what is mixed, said, stored, resumed, evaluated and refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers_ranks import run_ranks, said, train_cli
from helpers_several import IMAGES, Make, goes_on_bit_for_bit, losses
from helpers_train import tiny_config

from graphbuild.errors import ArtifactMismatch, OptionError
from train.cli import cli
from train.config import load_config
from train.data.prepare import prepare
from train.evaluate.options import EvalOptions
from train.evaluate.run import evaluate_run
from train.results.compare.arms import read_arms
from train.results.export import export_run
from train.results.report.write import write_report
from train.run.folder import read_run_config
from train.run.loop import train
from train.run.metrics import read_lines, read_metrics


@pytest.mark.parametrize(
    "options",
    [
        {"graph_weights": "0.7,0.3"},
        {"graph_weights": "7,3", "graph_mix": "similarities"},
        {"graph_mix": "similarities", "negatives": "graph"},
        {"graph_mix": "similarities", "objective": "rank"},
        {"objective": "barlow", "positives": "graph", "lr": 0.01},
        {"tau_s": "auto", "target_mass": 0.4},
    ],
    ids=str,
)
def test_run_of_two_graphs_goes_on_bit_for_bit(options: dict[str, Any], config_of: Make, tmp_path: Path) -> None:
    goes_on_bit_for_bit(config_of(("a", "b"), **options), tmp_path / "run")
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))


def test_solved_tau_s_of_mixed_targets_gives_the_mass_asked_for(config_of: Make, tmp_path: Path) -> None:
    train(config_of(("a", "b"), tau_s="auto", target_mass=0.4), tmp_path / "run")
    masses = losses(tmp_path / "run", "own_view_mass")
    assert sum(masses) / len(masses) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("options", [{"graph_weights": "1,0"}, {"graph_weights": "0,1", "graph_mix": "similarities"}], ids=str)
def test_graph_of_all_the_weight_trains_as_it_does_alone(options: dict[str, Any], config_of: Make, tmp_path: Path) -> None:
    alone = "a" if options["graph_weights"] == "1,0" else "b"
    train(config_of(("a", "b"), **options), tmp_path / "mixed")
    train(config_of((alone,)), tmp_path / "alone")
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_coverage_of_each_graph_is_said_and_logged(config_of: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(config_of(("a", "most"), steps=1), tmp_path / "run")
    said_lines, events = capfd.readouterr().err, read_lines(tmp_path / "run" / "events.jsonl")
    (coverage,) = [event["graphs"] for event in events if event["event"] == "coverage"]
    for line, known in zip(coverage, ("40 of 40 images (100.0%)", "39 of 40 images (97.5%)"), strict=True):
        assert known in line
        assert line in said_lines
    assert [event["count"] for event in events if event["event"] == "unknown_images"] == [1]
    assert "mean of targets: 0.5 of 39 images" in next(event["note"] for event in events if event["event"] == "start")


@pytest.mark.parametrize("options", [{"graphs": ("a", "half")}, {"heads": ("one=a", "two=half:0.5")}], ids=str)
def test_graph_that_knows_too_few_images_says_how_many(options: dict[str, Any], config_of: Make) -> None:
    with pytest.raises(ArtifactMismatch, match=r"half knows 20 of the 40 images .*, fewer than 95%"):
        prepare(config_of(**options))
    data = prepare(config_of(**options, allow_missing=True))
    assert len(data.store) == 20
    assert all(len(known.joined.indices) == 20 for known in data.opened.known.values())
    data.close()


@pytest.mark.parametrize("options", [{"graphs": ("a", "other")}, {"heads": ("one=a", "two=other")}], ids=str)
def test_graph_of_other_samples_is_refused(options: dict[str, Any], config_of: Make) -> None:
    with pytest.raises(ArtifactMismatch, match=r"other knows 0 of the 40 images"):
        prepare(config_of(**options, allow_missing=True))


def test_each_sample_keeps_its_texts_where_graphs_know_different_ones(config_of: Make, place: Path) -> None:
    data = prepare(config_of(("a", "half"), allow_missing=True))
    for name, texts in (("a", 40), ("half", 10)):
        known = data.by_graph(str(place / name)).joined
        assert known is not None
        assert known.text_ids.tolist() == [i % texts for i in range(0, IMAGES, 2)]
    assert data.store.sample_ids([0, 1, 2]) == ["img-0", "img-2", "img-4"]
    data.close()


def test_command_line_stores_several_graphs_and_goes_on(place: Path, tmp_path: Path) -> None:
    options = f"--data {place / 'images.parquet'} --id-column id --image-size 8 --batch-size 8 --steps 2 --device cpu --log-every 1"
    graphs = ["--graph-dir", str(place / "a"), "--graph-dir", str(place / "b"), "--graph-weights", "3,1"]
    run = ["--run-dir", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, ["run", *options.split(), *graphs, *run], catch_exceptions=False)
    assert done.exit_code == 0
    config = read_run_config(tmp_path / "run")
    assert config.graphs == (str(place / "a"), str(place / "b"))
    assert config.graph_shares == (0.75, 0.25)
    again = ["run", "--config", str(tmp_path / "run" / "config.toml"), *run]
    assert "2 steps" in CliRunner().invoke(cli, again, catch_exceptions=False).output
    with pytest.raises(OptionError, match=r"another configuration \(--graph-weights: 3,1 -> 1,1\)"):
        CliRunner().invoke(cli, [*again, "--graph-weights", "1,1"], catch_exceptions=False)


def test_list_of_graphs_in_a_file_is_several(tmp_path: Path) -> None:
    (tmp_path / "asked.toml").write_text('graph_dir = ["a", "b", "c"]\ngraph_weights = "1,2,1"\n')
    config = load_config(tmp_path / "asked.toml", {})
    assert (config.graph_dir, config.more_graphs, config.graph_shares) == ("a", ("b", "c"), (0.25, 0.5, 0.25))
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "again.toml", {}) == config
    assert load_config(tmp_path / "again.toml", {"graph_dir": ("d", "e"), "graph_weights": "1,1"}).graphs == ("d", "e")


@pytest.mark.parametrize("options", [{"graphs": ("a", "most")}, {"heads": ("one=most:0.5", "two=b")}], ids=str)
def test_evaluation_report_export_and_comparison_take_runs_of_several_graphs(
    options: dict[str, Any], config_of: Make, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = config_of(**options, steps=2, val_fraction=0.25)
    train(replace(config, graph_dir=None) if config.head else config, run)
    found = evaluate_run(run, EvalOptions(label_columns=("label",), protocols=("knn",)))
    # One image is known to one graph alone; those held out are not learned from.
    trained = prepare(config)
    assert found.train_images == len(trained.store)
    trained.close()
    assert [arm.name for arm in read_arms([run])] == ["run"]
    page = write_report([run], tmp_path / "report.html").out.read_text()
    card = export_run(run, tmp_path / "export").card.read_text()
    assert "## Graph 1" in card
    assert "## Graph 2" in card
    assert ("of head one" if config.head else "0.5 of the targets") in page
    # Absolute paths, so that the configuration holds anywhere.
    assert all(Path(path).is_absolute() for path in read_run_config(run).graphs)


def test_two_processes_train_heads_and_mixed_graphs(config_of: Make, tmp_path: Path) -> None:
    for number, config in enumerate((config_of(heads=("names=a", "tags=b:0.5")), config_of(("a", "b"), graph_weights="3,1"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "asked.toml").write_text(config.to_toml())
        arguments = ("--config", str(folder / "asked.toml"), "--run-dir", str(folder / "run"))
        assert run_ranks(2, train_cli, *arguments, folder=folder / "said") == [0, 0], said(folder / "said", 0)
        train(config, folder / "alone")
        shared, alone = (read_metrics(folder / name) for name in ("run", "alone"))
        # BatchNorm sees a process's own images, so losses differ; the targets do not.
        for name in ("own_view_mass", "target_entropy", "hit_rate"):
            assert [line[name] for line in shared] == pytest.approx([line[name] for line in alone], rel=1e-5), name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"graph_weights": "0.5,0.5"}, "--graph-weights 0.5,0.5 is for several graphs"),
        ({"more_graphs": ("b",), "graph_weights": "1"}, "--graph-weights: 1 for 2 graphs"),
        ({"more_graphs": ("b",), "graph_weights": "1,-1"}, "--graph-weights 1,-1: weights are zero or more"),
        ({"more_graphs": ("b",), "graph_weights": "0,0"}, "--graph-weights: all are zero"),
        ({"more_graphs": ("b",), "graph_weights": "1,nan"}, "weights are zero or more, and finite"),
        ({"more_graphs": ("b",), "graph_weights": "much,little"}, "'much,little' are no numbers"),
        ({"more_graphs": ("b",), "objective": "simclr"}, "--objective simclr takes no similarities from a graph"),
        ({"more_graphs": ("b",), "objective": "rank"}, "--objective rank takes similarities, .* --graph-mix similarities"),
        ({"more_graphs": ("b",), "negatives": "graph"}, "--negatives graph takes similarities, .* --graph-mix similarities"),
        ({"more_graphs": "b"}, "--more-graphs: 'b' is not a list of str"),
        ({"graph_mix": "maximum"}, "--graph-mix: 'maximum' is none of targets, similarities"),
        ({"head": ("names",)}, "--head names: write NAME=GRAPH:weight"),
        ({"head": ("a.b=graph",)}, "--head a.b=graph: write NAME=GRAPH:weight"),
        ({"head": ("names=graph:0",)}, "the weight '0' is not a number above 0"),
        ({"head": ("names=graph:-1",)}, "the weight '-1' is not a number above 0"),
        ({"head": ("names=graph:inf",)}, "the weight 'inf' is not a number above 0"),
        ({"head": ("names=graph:heavy",)}, "the weight 'heavy' is not a number above 0"),
        ({"head": ("names=a", "names=b")}, "--head names: is given twice"),
        ({"head": ("names=a",), "objective": "simclr"}, "--objective simclr would not look at it"),
        ({"head": ("names=a",), "objective": "clip"}, "--objective clip would not look at it"),
        ({"head": ("names=a",), "objective": "vicreg"}, "--objective vicreg would not look at it"),
        ({"head": ("names=a",), "objective": "supcon", "label_column": "label"}, "--objective supcon would not look at it"),
        ({"head": ("names=a",), "more_graphs": ("b",)}, "--head gives each graph a projector, and several --graph-dir are one"),
    ],
    ids=str,
)
def test_graphs_that_do_not_go_together_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        tiny_config(**options)
