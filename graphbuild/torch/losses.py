"""Contrastive losses: unit vectors and similarities in, nats out.

SimCLR (NT-Xent), SupCon (L_out) and X-CLR are `soft_cross_entropy` with three kinds of G (`blocks`); CLIP has its own.
Shape letters: B samples in a batch (2B rows with two views), T anchors of a tile, D width.
Row i and row B + i are the views of sample i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphbuild.torch.blocks import MatrixTarget, Target
from graphbuild.torch.repulsion import Repulsion, Tile
from graphbuild.torch.softmax import entropy_of, target_weights

_MOST_LOGITS = 1 << 26
"""Float32 numbers: 256 MiB. A batch of 4,096 is one tile, one of 32,768 is sixty-four."""


class SoftLoss(NamedTuple):
    """A loss, the least that it can be, and where its target lies."""

    loss: Tensor
    """mean_i H(s_i, p_i), nats; a scalar with a gradient."""
    target_entropy: Tensor
    """mean_i H(s_i), nats; a scalar without."""
    own_view_mass: Tensor
    """Mean share of the target on the other view of the same picture; a scalar without a gradient."""

    @property
    def kl(self) -> Tensor:
        """mean_i KL(s_i || p_i), nats: what compares between objectives and temperatures."""
        return self.loss.detach() - self.target_entropy


def soft_contrastive_loss(
    z_2BD: Tensor, similarity_BB: Tensor, *, tau: float, tau_s: float, negatives: Repulsion | None = None
) -> Tensor:
    """Compute the X-CLR loss of a batch: the cross-entropy between its soft target and its learned similarities.

    >>> import torch
    >>> from graphbuild.torch import soft_contrastive_loss
    >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    >>> soft_contrastive_loss(z, torch.eye(4), tau=0.1, tau_s=0.1).shape
    torch.Size([])

    Args:
        z_2BD: Projections, of unit length, first views before second ones; (2B, D).
        similarity_BB: G of the batch, as `SoftTargets` gives it: 1 on the diagonal, -inf for pairs left out; (B, B).
        tau: Temperature of the learned similarities.
        tau_s: Temperature of the target.
        negatives: Weights of the denominator, as in `XCLRLoss`; None: all pairs weigh the same.

    Returns:
        Nats, mean over the 2B rows; a scalar with a gradient. Beyond 4,096 samples it is computed tile by tile.

    Raises:
        ValueError: If the shapes do not fit.
    """
    batch = len(similarity_BB)
    if similarity_BB.shape != (batch, batch) or len(z_2BD) != 2 * batch:
        raise ValueError(
            f"similarities are {tuple(similarity_BB.shape)} and projections {tuple(z_2BD.shape)}: of B samples they are (B, B) and "
            "(2B, D), both views of all samples, first views before second ones"
        )
    target, tile = MatrixTarget(similarity_BB), tile_size(0, batch)
    return soft_cross_entropy(z_2BD, target, range(batch), tile=tile, tau=tau, tau_s=tau_s, repulsion=negatives).loss


def soft_cross_entropy(
    z_2BD: Tensor,
    target: Target,
    anchors: range,
    *,
    tile: int,
    tau: float,
    tau_s: float,
    repulsion: Repulsion | None = None,
    batch: int | None = None,
) -> SoftLoss:
    """Compute the mean cross-entropy of soft targets and learned similarities (X-CLR, arXiv 2407.18134, section 3).

    s_i = softmax over j != i of G_ij / tau_s; p_i = softmax over j != i of z_i . z_j / tau. The self pair is in neither.
    The target is never laid out as 2B x 2B: H(s_i, p_i) = log sum_j exp(z_i . z_j / tau) - z_i . m_i / tau, where
    m_i = sum_j s_ij z_j is one product of the B x B weights with the sum of both views. A tile of anchors is taken at a
    time: memory for 2T x 2B logits, not 2B x 2B.

    Args:
        z_2BD: Projections of the whole batch, of unit length; (2B, D). Float64 is kept, all else is computed in float32,
            under autocast too.
        target: G of the batch, by rows.
        anchors: The samples whose rows the mean is over; their gradient is that of all projections.
        tile: T, how many of them are taken at a time.
        tau: Temperature of the logits.
        tau_s: Temperature of the target.
        repulsion: Weights of the denominator; None: all pairs weigh the same, and the loss is a cross-entropy.
        batch: Samples that are the batch's, where those after them are a queue's; None: all.
    """
    own = len(z_2BD) // 2 if batch is None else batch
    with torch.autocast(z_2BD.device.type, enabled=False):
        return mean_of_tiles(lambda part, z: _soft_sums(z, target, part, tau, tau_s, repulsion, own), anchors, tile, wide(z_2BD))


def tile_size(requested: int, batch: int) -> int:
    """Choose the anchors a tile: as requested, or, for 0, as many as keep the logits of a tile within 256 MiB of float32."""
    return requested or max(1, min(batch, _MOST_LOGITS // (4 * batch)))


Sums = tuple[Tensor, Tensor, Tensor]
"""Of a tile's anchors: cross-entropy of all their rows, with a gradient; H(s_i); the target's share on the own view."""


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor as the losses compute: float64 as it is, everything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def mean_of_tiles(sums_of: Callable[..., Sums], anchors: range, tile: int, *inputs: Tensor) -> SoftLoss:
    """Compute the mean over anchors, two rows each, of what `sums_of(tile, *inputs)` sums, with the gradient of the inputs."""
    tiles = [range(start, min(start + tile, anchors.stop)) for start in range(anchors.start, anchors.stop, tile)]
    if len(tiles) == 1:
        loss, entropy, mass = sums_of(tiles[0], *inputs)
    elif not torch.is_grad_enabled():
        parts = [sums_of(part, *inputs) for part in tiles]
        loss, entropy, mass = (torch.stack(items).sum() for items in zip(*parts, strict=True))
    else:
        loss, entropy, mass = _Tiles.apply(sums_of, tiles, *inputs)
    return SoftLoss(loss / (2 * len(anchors)), entropy / len(anchors), mass / len(anchors))


def _soft_sums(z: Tensor, target: Target, tile: range, tau: float, tau_s: float, repulsion: Repulsion | None, batch: int) -> Sums:
    start = tile.start
    similarity = target.rows(start, tile.stop).to(z.dtype)
    weights, logs = target_weights(similarity, tau_s, start=start)
    first, second = z.chunk(2)
    own = weights.diagonal(start)[:, None]
    both = weights @ (first + second)
    one, other = first[start : tile.stop], second[start : tile.stop]
    mean_positive = torch.cat([both - own * one, both - own * other])
    rows = torch.cat([one, other])
    logits = without_self(rows @ z.T / tau, tile)
    pull = (rows * mean_positive).sum(dim=1) / tau
    if repulsion is None:
        push = logits.logsumexp(dim=1)
    else:
        pull, push = repulsion.terms(Tile(logits, pull, weights, similarity, tile, rows, z, batch, tau))
    loss = (push - pull).sum()
    return loss, entropy_of(weights, logs, start=start).sum(), own.sum()


def without_self(logits_2T2B: Tensor, tile: range) -> Tensor:
    """Set the self pairs of a tile's anchors to -inf, in place; (2T, 2B)."""
    # That of anchor i's first view is in column i, that of its second view in column B + i.
    places = torch.arange(tile.start, tile.stop, device=logits_2T2B.device)
    itself = torch.cat([places, places + logits_2T2B.shape[1] // 2])[:, None]
    return logits_2T2B.scatter_(1, itself, -math.inf)


class _Tiles(torch.autograd.Function):
    """Sums over all tiles. The gradient is taken tile by tile on the way forward, so that no tile's logits outlive it."""

    @staticmethod
    def forward(ctx: Any, sums_of: Callable[..., Sums], tiles: list[range], *inputs: Tensor) -> Sums:
        gradients = [torch.zeros_like(item) for item in inputs]
        sums = torch.zeros(3, dtype=inputs[0].dtype, device=inputs[0].device)
        for tile in tiles:
            with torch.enable_grad():
                leaves = [item.detach().requires_grad_() for item in inputs]
                parts = sums_of(tile, *leaves)
            for total, gradient in zip(gradients, torch.autograd.grad(parts[0], leaves), strict=True):
                total += gradient
            sums += torch.stack([part.detach() for part in parts])
        ctx.save_for_backward(*gradients)
        loss, entropy, mass = sums.unbind()
        ctx.mark_non_differentiable(entropy, mass)
        return loss, entropy, mass

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a loss that is taken tile by tile has no second derivative (create_graph=True): take smaller batches"
            )
        return None, None, *(of_loss * gradient for gradient in ctx.saved_tensors)


class LogitScale(nn.Module):
    """CLIP's learned scale exp(t), initially 1 / 0.07; `limit` after every step keeps it from 1 to 100, as open_clip does.

    A limit on the output would end learning there: beyond it the gradient is zero, and the scale never comes back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        """Return the scale; a scalar."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit(self) -> None:
        """Bring the parameter back into its range."""
        self.log_scale.clamp_(0, math.log(100))


def clip_loss(images_BD: Tensor, texts_BD: Tensor, scale: Tensor, text_ids_B: Tensor, anchors: range, *, tile: int) -> SoftLoss:
    """Compute the mean of image-to-text and text-to-image cross-entropy (CLIP, arXiv 2103.00020), a tile of anchors at a time.

    A text that occurs several times in the batch is a positive of each of its pictures, in equal parts.

    Args:
        images_BD: Image vectors of the whole batch, of unit length; (B, D).
        texts_BD: Text vectors, of unit length; (B, D).
        scale: What the cosine similarities are multiplied with; a scalar.
        text_ids_B: The text of each sample; (B,).
        anchors: The samples that the mean is over.
        tile: How many of them are taken at a time.
    """
    with torch.autocast(images_BD.device.type, enabled=False):
        dtype = torch.promote_types(images_BD.dtype, torch.float32)
        inputs = (images_BD.to(dtype), texts_BD.to(dtype), scale.to(dtype))
        return mean_of_tiles(lambda part, i, t, s: _clip_sums(i, t, s, text_ids_B, part), anchors, tile, *inputs)


def _clip_sums(images: Tensor, texts: Tensor, scale: Tensor, text_ids: Tensor, tile: range) -> Sums:
    part = slice(tile.start, tile.stop)
    same = (text_ids[part, None] == text_ids[None, :]).to(images.dtype)
    positives = same.sum(dim=1, keepdim=True)
    target = same / positives
    # The target is symmetric, so its rows serve both directions.
    per_image = (scale * (images[part] @ texts.T)).log_softmax(dim=1)
    per_text = (scale * (texts[part] @ images.T)).log_softmax(dim=1)
    return -(target * (per_image + per_text)).sum(), positives.log().sum(), (1 / positives).sum()
