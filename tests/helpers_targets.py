"""The soft target laid out as 2B x 2B, and what is measured of it: slow, from the definitions, and independent of the code."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphbuild.torch.blocks import MatrixTarget, OneHotTarget, SameClassTarget
from graphbuild.torch.losses import SoftLoss, clip_loss, soft_cross_entropy

Matrix = NDArray[np.floating]


def laid_out(similarity: Matrix, tau_s: float) -> NDArray[np.float64]:
    """Softmax over j != i of G_ij / tau_s, of both views; (2B, 2B)."""
    logits = np.tile(similarity.astype(np.float64), (2, 2)) / tau_s
    np.fill_diagonal(logits, -np.inf)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def slow_entropy(target: Matrix) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(target > 0, -target * np.log(target), 0.0).sum(axis=1).mean())


def slow_kl(reference: Matrix, target: Matrix) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(reference > 0, reference * (np.log(reference) - np.log(target)), 0.0).sum(axis=1).mean())


def slow_own_view_mass(target: Matrix) -> float:
    rows = np.arange(len(target))
    return float(target[rows, np.roll(rows, len(target) // 2)].mean())


def whole_loss(z_2BD: Tensor, similarity_BB: Tensor, *, tau: float, tau_s: float) -> SoftLoss:
    """The loss of a batch in one tile, with its entropy and own-view mass."""
    batch = len(similarity_BB)
    return soft_cross_entropy(z_2BD, MatrixTarget(similarity_BB), range(batch), tile=batch, tau=tau, tau_s=tau_s)


def whole_clip_loss(images_BD: Tensor, texts_BD: Tensor, scale: Tensor, text_ids_B: Tensor) -> Tensor:
    """The CLIP loss of a batch in one tile."""
    return clip_loss(images_BD, texts_BD, scale, text_ids_B, range(len(images_BD)), tile=len(images_BD)).loss


def one_hot(batch: int) -> Tensor:
    """SimCLR's G."""
    return OneHotTarget(batch, "cpu").rows(0, batch)


def same_class(labels_B: Tensor) -> Tensor:
    """SupCon's G."""
    return SameClassTarget(labels_B).rows(0, len(labels_B))


def as_float64(similarity: Matrix) -> Tensor:
    return torch.from_numpy(similarity.astype(np.float64))
