"""What the report compares, against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from train.results.report.similarity import (
    agreement,
    choose_items,
    cosine_matrix,
    cosines,
    mean_features,
    nearest,
    normalize,
    seriate,
)

RNG = np.random.default_rng(5)


def test_items_are_spread_evenly_over_labels() -> None:
    labels = np.repeat(np.arange(8), 100)
    items = choose_items(np.arange(800), labels, most=80, pictures=1)
    assert np.bincount([labels[item[0]] for item in items]).tolist() == [10] * 8


def test_items_come_in_the_order_of_their_labels() -> None:
    labels = RNG.integers(0, 5, 300)
    chosen = [labels[item[0]] for item in choose_items(np.arange(300), labels, most=60, pictures=1)]
    assert chosen == sorted(chosen)


def test_an_item_holds_pictures_of_one_text_only() -> None:
    texts = RNG.integers(0, 7, 200)
    items = choose_items(texts, None, most=5, pictures=6)
    assert len(items) == 5
    assert all(len(item) == 6 and len(set(texts[item])) == 1 for item in items)


def test_pictures_without_a_text_are_not_chosen() -> None:
    texts = np.array([-1, 4, -1, 5])
    assert sorted(int(i) for item in choose_items(texts, None, most=9, pictures=9) for i in item) == [1, 3]


def test_mean_features_averages_each_items_pictures() -> None:
    features = RNG.normal(size=(6, 3)).astype(np.float32)
    means = mean_features(features, [np.array([0, 2]), np.array([5])])
    assert means == pytest.approx(np.stack([(features[0] + features[2]) / 2, features[5]]))


def test_cosine_matrix_is_unchanged_by_a_shift_of_all_features() -> None:
    features = RNG.normal(size=(20, 6)).astype(np.float32)
    assert cosine_matrix(features + 3) == pytest.approx(cosine_matrix(features), abs=1e-5)


def test_nearest_equals_a_search_by_hand() -> None:
    features = RNG.normal(size=(40, 5)).astype(np.float32)
    unit = normalize(features)
    queries = np.array([3, 17])
    found = nearest(cosines(features, queries), queries, count=4)
    for query, row in zip((3, 17), found, strict=True):
        others = sorted((i for i in range(40) if i != query), key=lambda i: -float(unit[query] @ unit[i]))
        assert row.tolist() == others[:4]


def test_seriate_puts_clusters_together() -> None:
    centres = np.eye(3, 10).repeat(12, axis=0) + RNG.normal(0, 0.05, (36, 10))
    shuffled = RNG.permutation(36)
    unit = normalize(centres[shuffled].astype(np.float32))
    order = seriate(unit @ unit.T)
    assert np.count_nonzero(np.diff(shuffled[order] // 12)) == 2


def test_agreement_equals_scipys_correlation_of_the_pairs() -> None:
    one, other = (np.asarray(m + m.T, np.float32) for m in RNG.normal(size=(2, 12, 12)))
    pairs = np.triu_indices(12, 1)
    assert agreement(one, other) == pytest.approx(stats.pearsonr(one[pairs], other[pairs]).statistic, abs=1e-6)


def test_agreement_with_a_constant_is_not_a_number() -> None:
    assert np.isnan(agreement(np.ones((4, 4), np.float32), np.eye(4, dtype=np.float32)))
