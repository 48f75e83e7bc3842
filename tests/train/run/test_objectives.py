"""Every objective in the one loop: it trains, goes on after a stop, says what it lacks, and several processes are as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_family import KINDS, family_loss, family_loss_and_gradients
from helpers_ranks import net, run_ranks, said, train_cli
from helpers_several import goes_on_bit_for_bit, losses
from helpers_targets import laid_out, slow_entropy, slow_own_view_mass
from helpers_train import CLASSES, tiny_config, write_images, write_tiny_graph

from graphbuild.errors import OptionError
from graphbuild.store.graph import Graph
from graphbuild.torch.soft_targets import SoftTargets
from train.cli import cli
from train.config import Objective, TrainConfig, field_groups
from train.config.kinds import CONTRASTIVE, flag
from train.data.prepare import prepare
from train.run.checkpoint import load_encoder
from train.run.loop import settle, train
from train.run.metrics import read_lines, read_metrics
from train.run.objectives import registered
from train.run.temperature import Sample, solve_tau_s, wanted_of
from train.run.trainer import Trainer

IMAGES = 32
VARIANTS: list[dict[str, Any]] = [
    {"objective": "xclr", "negatives": "decoupled"},
    {"objective": "supcon", "negatives": "decoupled-weighted"},
    {"objective": "xclr", "negatives": "hard", "beta": 0.5, "prior": 0.1},
    {"objective": "xclr", "negatives": "graph", "own_weight": 0.5},
    {"objective": "simclr", "negatives": "graph"},
    {"objective": "xclr", "negatives": "mixed", "hardest": 6, "mixtures": 3},
    {"objective": "xclr", "tau": "learned"},
    {"objective": "xclr", "queue": 12},
    {"objective": "simclr", "queue": 20, "tau": "learned", "loss_tile": 3},
    {"objective": "supcon", "queue": 12, "negatives": "mixed", "hardest": 6, "mixtures": 3},
    {"objective": "xclr", "tau_s": "auto", "target_mass": 0.4},
    {"objective": "vicreg", "lr": 0.01},
    {"objective": "vicreg", "positives": "graph", "lr": 0.01},
    {"objective": "barlow", "lr": 0.01},
    {"objective": "barlow", "positives": "graph", "lr": 0.01},
    {"objective": "simsiam", "predictor_hidden": 4},
    {"objective": "simsiam", "positives": "graph", "tau_s": "auto"},
    {"objective": "lejepa", "lejepa_directions": 8},
    {"objective": "lejepa", "positives": "graph", "lejepa_directions": 8},
    {"objective": "rank"},
]


def named(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    write_images(folder / "images.parquet", IMAGES)
    write_tiny_graph(folder / "graph", IMAGES)
    return folder


@pytest.fixture
def config_of(place: Path) -> Callable[..., TrainConfig]:
    def make(**options: Any) -> TrainConfig:
        return tiny_config(graph_dir=str(place / "graph"), data=str(place / "images.parquet"), **options)

    return make


def test_every_objective_of_the_configuration_is_registered() -> None:
    assert set(registered()) == set(get_args(Objective))
    assert {name for name, needs in registered().items() if needs.queue} == set(CONTRASTIVE)


@pytest.mark.parametrize("options", VARIANTS, ids=named)
def test_a_run_goes_on_bit_for_bit_from_a_checkpoint(
    options: dict[str, Any], config_of: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    second = goes_on_bit_for_bit(config_of(**options, epochs=1, checkpoint_every=2), tmp_path / "whole")
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "whole"))
    weights, others = load_encoder(tmp_path / "whole").state_dict(), second.learner.encoder.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_parts_of_the_loss_are_logged(config_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train(config_of(objective="vicreg", steps=1), tmp_path / "run")
    (line,) = read_metrics(tmp_path / "run")
    assert line["loss"] == pytest.approx(25 * line["invariance"] + 25 * line["variance"] + line["covariance"], rel=1e-5)
    assert (line["kl"], line["own_view_mass"]) == (None, 1.0)


def test_vicreg_trains_at_the_rate_that_it_has_by_itself(config_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train(config_of(objective="vicreg", lr=None, epochs=3), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert sum(found[-3:]) < sum(found[:3])


def test_learned_temperature_begins_as_clips_and_is_logged(config_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train(config_of(tau="learned"), tmp_path / "run")
    values = [line["tau"] for line in read_metrics(tmp_path / "run")]
    assert values[0] == pytest.approx(0.07)
    assert len(set(values)) == len(values)


def test_solved_tau_s_gives_the_mass_asked_for_and_is_recorded(config_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train(config_of(tau_s="auto", target_mass=0.3), tmp_path / "run")
    note = read_lines(tmp_path / "run" / "events.jsonl")[0]["note"]
    assert "by --tau-s auto, for an own-view mass of 0.3" in note
    found = float(note.split("tau_s ")[1].split()[0])
    train(config_of(tau_s=found), tmp_path / "same")
    lines, same = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "same")
    assert [line["loss"] for line in lines] == [line["loss"] for line in same]
    # Four batches of an epoch were the sample; captions of the second epoch are the same here, batches are not.
    assert sum(line["own_view_mass"] for line in lines[:4]) / 4 == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("mass", [0.2, 0.36, 0.9])
def test_solve_inverts_the_own_view_mass(mass: float) -> None:
    blocks = random_blocks()
    found = solve_tau_s([Sample(rows_of(block)) for block in blocks], wanted_of(tiny_config(tau_s="auto", target_mass=mass)))
    assert np.mean([slow_own_view_mass(laid_out(block, found)) for block in blocks]) == pytest.approx(mass, abs=1e-3)


@pytest.mark.parametrize("mass", [0.3, 0.5, 0.8])
def test_solve_inverts_the_own_class_mass(mass: float) -> None:
    blocks, classes = random_blocks(), np.arange(12) % 4
    same = np.equal.outer(classes, classes)
    for block in blocks:
        block[same] = 1.0
    options = tiny_config(tau_s="auto", target_mass=mass, mass_of="own-class")
    found = solve_tau_s([Sample(rows_of(block), torch.from_numpy(same)) for block in blocks], wanted_of(options))
    shares = [(laid_out(block, found) * np.tile(same, (2, 2))).sum(axis=1).mean() for block in blocks]
    assert np.mean(shares) == pytest.approx(mass, abs=1e-3)


@pytest.mark.parametrize("positives", [2.0, 7.5, 15.0])
def test_solve_inverts_the_number_of_effective_positives(positives: float) -> None:
    blocks = random_blocks()
    options = tiny_config(tau_s="auto", target_positives=positives)
    found = solve_tau_s([Sample(rows_of(block)) for block in blocks], wanted_of(options))
    assert np.exp(np.mean([slow_entropy(laid_out(block, found)) for block in blocks])) == pytest.approx(positives, rel=1e-3)


def random_blocks() -> list[Any]:
    blocks = np.random.default_rng(0).random((3, 12, 12))
    for block in blocks:
        np.fill_diagonal(block, 1.0)
    return list(blocks)


def rows_of(block: Any) -> Callable[[float], torch.Tensor]:
    return lambda _: torch.from_numpy(block)


def test_mass_that_cannot_be_reached_says_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"--target-mass 0\.9 cannot be reached.* the nearest is 0\.333, at --tau-s 0\.001"):
        solve_tau_s([Sample(rows_of(np.ones((2, 2))))], wanted_of(tiny_config(tau_s="auto", target_mass=0.9)))
    with pytest.raises(OptionError, match=r"--target-positives 40 cannot be reached.* the nearest is 3, at --tau-s"):
        solve_tau_s([Sample(rows_of(np.ones((2, 2))))], wanted_of(tiny_config(tau_s="auto", target_positives=40.0)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mass_of": "own-class", "target_mass": 0.5}, "for an own-class mass of 0.5"),
        ({"mass_of": "own-class", "target_mass": 0.6, "label_column": "label"}, "for an own-class mass of 0.6"),
        ({"target_positives": 4.0}, "for a number of effective positives of 4"),
    ],
    ids=str,
)
def test_run_solves_for_what_is_asked_and_says_it(
    options: dict[str, Any], says: str, config_of: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    train(config_of(tau_s="auto", **options, steps=4), tmp_path / "run")
    assert f"by --tau-s auto, {says}" in read_lines(tmp_path / "run" / "events.jsonl")[0]["note"]
    if "target_positives" in options:
        entropies = [line["target_entropy"] for line in read_metrics(tmp_path / "run")]
        assert math.exp(sum(entropies) / 4) == pytest.approx(4.0, rel=0.03)


@pytest.mark.parametrize(
    ("options", "measure", "wanted"),
    [
        ({"target_mass": 0.2}, "own_view_mass", 0.2),
        ({"target_positives": 12.0}, "target_entropy", math.log(12.0)),
    ],
    ids=str,
)
def test_solved_tau_s_counts_what_a_queue_holds(
    options: dict[str, Any], measure: str, wanted: float, config_of: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    train(config_of(tau_s="auto", queue=12, steps=10, **options), tmp_path / "run")
    # From the third step on the queue is full.
    found = [line[measure] for line in read_metrics(tmp_path / "run")[2:]]
    assert sum(found) / len(found) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": -1.0}, "--beta: -1.0 is not at least 0"),
        ({"prior": 1.0}, "--prior: 1.0 is not less than 1"),
        ({"prior": -0.1}, "--prior: -0.1 is not at least 0"),
        ({"dclw_sigma": 0.0}, "--dclw-sigma: 0.0 is not more than 0"),
        ({"negatives": "mixed", "mixtures": 15}, "--hardest 32 and --mixtures 15 do not fit --batch-size 8, .* have 14 negatives"),
        ({"negatives": "hard", "objective": "clip"}, "--negatives hard is for --objective xclr, simclr, supcon, not for clip"),
        ({"queue": 8, "objective": "rank"}, "--queue 8 is for --objective xclr, simclr, supcon, not for rank"),
        ({"queue": -1}, "--queue: -1 is not at least 0"),
        ({"positives": "graph"}, "--positives graph is for --objective vicreg, barlow, simsiam, lejepa, not for xclr"),
        ({"tau": "learned", "objective": "rank"}, "--tau learned is for --objective xclr, simclr, supcon, not for rank"),
        ({"tau": "learned", "objective": "clip"}, "--tau learned is for .*, not for clip. Leave it out: clip learns its own"),
        ({"beta": 2.0}, "--beta 2.0 is read with --negatives hard alone. Add that, or leave it out"),
        ({"prior": 0.1, "negatives": "graph"}, "--prior 0.1 is read with --negatives hard alone"),
        ({"hardest": 4}, "--hardest 4 is read with --negatives mixed alone"),
        ({"dclw_sigma": 0.3, "negatives": "decoupled"}, "--dclw-sigma 0.3 is read with --negatives decoupled-weighted alone"),
        ({"target_mass": 0.3}, "--target-mass 0.3 is read with --tau-s auto alone"),
        ({"target_positives": 4.0}, "--target-positives 4.0 is read with --tau-s auto alone"),
        ({"mass_of": "own-class", "tau_s": 0.2}, "--mass-of own-class is read with --tau-s auto alone"),
        ({"tau_s": "auto", "target_mass": 0.3, "target_positives": 4.0}, "--target-mass and --target-positives both say"),
        ({"vicreg_variance": 3.0}, "--vicreg-variance 3.0 is for --objective vicreg, not for xclr. Leave it out"),
        ({"beta": 2.0, "objective": "vicreg"}, "--beta 2.0 is for --objective xclr, simclr, supcon, not for vicreg"),
        ({"text_width": 128, "objective": "rank"}, "--text-width 128 is for --objective clip, not for rank"),
        ({"tau": "auto"}, "--tau: 'auto' is not a float"),
        ({"tau_s": "auto", "own_weight": 0.5}, "--tau-s auto .* which --own-weight 0.5 sets"),
        ({"tau_s": "auto", "objective": "simclr"}, "--tau-s auto .* which --objective simclr lacks"),
        ({"tau_s": "auto", "objective": "simclr", "negatives": "graph"}, "--tau-s auto .* which --objective simclr lacks"),
        ({"tau_s": "auto", "objective": "rank"}, "--tau-s auto .* which --objective rank lacks"),
        ({"target_mass": 0.0}, "--target-mass: 0.0 is not more than 0"),
        ({"target_positives": 0.5}, "--target-positives: 0.5 is not at least 1"),
        ({"target_positives": 4.0, "mass_of": "own-class"}, "--target-positives asks for no mass, and --mass-of own-class does"),
        ({"predictor_hidden": 0}, "--predictor-hidden: 0 is not at least 1"),
        ({"lejepa_isotropy": 1.5}, "--lejepa-isotropy: 1.5 is not at least 0 and at most 1"),
        ({"lejepa_directions": 0}, "--lejepa-directions: 0 is not at least 1"),
        ({"vicreg_invariance": -1.0}, "--vicreg-invariance: -1.0 is not at least 0"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        tiny_config(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"objective": "rank"}, "rank needs a graph, for the order of neighbours: name it with --graph-dir"),
        ({"objective": "clip"}, "clip needs a graph, for its captions and its tokenizer"),
        ({"objective": "simclr", "negatives": "graph"}, "simclr with --negatives graph needs a graph"),
        ({"objective": "vicreg", "positives": "graph"}, "vicreg with --positives graph needs a graph"),
    ],
    ids=str,
)
def test_what_lacks_its_graph_says_so(options: dict[str, Any], says: str, config_of: Callable[..., TrainConfig]) -> None:
    data = prepare(replace(config_of(objective="simclr"), graph_dir=None))
    with pytest.raises(OptionError, match=says):
        Trainer(settle(data.opened.settle(config_of(**options))), data)
    data.close()


def test_queue_larger_than_the_data_is_refused(config_of: Callable[..., TrainConfig]) -> None:
    data = prepare(config_of(objective="simclr"))
    with pytest.raises(OptionError, match=r"--queue 25 is more than there are images beside a batch: 24 of 32 with --batch-size 8"):
        Trainer(settle(data.opened.settle(config_of(objective="simclr", queue=25))), data)
    data.close()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("objective", ["simclr", "supcon", "xclr"])
def test_loss_with_a_queue_is_that_against_the_images_before(
    objective: str, learned: bool, config_of: Callable[..., TrainConfig]
) -> None:
    labels = "label" if objective == "supcon" else None
    config = config_of(objective=objective, queue=12, label_column=labels, loss_tile=3, **({"tau": "learned"} if learned else {}))
    tau = 0.25 if learned else float(config.tau)
    data = prepare(config)
    learner = Trainer(settle(data.opened.settle(config)), data).learner
    graph = SoftTargets(config.graph_dir or "")
    rng = np.random.default_rng(0)
    past_samples, past = np.zeros(0, np.int64), np.zeros((2, 0, config.projector_dim))
    # The last batch has images that the queue still holds.
    for samples in (np.arange(8), np.arange(8, 16), np.arange(16, 24), np.arange(12, 20)):
        views = rng.standard_normal((2, 8, config.projector_dim))
        views /= np.linalg.norm(views, axis=2, keepdims=True)
        encode = Given((torch.from_numpy(views).flatten(0, 1), torch.tensor(1 / tau, dtype=torch.float64) if learned else None))
        found = learner.loss(encode, torch.zeros(16, 3, 4, 4), learner.target(samples, 0)).soft
        columns, every = np.concatenate([samples, past_samples]), np.concatenate([views, past], axis=1)
        if objective == "xclr":
            texts = torch.from_numpy(data.joined.text_ids[data.joined.offsets[columns]] if data.joined else columns)
            similarity = graph.of_texts(texts).rows(0, 8).double().numpy()
        else:
            keys = columns % CLASSES if objective == "supcon" else columns
            similarity = np.where(np.equal.outer(keys[:8], keys), 1.0, -np.inf)
        expected = slow_loss_of_some(every.reshape(-1, config.projector_dim), similarity, tau, float(config.tau_s))
        assert float(found.loss) == pytest.approx(expected, abs=1e-6)
        past_samples = np.concatenate([past_samples, samples])[-12:]
        past = np.concatenate([past, views.astype(np.float32)], axis=1)[:, -12:]
    data.close()


def test_negatives_by_the_graph_see_similarities_before_the_options_of_the_target(config_of: Callable[..., TrainConfig]) -> None:
    config = config_of(negatives="graph", own_weight=1.0, min_similarity=0.5)
    data = prepare(config)
    target = Trainer(settle(data.opened.settle(config)), data).learner.target(np.arange(8), 0)
    texts = torch.from_numpy(data.joined.text_ids[data.joined.offsets[:8]] if data.joined else np.arange(8))
    plain = SoftTargets(config.graph_dir or "").of_texts(texts).rows(0, 8)
    assert torch.equal(target.repulsion.graph.rows(0, 8), plain)
    assert not torch.equal(target.positives.rows(0, 8), plain)
    data.close()


class Given(torch.nn.Module):
    """Returns what it was given, whatever it is asked for."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, _: torch.Tensor) -> Any:
        return self.output


def slow_loss_of_some(z: Any, similarity: Any, tau: float, tau_s: float) -> float:
    """Mean cross-entropy of both views of the first samples with all others, pair by pair."""
    anchors, samples = similarity.shape
    rows = []
    for view in range(2):
        for anchor in range(anchors):
            itself = view * samples + anchor
            others = [place for place in range(2 * samples) if place != itself]
            wanted = np.exp((np.array([similarity[anchor, place % samples] for place in others]) - 1) / tau_s)
            logits = np.array([z[itself] @ z[place] for place in others]) / tau
            rows.append(np.log(np.exp(logits).sum()) - (wanted / wanted.sum()) @ logits)
    return float(np.mean(rows))


def test_help_lists_options_of_some_objectives_under_their_names() -> None:
    text = CliRunner().invoke(cli, ["run", "--help"]).output
    shared, *sections = text.split("\nOptions of ")
    headings = {section.split(":")[0]: section for section in sections}
    assert set(headings) == set(field_groups().values())
    for name, group in field_groups().items():
        assert f"  {flag(name)} " in headings[group]
        assert f"  {flag(name)} " not in shared


def test_two_processes_train_with_what_is_drawn_solved_and_learned(config_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = config_of(tau="learned", tau_s="auto", negatives="mixed", hardest=6, mixtures=3, queue=16, epochs=1)
    (tmp_path / "asked.toml").write_text(config.to_toml())
    arguments = ("--config", str(tmp_path / "asked.toml"), "--run-dir", str(tmp_path / "run"))
    assert run_ranks(2, train_cli, *arguments, folder=tmp_path / "said") == [0, 0], said(tmp_path / "said", 0)
    train(config, tmp_path / "alone")
    one, two = (read_lines(path / "events.jsonl")[0]["note"] for path in (tmp_path / "alone", tmp_path / "run"))
    assert one == two
    assert all(math.isfinite(line["loss"]) for line in read_metrics(tmp_path / "run"))


def test_two_processes_give_the_loss_and_gradients_of_one(place: Path, tmp_path: Path) -> None:
    assert run_ranks(2, family_loss_and_gradients, place / "graph", tmp_path, folder=tmp_path / "said") == [0, 0]
    targets = SoftTargets(Graph.open(place / "graph").path)
    for seed, kind in enumerate(KINDS):
        model = net()
        family_loss(kind, model, seed, targets, range(24), None).backward()
        for rank in range(2):
            loss, gradients = torch.load(tmp_path / f"found-{rank}.pt")[kind]
            model_loss = family_loss(kind, net(), seed, targets, range(24), None)
            assert abs(loss - model_loss) < 1e-9, kind
            for found, weight in zip(gradients, model.parameters(), strict=True):
                torch.testing.assert_close(found, weight.grad, rtol=0, atol=1e-8, msg=kind)
