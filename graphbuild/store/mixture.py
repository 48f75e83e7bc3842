"""What share each of several graphs, or kernels, has of one similarity. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphbuild.errors import OptionError


def share_weights(weights: Sequence[float], graphs: int, *, option: str = "--weights", of: str = "graph") -> tuple[float, ...]:
    """Return weights that sum to 1.

    Args:
        weights: One a graph; empty: all alike.
        graphs: How many there are.
        option: How messages call the weights.
        of: How they call what has one.

    Raises:
        OptionError: If they are not one a graph, negative, not finite, or all zero.
    """
    given = list(weights) or [1.0] * graphs
    if len(given) != graphs:
        raise OptionError(f"{option}: {len(given)} for {graphs} {of}s. Give one a {of}, such as 0.7,0.3.")
    if not all(math.isfinite(one) and one >= 0 for one in given):
        raise OptionError(f"{option} {','.join(f'{one:g}' for one in given)}: weights are zero or more, and finite.")
    if not (total := math.fsum(given)):
        raise OptionError(f"{option}: all are zero, so nothing would be similar. Give one that is not.")
    return tuple(one / total for one in given)
