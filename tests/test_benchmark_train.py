"""The usual way that the training benchmark measures against does what it is said to do."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.objectives import VARIANTS, measure
from benchmarks.train import Size
from benchmarks.train_peers import nt_xent
from graphbuild.torch import SimCLRLoss
from train.run.objectives import registered


def test_loss_of_the_plain_loop_is_that_of_simclr_here() -> None:
    z = functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    ours = SimCLRLoss(0.2)(z[:8], z[8:])
    torch.testing.assert_close(nt_xent(z[:8], z[8:], 0.2), ours)


def test_step_times_hold_every_objective_and_say_their_conditions() -> None:
    size = Size(pictures=48, image_size=16, batch_sizes=(24,), rounds=1, turn=1, warm_up=1, queue=24)
    lines = measure(size).splitlines()
    rows = {line[:36].strip(): line[36:].split() for line in lines[1:-1]}
    assert rows.keys() == VARIANTS.keys()
    assert {options["objective"] for options in VARIANTS.values()} == set(registered()) - {"clip"}
    assert rows["simclr"][1] == "1.000"
    assert "small net at 16 px" in lines[-1]
    assert "48 drawn pictures" in lines[-1]
