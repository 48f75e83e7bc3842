"""Search by product and `topk`: each row against all texts, the best of each stripe of columns kept.

Shape letters: N texts, t rows of a panel, C columns of a tile, M candidates kept, K neighbours.

For few texts, for nearly complete graphs, and where the sweep is not faster. A row's limit is the lowest score that it kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from graphbuild.knn.engines.base import Advance
from graphbuild.knn.engines.gpu.certificate import Certificate
from graphbuild.knn.engines.gpu.lists import Steps
from graphbuild.knn.engines.gpu.sweep import Panel, spans
from graphbuild.knn.engines.gpu.tiles import Buffers
from graphbuild.knn.engines.gpu.vectors import Places, Vectors

_MARGIN = 32
"""Candidates beyond K: with fewer, more rows fail their certificate; with more, re-ranking takes longer."""


def kept(k: int, count: int) -> int:
    """Return the number of candidates kept for each row, M."""
    return min(k + 1 + _MARGIN, count)


def topk_panels(
    vectors: Vectors,
    group_n: Places,
    *,
    k: int,
    rows: int,
    columns: int,
    steps: Steps,
    buffers: Buffers,
    certificate: Certificate,
    advance: Advance,
) -> Iterator[Panel]:
    """Yield the rows of a group, a panel at a time, in order.

    Args:
        vectors: All.
        group_n: The group's rows.
        k: K.
        rows: Of a panel.
        columns: Of a tile; a panel's scores with them must fit the buffers.
        steps: How candidates are ranked.
        buffers: For the scores.
        certificate: What a limit proves.
        advance: Told of the pairs that were scored.
    """
    wanted = kept(k, vectors.count)
    for top, bottom in spans(0, len(group_n), rows):
        places_t = group_n[top:bottom]
        rows_tD = vectors.block(places_t)
        scores_tM = torch.empty((bottom - top, 0), dtype=torch.float16, device=vectors.device)
        ids_tM = torch.empty((bottom - top, 0), dtype=torch.int32, device=vectors.device)
        for left, right in spans(0, vectors.count, columns):
            columns_C = vectors.places_N[left:right]
            # Without what pads them.
            scores_tC = buffers.product(rows_tD, vectors.block(columns_C))[: bottom - top, : right - left]
            scores_tM, ids_tM = _best(scores_tM, ids_tM, scores_tC, columns_C.device, wanted)
            advance((bottom - top) * (right - left))
        counts_t = torch.full((bottom - top,), wanted, dtype=torch.int32, device=vectors.device)
        best = steps.best(vectors, places_t.device, ids_tM, counts_t, k)
        if wanted == vectors.count:
            # No text was turned away.
            open_t = torch.zeros_like(counts_t, dtype=torch.bool)
        else:
            open_t = certificate.highest(scores_tM.amin(dim=1)) >= best.kth_t
        yield Panel(places_t, best, open_t)


def _best(scores_tM: Tensor, ids_tM: Tensor, scores_tC: Tensor, positions_C: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The best of what was kept and a tile's scores."""
    found_tM, place_tM = scores_tC.topk(min(wanted, scores_tC.shape[1]), dim=1, sorted=False)
    joined = torch.cat([scores_tM, found_tM], dim=1)
    ids = torch.cat([ids_tM, positions_C[place_tM]], dim=1)
    if joined.shape[1] <= wanted:
        return joined, ids
    best_tM, place_tM = joined.topk(wanted, dim=1, sorted=False)
    return best_tM, ids.gather(1, place_tM)
