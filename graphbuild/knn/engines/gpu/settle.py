"""Rows that a certificate leaves open: set against all texts in float64, on the device.

Shape letters: t open rows, T texts of a block, K neighbours kept, D vector width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphbuild.knn.engines.gpu.torch_steps import in_order
from graphbuild.knn.engines.gpu.vectors import Vectors

_PAIR_BYTES = 48
"""Bytes for each pair of a row and a text: id and similarity, with a copy, and what marks and counts the best."""
_LEAST_BLOCK = 256


def settle(vectors: Vectors, positions_n: NDArray[np.int32], k: int, room: int) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """Return the exact neighbours of some rows.

    Args:
        vectors: All.
        positions_n: Of the rows.
        k: K.
        room: Bytes to work within, about.

    Returns:
        Text ids and similarities, (n, K), as they are stored.
    """
    # As many rows as leave room for their K best and a block beside them: all texts are read once for each such part.
    step = max(1, room // (2 * _PAIR_BYTES * (k + _LEAST_BLOCK)))
    parts = [_settle(vectors, positions_n[first : first + step], k, room) for first in range(0, len(positions_n), step)]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([similarities for _, similarities in parts])


def _settle(vectors: Vectors, positions_t: NDArray[np.int32], k: int, room: int) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    step = max(_LEAST_BLOCK, room // (2 * (_PAIR_BYTES * len(positions_t) + 8 * vectors.dim)) - k)
    own_t = torch.from_numpy(positions_t).to(vectors.device)
    own_t1 = own_t[:, None]
    own_tD = vectors.gather(own_t).double()
    texts = own_t1[:, :0]
    exact = own_tD[:, :0]
    for first in range(0, vectors.count, step):
        places_T = vectors.places_N[first : first + step]
        block_TD = vectors.block(places_T)[: len(places_T)].double()
        found = (own_tD @ block_TD.T).masked_fill_(places_T.device == own_t1, -torch.inf)
        texts_T = vectors.texts_N[first : first + step].expand_as(found)
        texts, exact = _best(torch.cat([texts, texts_T], dim=1), torch.cat([exact, found], dim=1), k)
    ids, similarities = in_order(texts, exact)
    return ids.cpu().numpy(), similarities.cpu().numpy()


def _best(texts_tW: Tensor, exact_tW: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K largest of each row, of those that tie for the last places the lowest ids; in no order."""
    if exact_tW.shape[1] <= k:
        return texts_tW, exact_tW
    kth_t1 = exact_tW.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above, tied = exact_tW > kth_t1, exact_tW == kth_t1
    wanted_t1 = k - above.sum(dim=1, keepdim=True)
    surplus = (tied.sum(dim=1, keepdim=True) > wanted_t1)[:, 0].nonzero()[:, 0]
    if len(surplus):
        # Texts come in no order: those that tie are put in order by id, and the first ones stay.
        by_id = texts_tW[surplus].masked_fill(~tied[surplus], torch.iinfo(torch.int32).max).sort(dim=1).values
        last_t1 = by_id.gather(1, wanted_t1[surplus] - 1)
        tied[surplus] &= texts_tW[surplus] <= last_t1
    kept = above | tied
    shape = (len(texts_tW), k)
    return texts_tW[kept].view(shape), exact_tW[kept].view(shape)
