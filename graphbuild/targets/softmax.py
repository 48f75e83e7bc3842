"""The soft target of a batch in NumPy: similarities among its samples in, shares of the target out. The reference.

Shape letters: B samples in a batch (2B rows with two views).
Row i and row B + i of anything (2B, ...) are the two views of sample i. Both share one target, which holds the share of
sample j twice, once for each of its views, but that of sample i once: a view is no positive of itself. So everything is
computed on the B x B block. Entropies and divergences are in nats, means over rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError

Reals = npt.NDArray[np.floating]


def check_tau_s(tau_s: float) -> None:
    """Refuse a temperature that gives no target.

    Raises:
        OptionError: If it is not positive, or not a number.
    """
    if not 0 < tau_s < np.inf:
        raise OptionError(f"tau_s (--tau-s) is a positive temperature, not {tau_s:g}. The paper's is 0.1.")


def apply_options(similarity_BB: Reals, *, min_similarity: float | None, own_weight: float, tau_s: float) -> Reals:
    """Apply the options of the target to G: leave pairs out first, then give the own view its share; (B, B).

    The target becomes (1 - own_weight) s + own_weight times one-hot on the own view, the mixing of SCE (arXiv 2111.14585,
    section 3). It scales all other entries of a row alike, so a larger G_ii has the same effect:
    G_ii + tau_s log(1 + own_weight / ((1 - own_weight) s_ii)).

    Args:
        similarity_BB: G; it is not changed.
        min_similarity: Pairs below it have no part in the target (-inf), the own view excepted; None leaves none out.
        own_weight: Share of the target that is given to the own view, 0 to 1.
        tau_s: Temperature of the target.
    """
    shaped: Reals = similarity_BB.copy()
    own = similarity_BB.diagonal()
    if min_similarity is not None:
        shaped[similarity_BB < min_similarity] = -np.inf
        np.fill_diagonal(shaped, own)
    if own_weight >= 1:
        shaped.fill(-np.inf)
        np.fill_diagonal(shaped, 1.0)
    elif own_weight > 0:
        log_own = target_weights(shaped, tau_s)[1].diagonal()
        np.fill_diagonal(shaped, own + tau_s * np.logaddexp(0, np.log(own_weight / (1 - own_weight)) - log_own))
    return shaped


def target_weights(similarity_BB: Reals, tau_s: float) -> tuple[Reals, Reals]:
    """Compute the softmax of the target (docs/definitions.md, Target) without its 2B x 2B matrix.

    Returns:
        Weights w, (B, B), with 2 sum_j w_ij - w_ii = 1, of the dtype of G; and log w, -inf where a pair is left out.

    Raises:
        OptionError: If `tau_s` is not positive.
    """
    check_tau_s(tau_s)
    # The maximum is taken off before the division: at tau_s = 1e-5 float32 would lose it afterwards.
    logits = (similarity_BB - similarity_BB.max(axis=1, keepdims=True)) / similarity_BB.dtype.type(tau_s)
    shares = np.exp(logits)
    total = _over_columns(shares)
    return shares / total[:, None], logits - np.log(total)[:, None]


def two_view_target(similarity_BB: Reals, tau_s: float) -> Reals:
    """Lay out the soft target of both views: s_i = softmax over j != i of G_ij / tau_s; (2B, 2B), of the dtype of G.

    Row-stochastic with a zero diagonal. Each sample's other view has the similarity G_ii, which is 1.

    Raises:
        OptionError: If `tau_s` is not positive.
    """
    target: Reals = np.tile(target_weights(similarity_BB, tau_s)[0], (2, 2))
    np.fill_diagonal(target, 0.0)
    return target


def entropy(similarity_BB: Reals, tau_s: float) -> float:
    """Compute the mean entropy of the target; its exponential is the effective number of positives."""
    weights, logs = target_weights(similarity_BB, tau_s)
    return _mean_over_columns(-weights, np.where(weights > 0, logs, 0.0))


def own_view_mass(similarity_BB: Reals, tau_s: float) -> float:
    """Compute the mean share of the target that lies on the other view of the same sample."""
    return float(target_weights(similarity_BB, tau_s)[0].diagonal().mean(dtype=np.float64))


def kl(reference_BB: Reals, similarity_BB: Reals, tau_s: float) -> float:
    """Compute KL(target of the reference || target); infinite where the target leaves out what the reference holds."""
    weights, logs = target_weights(reference_BB, tau_s)
    other = target_weights(similarity_BB, tau_s)[1]
    held = weights > 0
    return _mean_over_columns(weights, np.where(held, logs, 0.0) - np.where(held, other, 0.0))


def _over_columns(terms_BB: Reals) -> Reals:
    """Sum over the 2B - 1 columns of a row of the target, from its block; (B,)."""
    sums: Reals = 2 * terms_BB.sum(axis=1) - terms_BB.diagonal()
    return sums


def _mean_over_columns(weights_BB: Reals, values_BB: Reals) -> float:
    return float(_over_columns(weights_BB * values_BB).mean(dtype=np.float64))
