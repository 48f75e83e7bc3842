"""A projector for each graph on one backbone: limit cases, what is logged and kept, and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_several import Make, goes_on_bit_for_bit, losses
from helpers_train import tiny_config

from train.config import load_config
from train.data.prepare import prepare
from train.results.export import export_run
from train.run.checkpoint import load_encoder, newest_checkpoint
from train.run.loop import train
from train.run.metrics import read_lines, read_metrics


def test_one_head_of_weight_one_is_the_plain_run_bit_for_bit(config_of: Make, tmp_path: Path) -> None:
    train(config_of(heads=("only=a:1",), optimizer="adamw"), tmp_path / "head")
    train(config_of(("a",), optimizer="adamw"), tmp_path / "plain")
    assert losses(tmp_path / "head") == losses(tmp_path / "head", "loss/only") == losses(tmp_path / "plain")
    one, other = (load_encoder(tmp_path / name).state_dict() for name in ("head", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    for name in ("own_view_mass", "hit_rate", "spread", "kl_to_dense"):
        assert losses(tmp_path / "head", name) == losses(tmp_path / "plain", name)


def test_two_heads_of_one_graph_begin_alike_and_move_the_backbone_as_one_does(config_of: Make, tmp_path: Path) -> None:
    train(config_of(heads=("one=a:0.5", "two=a:0.5"), steps=1), tmp_path / "two")
    train(config_of(steps=1), tmp_path / "plain")
    assert losses(tmp_path / "two") == losses(tmp_path / "two", "loss/two") == losses(tmp_path / "plain")
    two, plain = (load_encoder(tmp_path / name).backbone.state_dict() for name in ("two", "plain"))
    for name in plain:
        torch.testing.assert_close(two[name], plain[name], rtol=1e-6, atol=1e-7, msg=name)
    saved = newest_checkpoint(tmp_path / "two", print)
    assert saved is not None
    heads = [{name.split(".", 1)[1]: value for name, value in saved.weights.items() if name.startswith(f"head_{head}.")}
             for head in ("one", "two")]  # fmt: skip
    assert heads[0].keys() == heads[1].keys()
    assert heads[0]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.parametrize(
    "options",
    [
        {"heads": ("names=a:0.5", "tags=b:2")},
        {"heads": ("names=a", "tags=b"), "objective": "supcon"},
        {"heads": ("names=a", "tags=b"), "tau": "learned", "tau_s": "auto"},
        {"heads": ("names=a", "tags=b"), "objective": "simsiam", "positives": "graph", "predictor_hidden": 4},
    ],
    ids=str,
)
def test_run_of_heads_goes_on_bit_for_bit_and_logs_each(options: dict[str, Any], config_of: Make, tmp_path: Path) -> None:
    config = config_of(**options)
    goes_on_bit_for_bit(config, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    for line in lines:
        weighted = sum(head.weight * line[f"loss/{head.name}"] for head in config.heads)
        assert line["loss"] == pytest.approx(weighted, rel=1e-6)
        assert line["spread/tags"] > 0
    note = read_lines(tmp_path / "run" / "events.jsonl")[1]["note"]
    assert "head names, weight" in note
    assert "; head tags, weight" in note


def test_chunks_of_neighbours_are_those_of_the_first_graph(config_of: Make, place: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batches": "neighbors", "chunk": 4, "tau_s": "auto", "target_positives": 3.0, "steps": 2}
    train(config_of(heads=("names=a", "tags=b"), **options), tmp_path / "run")
    assert (place / "a" / "partition").is_dir()
    assert not (place / "b" / "partition").exists()


def test_export_keeps_the_backbone_and_the_run_its_first_head(config_of: Make, tmp_path: Path) -> None:
    train(config_of(heads=("names=a", "tags=b"), steps=2), tmp_path / "run")
    exported, encoder = export_run(tmp_path / "run", tmp_path / "export"), load_encoder(tmp_path / "run")
    from safetensors.torch import load_file

    weights = load_file(exported.weights)
    assert weights.keys() == encoder.backbone.state_dict().keys()
    saved = newest_checkpoint(tmp_path / "run", print)
    assert saved is not None
    for name, value in encoder.projector.state_dict().items():
        assert torch.equal(saved.weights[f"head_names.projector.{name}"], value)


def test_graphs_that_moved_do_not_make_another_run(config_of: Make) -> None:
    one = config_of(heads=("names=a", "tags=b:0.5"))
    moved = replace(one, head=("names=/elsewhere/a", "tags=/elsewhere/b:0.5"))
    assert one.differences(moved) == {}
    heavier = replace(one, head=(one.head[0], "tags=/elsewhere/b:0.6"))
    assert list(one.differences(heavier)) == ["head"]


def test_head_of_a_graph_that_is_not_there_names_it(config_of: Make) -> None:
    from graphbuild.errors import ArtifactError

    with pytest.raises(ArtifactError, match="nowhere"):
        prepare(config_of(heads=("names=a", "tags=nowhere")))


def test_names_and_paths_of_heads_survive_their_writing(tmp_path: Path) -> None:
    config = tiny_config(head=("names=/a b/c:d/graph:0.1", "tags-2=x"))
    assert [(head.name, head.graph_dir, head.weight) for head in config.heads] == [
        ("names", "/a b/c:d/graph", 0.1),
        ("tags-2", "x", 1.0),
    ]
    (tmp_path / "asked.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "asked.toml", {}) == config
    assert json.loads(json.dumps(config.head)) == list(config.head)
