"""What tiles leave behind: the invariants that the certificate builds on, against all scores that were shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphbuild.knn.engines import scores
from graphbuild.knn.kernels import selection

ROWS, COLUMNS, K, WIDTH = 8, 64, 5, 24


@pytest.mark.parametrize("precision", sorted(scores.FORMATS))
# Few scores near the best, more of them than a row has room for, and scores told apart in the lower bits of float32 alone.
@pytest.mark.parametrize(("spread", "power"), [(0.4, 30), (1e-2, 1), (1e-4, 1)])
def test_what_a_row_turned_away_scored_at_most_its_limit_and_no_row_overflows(precision: str, spread: float, power: int) -> None:
    form, rng = scores.FORMATS[precision], np.random.default_rng(0)
    lowered = scores.make_bounds(form, dim=16, longest=1.01, cast=0.0).lowered
    integers = np.dtype(f"int{8 * form.integer.itemsize}")
    limits, closed = np.zeros(ROWS, integers), np.full(COLUMNS, np.iinfo(integers).max, integers)
    counts, ids, kept = np.zeros(ROWS, np.int32), np.full((ROWS, WIDTH), -1, np.int32), np.zeros((ROWS, WIDTH), np.int16)
    shown = []
    for tile in range(40):
        values = torch.from_numpy(0.5 + spread * rng.random((ROWS, COLUMNS), np.float32) ** power).to(form.dtype)
        shown.append(values.view(form.integer).numpy())
        columns = np.arange(tile * COLUMNS, (tile + 1) * COLUMNS, dtype=np.int32)
        own = np.full(ROWS, -1, np.int32)
        state = (limits, counts, ids, kept, K, lowered, form.shift)
        selection.scan_tile(shown[-1].reshape(-1), COLUMNS, own, 0, columns, 0, closed, 0, *state)
        assert counts.max() <= WIDTH
    for row, every in enumerate(np.concatenate(shown, axis=1)):
        held = ids[row, : counts[row]]
        assert len(set(held.tolist())) == len(held)
        assert len(held) > K or power == 1
        np.testing.assert_array_equal(kept[row, : counts[row]], every[held] >> form.shift)
        assert np.delete(every, held).max() <= limits[row]
