"""The soft target of a batch in torch, the twin of `graphbuild.targets.softmax`: similarities in, shares of the target out.

Shape letters: B samples in a batch, T anchors whose rows of G are at hand (all, unless said otherwise).
`start` is the first of the T anchors: its own view is in that column. Nothing here waits for a device. Nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def apply_options(
    similarity_TB: Tensor, *, min_similarity: float | None, own_weight: float, tau_s: float, start: int = 0
) -> Tensor:
    """Apply the options of the target to rows of G, as `graphbuild.targets.softmax.apply_options`; (T, B).

    Args:
        similarity_TB: Rows of G; they are not changed.
        min_similarity: Pairs below it have no part in the target (-inf), the own view excepted; None leaves none out.
        own_weight: Share of the target that is given to the own view, 0 to 1.
        tau_s: Temperature of the target.
        start: The first of the anchors.
    """
    shaped = similarity_TB
    if min_similarity is not None:
        shaped = similarity_TB.masked_fill(similarity_TB < min_similarity, -torch.inf)
        shaped.diagonal(start).copy_(similarity_TB.diagonal(start))
    if own_weight >= 1:
        shaped = torch.full_like(similarity_TB, -torch.inf)
        shaped.diagonal(start).fill_(1.0)
    elif own_weight > 0:
        log_odds = math.log(own_weight / (1 - own_weight))
        log_own_T = target_weights(shaped, tau_s, start=start)[1].diagonal(start)
        shaped = shaped.clone()
        # log(1 + e^x): a share that rounds to 0 gives no infinity.
        shaped.diagonal(start).add_(tau_s * torch.nn.functional.softplus(log_odds - log_own_T, threshold=60))
    return shaped


def target_weights(similarity_TB: Tensor, tau_s: float, *, start: int = 0) -> tuple[Tensor, Tensor]:
    """Compute the softmax of the target (docs/definitions.md, Target) without its 2B x 2B matrix.

    Both views of i share s_i, which holds w_ij twice (both views of j), and w_ii once (the own view; the self pair is out).

    Returns:
        Weights w, (T, B), with 2 sum_j w_ij - w_ii = 1; and log w, (T, B), -inf where w is left out.
    """
    # The maximum is taken off before the division: at tau_s = 1e-5 float32 would lose it afterwards.
    logits = (similarity_TB - similarity_TB.amax(dim=1, keepdim=True)) / tau_s
    shares = logits.exp()
    total = 2 * shares.sum(dim=1) - shares.diagonal(start)
    return shares / total[:, None], logits - total.log()[:, None]


def _over_columns(terms_TB: Tensor, start: int) -> Tensor:
    """Sum over the 2B - 1 columns of a row of the target, from its block of G."""
    return 2 * terms_TB.sum(dim=1) - terms_TB.diagonal(start)


def entropy_of(weights_TB: Tensor, logs_TB: Tensor, *, start: int = 0) -> Tensor:
    """Compute H(s_i) from what `target_weights` gives; (T,)."""
    return -_over_columns(torch.where(weights_TB > 0, weights_TB * logs_TB, 0.0), start)


def own_view_mass(similarity_TB: Tensor, tau_s: float, *, start: int = 0) -> Tensor:
    """Compute the mean share of the target on the own view; a scalar."""
    return target_weights(similarity_TB, tau_s, start=start)[0].diagonal(start).mean()


def kl(reference_TB: Tensor, similarity_TB: Tensor, tau_s: float, *, start: int = 0) -> Tensor:
    """Compute KL(target of the reference || target), mean over rows, over the 2B - 1 columns; a scalar."""
    weights, logs = target_weights(reference_TB, tau_s, start=start)
    other = target_weights(similarity_TB, tau_s, start=start)[1]
    return _over_columns(torch.where(weights > 0, weights * (logs - other), 0.0), start).mean()
