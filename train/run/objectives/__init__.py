"""Objectives of `train run`, a file each: what is learned from the two views of an image, its texts, and the graph."""

from train.run.objectives import barlow, clip, contrastive, lejepa, rank, simsiam, vicreg
from train.run.objectives.base import Learner, Outcome, registered
from train.run.objectives.heads import make_learner

__all__ = [
    "Learner",
    "Outcome",
    "barlow",
    "clip",
    "contrastive",
    "lejepa",
    "make_learner",
    "rank",
    "registered",
    "simsiam",
    "vicreg",
]
