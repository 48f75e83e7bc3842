"""Whom an anchor is pushed from, and how hard: the denominator of the soft contrastive loss, by tiles.

L_i = -sum_j s_ij l_ij + log sum_j w_ij exp(l_ij), with l_ij = z_i . z_j / tau. Without a `Repulsion` all w_ij are 1.
A pair is a negative as far as the target does not ask for it: c_ij = 1 - s_ij / max_j s_ij, which is 0 for the positives of
a one-hot target, or of equal ones, and 1 for all others. Limit cases and sources: docs/objectives.md.
Shape letters: B samples in a batch (2B rows with two views), T anchors of a tile, D width, H hardest, M mixtures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from graphbuild.errors import OptionError
from graphbuild.torch.blocks import Target


class Tile(NamedTuple):
    """What is known of a tile's anchors; of their first views, then of their second ones."""

    logits: Tensor
    """l, -inf at the self pair; (2T, 2B), with a gradient."""
    pull: Tensor
    """sum_j s_ij l_ij; (2T,), with a gradient."""
    weights_TB: Tensor
    """s, of `target_weights`: the own view's on the diagonal from `anchors.start` on."""
    similarity_TB: Tensor
    """G, -inf for pairs left out."""
    anchors: range
    rows: Tensor
    """Projections of the anchors, with a gradient; (2T, D)."""
    z_2BD: Tensor
    """Those of the batch; after the batch's samples, in both views, those of a queue."""
    batch: int
    """Samples of the batch, without a queue's."""
    tau: float

    @property
    def share(self) -> Tensor:
        """s_ij / max_j s_ij; (T, B)."""
        return self.weights_TB / self.weights_TB.amax(dim=1, keepdim=True)

    @property
    def places(self) -> Tensor:
        """The rows of z that are the tile's; (2T,)."""
        own = torch.arange(self.anchors.start, self.anchors.stop, device=self.z_2BD.device)
        return torch.cat([own, own + len(self.z_2BD) // 2])


class Repulsion(Protocol):
    """Weights of the denominator."""

    def terms(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Return what an anchor is drawn by and what it is pushed by, nats; (2T,) each."""


@dataclass(frozen=True, slots=True)
class Decoupled:
    """Decoupled contrastive learning (DCL, arXiv 2110.06848, eq. 6): w_ij = c_ij, positives are out of the denominator."""

    sigma: float | None = None
    """Width of DCLW's weights, 2 - exp(z_i . z_i' / sigma) / mean of it, of the pull by the own view z_i'; None: no weights."""

    def __post_init__(self) -> None:
        if self.sigma is not None and not self.sigma > 0:
            raise OptionError(f"sigma is a positive width, not {self.sigma:g}. The paper's is 0.5.")

    def terms(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Weigh every pair by how little the target asks for it."""
        push = _log_sum(tile.logits + _both_views((1 - tile.share).log()))
        if self.sigma is None:
            return tile.pull, push
        first, second = (view[: tile.batch] for view in functional.normalize(tile.z_2BD.detach(), dim=1).chunk(2))
        own = (first * second).sum(dim=1) / self.sigma
        weights = (2 - len(own) * own.softmax(dim=0))[tile.anchors.start : tile.anchors.stop]
        return tile.pull * weights.repeat(2), push


@dataclass(frozen=True, slots=True)
class Hard:
    """Hard negatives (Robinson et al., arXiv 2010.04592): w_ij proportional to exp(beta l_ij) among the negatives.

    With N_i = sum_j c_ij negatives, the denominator is sum_j (1 - c_ij) exp(l_ij) + N_i E_w[exp(l)], where the mean over
    c_ij exp(beta l_ij) takes the place of that over c_ij. With a prior, the share of negatives that are of the anchor's own
    class, E_w is debiased: (E_w[exp(l)] - prior E_s[exp(l)]) / (1 - prior), at least the least that exp(l) can be. The
    gradient goes through the weights, as in the authors' code; beta 0 and prior 0 are the uniform loss.
    """

    beta: float = 1.0
    prior: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise OptionError(f"beta is at least 0, not {self.beta:g}: 0 weighs all negatives alike.")
        if not 0 <= self.prior < 1:
            raise OptionError(f"prior is a share from 0 to less than 1, not {self.prior:g}: about 1 / number of classes.")

    def terms(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Weigh the harder negatives more."""
        logits, share = tile.logits, tile.share
        negative = 1 - share
        count = (2 * negative.sum(dim=1) - negative.diagonal(tile.anchors.start)).repeat(2)
        some = count > 0
        # Where an anchor has no negative, any weights do: what comes of them is not taken.
        log_negative = _both_views(negative.log()).masked_fill(~some[:, None], 0.0)
        log_count = count.clamp(min=torch.finfo(count.dtype).tiny).log()
        # Not 0 times the self pair's -inf.
        harder = log_negative + (self.beta * logits if self.beta else logits.masked_fill(logits > -math.inf, 0.0))
        log_pushed = log_count + (harder + logits).logsumexp(dim=1) - harder.logsumexp(dim=1)
        if self.prior:
            log_pushed = self._debiased(tile, log_pushed, log_count)
        log_positive = (logits + _both_views(share.log())).logsumexp(dim=1)
        return tile.pull, torch.where(some, torch.logaddexp(log_positive, log_pushed), log_positive)

    def _debiased(self, tile: Tile, log_pushed: Tensor, log_count: Tensor) -> Tensor:
        """Take out what the prior says are positives; the log of the corrected sum, (2T,)."""
        log_drawn = log_count + (tile.logits + _both_views(tile.weights_TB.log())).logsumexp(dim=1)
        # The sum was of exponentials that reach e^(1 / tau): the largest is taken out of all.
        largest = torch.maximum(log_pushed, log_drawn).detach()
        pushed = ((log_pushed - largest).exp() - self.prior * (log_drawn - largest).exp()) / (1 - self.prior)
        # exp(l) of an anchor and its opposite.
        least = (log_count - tile.rows.square().sum(dim=1) / tile.tau - largest).exp()
        return torch.maximum(pushed, least.clamp(min=torch.finfo(pushed.dtype).tiny)).log() + largest


@dataclass(frozen=True, slots=True)
class ByGraph:
    """A pair is repelled the less the more its texts agree: w_ij = 1 - G_ij, from 0 to 1.

    A constant: no gradient. A graph without any similarity gives DCL. G is of plain similarities: where the target's is not
    (`own_weight`, `min_similarity`, a mixture of targets), give it beside, as `repelled` of `XCLRLoss`.
    """

    graph: Target | None = None
    """Where G is taken from; None: from the target."""

    def terms(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Weigh every pair by how little its texts agree."""
        anchors = tile.anchors
        similarity = tile.similarity_TB if self.graph is None else self.graph.rows(anchors.start, anchors.stop)
        weights = 1 - similarity.to(tile.logits.dtype).clamp(0, 1)
        return tile.pull, _log_sum(tile.logits + _both_views(weights.log()))


class Draws(NamedTuple):
    """Which two of an anchor's hardest negatives each mixture is made of, and in which parts."""

    first: Tensor
    """Rank among the hardest; (2B, M) integers."""
    second: Tensor
    part: Tensor
    """Of the first, 0 to 1; (2B, M) float64."""


def draw_mixtures(batch: int, *, hardest: int, mixtures: int, seed: int | None) -> Draws:
    """Draw the mixtures of a batch: with a seed the same for every process, on every device; else by torch's generator.

    Raises:
        OptionError: If there are not so many negatives.
    """
    most = 2 * batch - 2
    if not 1 <= hardest <= most or not 1 <= mixtures <= most:
        raise OptionError(
            f"{hardest:,} hardest and {mixtures:,} mixtures of them do not fit a batch of {batch:,}, whose anchors have "
            f"{most:,} negatives. Take from 1 to as many, or larger batches."
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    ranks = torch.randint(hardest, (2, 2 * batch, mixtures), generator=generator)
    part = torch.rand(2 * batch, mixtures, generator=generator, dtype=torch.float64)
    return Draws(ranks[0], ranks[1], part)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Hard negative mixing (MoCHi, arXiv 2010.01028), with the batch in place of the queue.

    Beside all others, an anchor is pushed from mixtures of its hardest negatives, brought back to unit length. As the
    queue's entries in the paper, what is mixed takes no gradient. A mixture weighs the mean c of its two parts.
    """

    hardest: int = 32
    mixtures: int = 16
    """Of an anchor."""
    seed: int | None = None
    """The same draws each time; None: torch's generator draws anew. A loop that wants both makes a `Mixed` a step."""

    def __post_init__(self) -> None:
        if self.hardest < 1 or self.mixtures < 1:
            raise OptionError(f"{self.hardest} hardest and {self.mixtures} mixtures: take at least one of each.")

    def terms(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Add the mixtures to the denominator."""
        negative_2T2B = _both_views(1 - tile.share)
        hardness = tile.logits.detach() + negative_2T2B.log()
        draws = draw_mixtures(len(tile.z_2BD) // 2, hardest=self.hardest, mixtures=self.mixtures, seed=self.seed)
        nearest = hardness.topk(self.hardest, dim=1).indices
        places = tile.places
        first, second, part = (item.to(places.device)[places] for item in draws)
        part = part.to(tile.logits.dtype)
        one, other = nearest.gather(1, first), nearest.gather(1, second)
        still = tile.z_2BD.detach()
        mixed_2TMD = functional.normalize(part[..., None] * still[one] + (1 - part[..., None]) * still[other], dim=2)
        of_one, of_other = negative_2T2B.gather(1, one), negative_2T2B.gather(1, other)
        # With fewer negatives than that, the hardest have others among them: the anchor itself, its positives.
        weights = (part * of_one + (1 - part) * of_other).masked_fill(torch.minimum(of_one, of_other) == 0, 0.0)
        # With a gradient: where the temperature is learned, it is in the length of the rows.
        length = tile.rows.norm(dim=1, keepdim=True)
        extra = (mixed_2TMD @ tile.rows[:, :, None]).squeeze(2) * length / tile.tau + weights.log()
        return tile.pull, torch.cat([tile.logits, extra], dim=1).logsumexp(dim=1)


def _both_views(block_TB: Tensor) -> Tensor:
    """The same for both views of anchors and of samples; (2T, 2B)."""
    return block_TB.repeat(2, 2)


def _log_sum(logits: Tensor) -> Tensor:
    """Compute logsumexp of each row; 0, without a gradient, where nothing is to be pushed from."""
    none = (logits == -math.inf).all(dim=1)
    return logits.masked_fill(none[:, None], 0.0).logsumexp(dim=1).masked_fill(none, 0.0)
