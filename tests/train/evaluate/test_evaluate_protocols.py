"""Low data, retrieval, few-shot and severity against slow loops and against what must come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from helpers_evaluate import blobs, make_task
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphbuild.errors import SourceError
from graphbuild.store.hierarchy import read_hierarchy
from train.evaluate.intervals import mean_interval
from train.evaluate.protocols.few_shot import few_shot_scores
from train.evaluate.protocols.low_data import low_data_scores
from train.evaluate.protocols.retrieval import retrieval_scores
from train.evaluate.protocols.severity import severity_scores
from train.evaluate.protocols.task import Labelled, Task, draw_per_class


def test_interval_of_draws_is_scipys() -> None:
    values = [0.31, 0.35, 0.28, 0.36]
    mean, half = mean_interval(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert half is not None
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-5)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.5]) == (0.5, None)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 3))
def test_draw_takes_so_many_of_every_class_or_all_that_it_has(labels: list[int], count: int, seed: int) -> None:
    codes = torch.tensor(labels)
    rows = draw_per_class(codes, count, seed)
    assert len(set(rows.tolist())) == len(rows)
    drawn = torch.bincount(codes[rows], minlength=5)
    assert drawn.tolist() == torch.bincount(codes, minlength=5).clamp_max(count).tolist()


def test_draws_of_other_seeds_differ() -> None:
    codes = torch.arange(100) % 4
    assert not torch.equal(draw_per_class(codes, 5, 0).sort().values, draw_per_class(codes, 5, 1).sort().values)


def test_more_labels_are_worth_more_and_draws_have_an_interval() -> None:
    (train, labels), (test, truth) = blobs(2000, spread=2.5), blobs(400, spread=2.5, seed=1)
    scores = low_data_scores(make_task(train, labels, test, truth))
    assert scores["linear_n1"] < scores["linear_n5"] < scores["linear_n20"] < scores["linear_10pct"]
    assert scores["linear_n1_ci95"] > 0


def test_what_takes_all_samples_is_left_out() -> None:
    (train, labels), (test, truth) = blobs(40), blobs(20, seed=1)
    scores = low_data_scores(make_task(train, labels, test, truth))
    assert "linear_n20" not in scores
    assert {"linear_1pct", "linear_n1", "linear_n5"} <= set(scores)


def slow_retrieval(gallery: Labelled, queries: Labelled, *, by_group: bool) -> tuple[float, float]:
    """Precision at 10 and mean average precision at R, a query at a time."""
    precisions, averages = [], []
    for features, label, group in zip(queries.features, queries.labels, queries.groups, strict=True):  # type: ignore[arg-type]
        rows = [i for i in range(len(gallery)) if not (by_group and gallery.labels[i] == label)]
        cosine = torch.nn.functional.cosine_similarity(features[None].double(), gallery.features[rows].double())
        side = gallery.groups if by_group else gallery.labels
        wanted = group if by_group else label
        hits = [bool(side[rows[i]] == wanted) for i in cosine.argsort(descending=True).tolist()]  # type: ignore[index]
        relevant = min(sum(hits), 100)
        if relevant:
            precisions.append(np.mean(hits[:10]))
            averages.append(sum(hits[i] * np.mean(hits[: i + 1]) for i in range(relevant)) / relevant)
    return float(np.mean(precisions)), float(np.mean(averages))


def grouped(task: Task) -> Task:
    """Classes 0 and 1 are one superclass, the others each their own."""
    sides = [replace(side, groups=side.labels.clamp_min(1)) for side in (task.train, task.test)]
    return Task(sides[0], sides[1], task.names)


def test_retrieval_equals_a_loop_over_queries() -> None:
    (train, labels), (test, truth) = blobs(150, spread=2.0), blobs(40, spread=2.0, seed=1)
    task = grouped(make_task(train, labels, test, truth))
    scores = retrieval_scores(task)
    assert (scores["retrieval_p10"], scores["retrieval_map"]) == pytest.approx(
        slow_retrieval(task.train, task.test, by_group=False), abs=1e-6
    )
    assert (scores["superclass_p10"], scores["superclass_map"]) == pytest.approx(
        slow_retrieval(task.train, task.test, by_group=True), abs=1e-6
    )


def test_chance_of_superclass_retrieval_is_its_share_of_the_gallery_without_the_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 20)
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    scores = retrieval_scores(grouped(make_task(features, labels, features, labels)))
    assert scores["superclass_chance"] == pytest.approx(10 / 30)


def held_out(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Task:
    return make_task(*train, *test, held_out_train=Labelled(*train), held_out_test=Labelled(*test))


def test_nearest_mean_of_few_shots_equals_a_loop() -> None:
    train, test = blobs(60, spread=2.0), blobs(50, spread=2.0, seed=1)
    scores = few_shot_scores(held_out(train, test))
    accuracies = []
    for seed in range(10):
        rows = draw_per_class(train[1], 5, seed)
        unit, labels = torch.nn.functional.normalize(train[0][rows].double(), dim=1), train[1][rows]
        means = torch.stack([unit[labels == code].sum(dim=0) for code in range(4)])
        found = torch.cosine_similarity(test[0].double()[:, None], means[None], dim=2).argmax(dim=1)
        accuracies.append(float((found == test[1]).double().mean()))
    assert scores["few_shot_mean_5"] == pytest.approx(np.mean(accuracies))
    half = scipy.stats.t.ppf(0.975, 9) * scipy.stats.sem(accuracies)
    assert scores["few_shot_mean_5_ci95"] == pytest.approx(half, rel=1e-4)


def test_few_shot_of_noise_is_near_chance_and_of_separate_classes_perfect() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [(torch.randn(400, 8, generator=generator), torch.arange(400) % 4) for _ in range(2)]
    assert abs(few_shot_scores(held_out(noise[0], noise[1]))["few_shot_logistic_5"] - 0.25) < 0.05
    scores = few_shot_scores(held_out(blobs(60, spread=0.05), blobs(60, spread=0.05, seed=1)))
    assert (scores["few_shot_mean_1"], scores["few_shot_logistic_1"], scores["held_out_knn"]) == (1.0, 1.0, 1.0)


def test_without_held_out_images_to_learn_from_samples_are_never_asked_themselves() -> None:
    # Labels are noise, so that only a sample that is asked about itself could be right more often than by chance.
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 200, generator=generator), torch.arange(60) % 6
    empty = (features[:0], labels[:0])
    task = make_task(features, labels, features, labels, held_out_train=Labelled(*empty), held_out_test=Labelled(features, labels))
    scores = few_shot_scores(task)
    assert scores["few_shot_mean_5"] < 0.35
    assert "held_out_knn" not in scores


def test_few_shot_without_held_out_images_says_what_to_do() -> None:
    train, labels = blobs(20)
    with pytest.raises(SourceError, match="--held-out"):
        few_shot_scores(make_task(train, labels, train, labels))


PATHS = {"cat": "thing > animal > cat", "dog": "thing > animal > dog", "car": "thing > vehicle > car", "ship": "thing > ship"}


def write_paths(path: Path) -> Path:
    path.write_text("wnid\tname\thypernym_path\n" + "".join(f"n{i}\t{n}\t{p}\n" for i, (n, p) in enumerate(PATHS.items())))
    return path


def test_distance_by_paths_counts_the_edges_over_the_deepest_shared_hypernym(tmp_path: Path) -> None:
    matrix = read_hierarchy(write_paths(tmp_path / "paths.tsv")).matrix([["cat"], ["unknown", "dog"], ["n2"], ["ship"]])
    assert matrix.tolist() == [[0, 2, 4, 3], [2, 0, 4, 3], [4, 4, 0, 3], [3, 3, 3, 0]]


def test_severity_is_the_mean_distance_of_the_mistakes(tmp_path: Path) -> None:
    hierarchy = read_hierarchy(write_paths(tmp_path / "paths.tsv"))
    train, labels = blobs(200, spread=0.01)
    # Right but for one cat called a car (4 edges) and one dog called a cat (2 edges).
    truth = labels.clone()
    wrong = [int((labels == 2).nonzero()[0]), int((labels == 0).nonzero()[0])]
    truth[wrong[0]], truth[wrong[1]] = 0, 1
    task = replace(make_task(train, labels, train, truth), names=tuple(PATHS), hierarchy=hierarchy)
    scores = severity_scores(task)
    assert scores["severity"] == pytest.approx(3)
    assert scores["severity_all"] == pytest.approx(6 / 200)


def test_chance_of_severity_is_the_mean_over_wrong_classes(tmp_path: Path) -> None:
    hierarchy = read_hierarchy(write_paths(tmp_path / "paths.tsv"))
    features, labels = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    scores = severity_scores(replace(make_task(features, labels, features, labels), names=tuple(PATHS), hierarchy=hierarchy))
    assert scores["severity_chance"] == pytest.approx(np.mean([2, 4, 3, 2, 4, 3, 4, 4, 3, 3, 3, 3]))
    assert "severity" not in scores or scores["severity"] > 0


def test_severity_of_real_wordnet_distances(shared_data: Path) -> None:
    folder = shared_data / "classes"
    hierarchy = read_hierarchy(folder / "tiny_imagenet_wordnet_pathdist.npz")
    paths = read_hierarchy(folder / "tiny_imagenet_classes.tsv")
    cat, tabby, volleyball = "n02124075", "n02123045", "n04540053"
    for found in (hierarchy.matrix([[cat], [tabby], [volleyball]]), paths.matrix([[cat], [tabby], [volleyball]])):
        assert found[0, 1] < found[0, 2]
        assert np.array_equal(found, found.T)


def test_an_array_under_the_name_of_an_archive_is_no_hierarchy(tmp_path: Path) -> None:
    with (tmp_path / "h.npz").open("wb") as stream:
        np.save(stream, np.ones(4))
    with pytest.raises(SourceError, match="not distances between classes"):
        read_hierarchy(tmp_path / "h.npz")


def test_a_class_that_the_hierarchy_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"1 of 2 classes are not in it \('unicorn'"):
        read_hierarchy(write_paths(tmp_path / "paths.tsv")).matrix([["cat"], ["unicorn"]])


@pytest.mark.parametrize("name", ["missing.npz", "broken.npz", "columns.tsv"])
def test_a_broken_hierarchy_is_named(tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_text("nothing\tof the\tkind\n1\t2\t3\n")
    with pytest.raises(SourceError, match=name):
        read_hierarchy(tmp_path / name)
