"""Contrastive losses: unit vectors and similarities in, nats out.

SimCLR (NT-Xent), SupCon (L_out) and X-CLR are `soft_cross_entropy` with the three G of `train.targets`; CLIP has its own.
Shape letters: B samples in a batch (2B rows with two views), D width. Row i and row B + i are the views of sample i.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.targets import target_weights


class SoftLoss(NamedTuple):
    """A loss, and the least that it can be."""

    loss: Tensor
    """mean_i H(s_i, p_i), nats; a scalar with a gradient."""
    target_entropy: Tensor
    """mean_i H(s_i), nats; a scalar without."""

    @property
    def kl(self) -> Tensor:
        """mean_i KL(s_i || p_i), nats: what compares between objectives and temperatures."""
        return self.loss.detach() - self.target_entropy


def soft_cross_entropy(z_2BD: Tensor, similarity_BB: Tensor, *, tau: float, tau_s: float) -> SoftLoss:
    """Mean cross-entropy between the soft target of a batch and its learned similarities (X-CLR, arXiv 2407.18134, section 3).

    s_i = softmax over j != i of G_ij / tau_s; p_i = softmax over j != i of z_i . z_j / tau. The self pair is in neither.
    The target is never laid out as 2B x 2B: H(s_i, p_i) = log sum_j exp(z_i . z_j / tau) - z_i . m_i / tau, where
    m_i = sum_j s_ij z_j is one product of the B x B weights with the sum of both views.

    Args:
        z_2BD: Projections, of unit length; (2B, D). Float64 is kept, all else is computed in float32, under autocast too.
        similarity_BB: G of the batch, -inf for pairs left out of the target; (B, B).
        tau: Temperature of the logits.
        tau_s: Temperature of the target.
    """
    with torch.autocast(z_2BD.device.type, enabled=False):
        z = z_2BD if z_2BD.dtype == torch.float64 else z_2BD.float()
        weights, logs = target_weights(similarity_BB.to(z.dtype), tau_s)
        first, second = z.chunk(2)
        both = weights @ (first + second)
        own = weights.diagonal()[:, None]
        mean_positive = torch.cat([both - own * first, both - own * second])
        logits = (z @ z.T / tau).fill_diagonal_(-math.inf)
        loss = (logits.logsumexp(dim=1) - (z * mean_positive).sum(dim=1) / tau).mean()
        terms = torch.where(weights > 0, weights * logs, 0.0)
        entropy = -(2 * terms.sum(dim=1) - terms.diagonal()).mean()
    return SoftLoss(loss, entropy)


class LogitScale(nn.Module):
    """CLIP's learned scale exp(t) <= 100, initially 1 / 0.07."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        """The scale; a scalar."""
        return self.log_scale.exp().clamp(max=100.0)


def clip_loss(images_BD: Tensor, texts_BD: Tensor, scale: Tensor, text_ids_B: Tensor) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy, nats (CLIP, arXiv 2103.00020); a scalar.

    A text that occurs several times in the batch is a positive of each of its pictures, in equal parts.

    Args:
        images_BD: Image vectors, of unit length; (B, D).
        texts_BD: Text vectors, of unit length; (B, D).
        scale: What the cosine similarities are multiplied with; a scalar.
        text_ids_B: The text of each sample; (B,).
    """
    with torch.autocast(images_BD.device.type, enabled=False):
        dtype = torch.promote_types(images_BD.dtype, torch.float32)
        logits = scale.to(dtype) * (images_BD.to(dtype) @ texts_BD.to(dtype).T)
        same = (text_ids_B[:, None] == text_ids_B[None, :]).to(dtype)
        target = same / same.sum(dim=1, keepdim=True)
        # `same` is symmetric, and so is the target: its rows serve both directions.
        per_image = -(target * logits.log_softmax(dim=1)).sum(dim=1)
        per_text = -(target * logits.T.log_softmax(dim=1)).sum(dim=1)
        return (per_image.mean() + per_text.mean()) / 2
