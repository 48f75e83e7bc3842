"""Soft targets in anybody's loop: a batch's similarities, losses for two views, and batches of neighbours.

`train run` is their first user. docs/own-loop.md shows how they go together.
"""

from graphbuild.torch.losses import soft_contrastive_loss
from graphbuild.torch.mixture import MixedSoftTargets
from graphbuild.torch.modules import SimCLRLoss, SupConLoss, XCLRLoss
from graphbuild.torch.sampler import NeighborBatchSampler
from graphbuild.torch.soft_targets import SoftTargets

__all__ = [
    "MixedSoftTargets",
    "NeighborBatchSampler",
    "SimCLRLoss",
    "SoftTargets",
    "SupConLoss",
    "XCLRLoss",
    "soft_contrastive_loss",
]
