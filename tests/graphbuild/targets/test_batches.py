"""Random batches: every sample at most once an epoch, and every position computed from nothing."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import OptionError
from graphbuild.targets.batches import RandomBatches, draw_captions, draw_texts, shuffled


@settings(deadline=None, max_examples=100)
@given(count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_shuffling_is_a_permutation(count: int, key: int) -> None:
    np.testing.assert_array_equal(np.sort(shuffled(np.arange(count), count, key)), np.arange(count))


def test_an_epoch_holds_every_sample_once_but_for_the_remainder() -> None:
    batches = RandomBatches(1003, 100, seed=1)
    seen = np.concatenate([batches.batch(0, step) for step in range(batches.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == 1000
    assert (batches.steps_per_epoch, batches.dropped_per_epoch) == (10, 3)


def test_what_an_epoch_leaves_out_changes() -> None:
    batches = RandomBatches(103, 10, seed=1)
    left_out = {tuple(np.setdiff1d(np.arange(103), [batches.batch(e, s) for s in range(10)])) for e in range(10)}
    assert len(left_out) > 5


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [RandomBatches(500, 500, seed=seed).batch(epoch, 0).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_stopped_run_goes_on_with_the_same_batches_from_every_position() -> None:
    batches = RandomBatches(57, 10, seed=3)
    whole = list(islice(batches.batches(), 12))
    for position, batch in enumerate(whole):
        rest = list(islice(RandomBatches(57, 10, seed=3).batches(epoch=batch.epoch, step=batch.step), 12 - position))
        assert [(b.epoch, b.step, b.indices.tolist()) for b in rest] == [
            (b.epoch, b.step, b.indices.tolist()) for b in whole[position:]
        ]


def test_the_order_is_pinned() -> None:
    assert RandomBatches(1000, 8, seed=0).batch(0, 0).tolist() == [324, 277, 453, 272, 744, 511, 122, 154]
    assert draw_captions(np.full(8, 5), np.arange(8), seed=0, epoch=0).tolist() == [0, 3, 0, 4, 2, 0, 2, 3]


def test_places_are_uniform_over_epochs() -> None:
    first = [int(RandomBatches(20, 10, seed=0).batch(epoch, 0)[0]) for epoch in range(4000)]
    counts = np.bincount(first, minlength=20)
    # Chi-squared with 19 degrees of freedom: 43.8 is exceeded once in a thousand times.
    assert ((counts - 200) ** 2 / 200).sum() < 43.8


def test_neighbouring_samples_do_not_stay_together() -> None:
    order = RandomBatches(10_000, 10_000, seed=0).batch(0, 0)
    assert (np.abs(np.diff(order)) == 1).sum() < 15
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers() -> None:
    with pytest.raises(OptionError, match=r"--batch-size 256 .* 80 images.*at most 80"):
        RandomBatches(80, 256, seed=0)


@pytest.mark.parametrize(("epoch", "step"), [(0, 5), (0, -1), (-1, 0)])
def test_a_step_that_no_epoch_has_is_refused(epoch: int, step: int) -> None:
    with pytest.raises(ValueError, match="steps 0 to 4"):
        RandomBatches(57, 10, seed=0).batch(epoch, step)


def test_captions_are_drawn_evenly_and_anew_each_epoch() -> None:
    samples = np.arange(20_000)
    draws = [draw_captions(np.full(20_000, 5), samples, seed=0, epoch=epoch) for epoch in range(2)]
    assert np.abs(np.bincount(draws[0], minlength=5) - 4000).max() < 250
    assert (draws[0] == draws[1]).mean() == pytest.approx(0.2, abs=0.02)


def test_a_caption_depends_on_its_sample_alone_and_not_on_the_batch() -> None:
    counts = np.arange(1, 101) % 7 + 1
    whole = draw_captions(counts, np.arange(100), seed=4, epoch=2)
    some = np.array([93, 5, 17])
    np.testing.assert_array_equal(draw_captions(counts[some], some, seed=4, epoch=2), whole[some])


def test_drawn_texts_belong_to_their_samples() -> None:
    offsets, texts = np.array([0, 2, 3, 6]), np.array([10, 11, 20, 30, 31, 32], np.int32)
    drawn = {tuple(draw_texts(offsets, texts, np.array([2, 0, 1]), seed=0, epoch=epoch).tolist()) for epoch in range(60)}
    assert drawn == {(a, b, 20) for a in (30, 31, 32) for b in (10, 11)}
