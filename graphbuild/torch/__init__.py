"""Soft targets in anybody's loop: a batch's similarities, losses for two views, and batches of neighbours.

`train run` is their first user. docs/own-loop.md shows how they go together.
"""

from graphbuild.torch.losses import soft_contrastive_loss
from graphbuild.torch.mixture import MixedSoftTargets
from graphbuild.torch.modules import RankLoss, SimCLRLoss, SupConLoss, XCLRLoss
from graphbuild.torch.pulled import BarlowTwinsLoss, LeJEPALoss, SimSiamLoss, VICRegLoss
from graphbuild.torch.repulsion import ByGraph, Decoupled, Hard, Mixed
from graphbuild.torch.sampler import NeighborBatchSampler
from graphbuild.torch.soft_targets import SoftTargets

__all__ = [
    "BarlowTwinsLoss",
    "ByGraph",
    "Decoupled",
    "Hard",
    "LeJEPALoss",
    "Mixed",
    "MixedSoftTargets",
    "NeighborBatchSampler",
    "RankLoss",
    "SimCLRLoss",
    "SimSiamLoss",
    "SoftTargets",
    "SupConLoss",
    "VICRegLoss",
    "XCLRLoss",
    "soft_contrastive_loss",
]
