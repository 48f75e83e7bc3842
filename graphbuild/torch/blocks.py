"""Rows of the similarity matrix G of a batch, for some of its anchors at a time: what the loss takes tile by tile.

SimCLR, SupCon and X-CLR are one loss; what differs is G. Shape letters: B samples in a batch, b of them this process's,
C captions of a batch, T anchors of a tile, K neighbours stored, R sketch width, D embedding width.
No B x B matrix is made here unless all anchors are asked for at once, and nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from graphbuild.store.choices import Symmetrize
from graphbuild.store.sketches import UNCORRECTED, Correction
from graphbuild.torch.rows import RowTensors

Gather = Callable[[Tensor], Tensor]
"""Rows of this process's samples (b, ...) to those of the whole batch (B, ...)."""


class Target(Protocol):
    """G of a batch, by rows."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return similarities of the anchors start to stop - 1 to all samples, -inf where left out; (T, B) float32."""


class MatrixTarget:
    """G that is at hand as a matrix: of all anchors, or of those from `first` on."""

    def __init__(self, similarity: Tensor, *, first: int = 0) -> None:
        self._similarity, self._first = similarity, first

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows of the matrix."""
        return self._similarity[start - self._first : stop - self._first]


class OneHotTarget:
    """SimCLR: the two views of one image, and nothing else."""

    def __init__(self, batch: int, device: torch.device | str) -> None:
        self._batch, self._device = batch, device

    def rows(self, start: int, stop: int) -> Tensor:
        """Return 1 for the anchor, -inf for everything else."""
        similarity = torch.full((stop - start, self._batch), -torch.inf, device=self._device)
        similarity.diagonal(start).fill_(1.0)
        return similarity


class SameClassTarget:
    """SupCon: samples of one class."""

    def __init__(self, labels_B: Tensor) -> None:
        self._labels_B = labels_B

    def rows(self, start: int, stop: int) -> Tensor:
        """Return 1 for samples of the anchor's class, -inf for everything else."""
        same = self._labels_B[start:stop, None] == self._labels_B[None, :]
        return torch.where(same, 1.0, -torch.inf)


class DenseTarget:
    """Similarities of stored embeddings, 1 where texts are equal."""

    def __init__(self, embeddings_BD: Tensor, text_ids_B: Tensor) -> None:
        self._vectors_BD, self._ids_B = embeddings_BD.float(), text_ids_B

    def rows(self, start: int, stop: int) -> Tensor:
        """Return inner products, in float32."""
        with torch.autocast(self._vectors_BD.device.type, enabled=False):
            products = self._vectors_BD[start:stop] @ self._vectors_BD.T
            return products.masked_fill_(self._ids_B[start:stop, None] == self._ids_B[None, :], 1.0)


class StoredTarget:
    """Similarities that the rows of a batch's texts store of one another; the sketch's estimate, or a constant, elsewhere.

    Each process looks up the neighbours of its own samples among the texts of the batch. What was found, not what was
    stored, is exchanged, so that a pair counts whichever of its rows stores it. The results are those of
    `graphbuild.targets.assemble.assemble`, bit for bit.
    """

    def __init__(
        self,
        rows: RowTensors,
        text_ids_B: Tensor,
        *,
        absent: float | None,
        symmetrize: Symmetrize = "union",
        gather: Gather = lambda own: own,
        correction: Correction = UNCORRECTED,
    ) -> None:
        """Look up which neighbours are in the batch.

        Args:
            rows: Stored rows of this process's samples, b of them.
            text_ids_B: The text of each sample of the batch, on the device of the rows; (B,) integers.
            absent: What a pair counts as that neither row stores; None takes the sketch.
            symmetrize: `mutual` takes a pair that only one of its rows stores for absent.
            gather: Brings the processes' rows together, in the order of the batch.
            correction: What sketches leave out; the graph's.
        """
        ids = text_ids_B.to(torch.int32)
        self._ids_B, self._absent, self._mutual = ids, absent, symmetrize == "mutual"
        batch = len(ids)
        # Stable, so that the head of the samples of one text is the lowest of them, as in the reference.
        sorted_ids, order = torch.sort(ids, stable=True)
        self._head_B = order[torch.searchsorted(sorted_ids, ids)]
        place = torch.searchsorted(sorted_ids, rows.neighbor_ids.contiguous()).clamp_(max=batch - 1)
        # Misses go to one column more than there are samples, which is cut off: shapes stay fixed.
        found = torch.where(sorted_ids[place] == rows.neighbor_ids, order[place], batch)
        self._place_BK = gather(found.to(torch.int32)).long()
        self._values_BK = gather(rows.similarities).float()
        if absent is None:
            self._codes_BR, self._scale_B = gather(rows.sketch), gather(rows.sketch_scale)
            self._lengths_B, self._correction = _residual_lengths(self._codes_BR, self._scale_B), correction

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the similarities of some anchors."""
        batch = len(self._ids_B)
        own = _scatter(self._place_BK[start:stop], self._values_BK[start:stop], batch)[:, self._head_B]
        other = own.T if stop - start == batch else self._stored_by_others(start, stop)
        similarity = torch.maximum(own, other)
        if self._mutual:
            similarity = similarity.masked_fill_(torch.minimum(own, other) == -torch.inf, -torch.inf)
        similarity = torch.where(similarity == -torch.inf, self._fill(start, stop), similarity)
        same = self._ids_B[start:stop, None] == self._ids_B[None, :]
        return similarity.masked_fill_(same, 1.0)

    def stored(self, start: int, stop: int) -> Tensor:
        """Count, for each anchor, the other samples of the batch that its row stores; (T,) int32."""
        samples_of = torch.zeros(len(self._ids_B) + 1, dtype=torch.int32, device=self._ids_B.device)
        samples_of.scatter_add_(0, self._head_B, torch.ones_like(self._ids_B))
        return samples_of[self._place_BK[start:stop]].sum(dim=1, dtype=torch.int32)

    def _stored_by_others(self, start: int, stop: int) -> Tensor:
        """Similarities to the anchors as the other samples' rows store them, -inf where they do not; (T, B)."""
        heads_T = self._head_B[start:stop]
        column_of = torch.full((len(self._ids_B) + 1,), stop - start, device=heads_T.device)
        # Where several anchors share a text, any of their columns serves all of them.
        column_of[heads_T] = torch.arange(stop - start, device=heads_T.device)
        return _scatter(column_of[self._place_BK], self._values_BK, stop - start)[:, column_of[heads_T]].T

    def _fill(self, start: int, stop: int) -> Tensor:
        if self._absent is not None:
            return torch.full((), self._absent, device=self._ids_B.device)
        # The sums of byte products are exact in float32, whatever their order, and in TF32 too.
        with torch.autocast(self._ids_B.device.type, enabled=False):
            codes, scale, lengths = self._codes_BR.float(), self._scale_B, self._lengths_B
            found = (codes[start:stop] @ codes.T) * (scale[start:stop, None] * scale[None, :])
            one, two, three, four = self._correction
            cosines = ((four * found + three) * found + two) * found + one
            return found + (lengths[start:stop, None] * lengths[None, :]) * cosines.clamp_(-1, 1)


def _residual_lengths(codes_BR: Tensor, scale_B: Tensor) -> Tensor:
    """As `graphbuild.store.sketches.residual_lengths`; (B,)."""
    squares_B = (1 - codes_BR.float().square().sum(dim=1) * (scale_B * scale_B)).clamp_(min=0)
    # torch's own root of float32 is one of a vector library, a bit off in the last place.
    return squares_B.double().sqrt_().float()


def _scatter(columns_MK: Tensor, values_MK: Tensor, width: int) -> Tensor:
    """Values in the columns that they name, -inf elsewhere; what names column `width` is dropped; (M, width)."""
    spread = torch.full((len(columns_MK), width + 1), -torch.inf, device=values_MK.device)
    return spread.scatter_(1, columns_MK, values_MK)[:, :width]


class AveragedTarget:
    """G of samples with several captions: the mean over the captions of both, and 1 for a sample with itself."""

    def __init__(self, captions: Target, offsets: Tensor, positions_B: Tensor) -> None:
        """Describe which captions are whose.

        Args:
            captions: G of all C captions of the batch.
            offsets: Sample i has the captions from `offsets[i]` to `offsets[i + 1]` - 1; (B + 1,), on the CPU.
            positions_B: What tells the samples apart, on the device of G; (B,).
        """
        self._captions, self._offsets, self._positions_B = captions, offsets.tolist(), positions_B
        device = positions_B.device
        counts = offsets.diff()
        self._owner_C = torch.repeat_interleave(torch.arange(len(counts)), counts).to(device)
        self._counts_B = counts.to(device)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return means over captions; (T, B) float32."""
        first, last = self._offsets[start], self._offsets[stop]
        block_cC = self._captions.rows(first, last)
        sums = block_cC.new_zeros(last - first, len(self._counts_B)).index_add_(1, self._owner_C, block_cC)
        sums = sums.new_zeros(stop - start, sums.shape[1]).index_add_(0, self._owner_C[first:last] - start, sums)
        means = sums / (self._counts_B[start:stop, None] * self._counts_B[None, :])
        return means.masked_fill_(self._positions_B[start:stop, None] == self._positions_B[None, :], 1.0)
