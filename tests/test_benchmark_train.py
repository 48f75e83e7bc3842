"""The usual way that the training benchmark measures against does what it is said to do."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.train_peers import nt_xent
from graphbuild.torch import SimCLRLoss


def test_loss_of_the_plain_loop_is_that_of_simclr_here() -> None:
    z = functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    ours = SimCLRLoss(0.2)(z[:8], z[8:])
    torch.testing.assert_close(nt_xent(z[:8], z[8:], 0.2), ours)
