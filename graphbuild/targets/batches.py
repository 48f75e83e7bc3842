"""Which samples form a batch, and which caption each shows: pure functions of (seed, epoch, step), so that resuming is exact.

Shape letters: N samples, B samples in a batch, M chunks. A shuffle is arithmetic on indices, and no permutation of the
samples is kept: 12 M cost no memory, every rank computes the same, and any step can be asked for directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Int64

_Words = npt.NDArray[np.uint64]

_ROUNDS = 8
_SHUFFLE, _CAPTION = 1, 2
"""What a key is for: draws for different purposes never share one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's samples, and the position that they belong to."""

    epoch: int
    step: int
    """Within the epoch."""
    indices: Int64
    """(B,) int64."""


class RandomBatches:
    """Uniformly shuffled batches, a new order every epoch.

    Every sample comes at most once an epoch: the N mod B samples at the end of an epoch's order are left out of that
    epoch (`dropped_per_epoch`; others in each epoch), because batches of different sizes have different losses.
    """

    def __init__(self, n_samples: int, batch_size: int, seed: int) -> None:
        """Describe the batches.

        Raises:
            OptionError: If there are fewer samples than a batch holds.
        """
        if n_samples < batch_size:
            raise OptionError(
                f"--batch-size {batch_size:,} is more than the {n_samples:,} images there are. Take at most {n_samples:,}."
            )
        self.n_samples, self.batch_size, self.seed = n_samples, batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.n_samples // self.batch_size

    @property
    def dropped_per_epoch(self) -> int:
        """Samples that an epoch leaves out."""
        return self.n_samples % self.batch_size

    def batch(self, epoch: int, step: int) -> Int64:
        """Return the samples of a step of an epoch, both counted from 0; (B,).

        Raises:
            ValueError: If the epoch has no such step.
        """
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"epoch {epoch} has steps 0 to {self.steps_per_epoch - 1}, not {step}")
        return self._samples_at(epoch, step * self.batch_size, (step + 1) * self.batch_size)

    def rest(self, epoch: int) -> Int64:
        """Return the samples that the batches of an epoch leave out, in its order; (`dropped_per_epoch`,)."""
        return self._samples_at(epoch, self.steps_per_epoch * self.batch_size, self.n_samples)

    def _samples_at(self, epoch: int, start: int, stop: int) -> Int64:
        """Samples of the places from `start` to `stop` - 1 of an epoch's order."""
        return shuffled(np.arange(start, stop, dtype=np.int64), self.n_samples, _key(self.seed, epoch, _SHUFFLE))

    def instead(self, batch: Batch) -> Iterator[Int64]:
        """Return samples to take where those of a batch cannot be used: those at the same places of the batches after it.

        After the last batch of the epoch comes the first one, and once around, the places are moved by one. Which samples
        a batch ends with thus depends on its epoch and step and on what can be read, and on nothing that was met before.
        """
        for attempt in range(1, self.steps_per_epoch * self.batch_size):
            turns = attempt // self.steps_per_epoch
            yield np.roll(self.batch(batch.epoch, (batch.step + attempt) % self.steps_per_epoch), -turns)

    def batches(self, *, epoch: int = 0, step: int = 0) -> Iterator[Batch]:
        """Yield batches without end, from a position on. A run that stopped goes on with the position after its last step."""
        while True:
            for now in range(step, self.steps_per_epoch):
                yield Batch(epoch, now, self.batch(epoch, now))
            epoch, step = epoch + 1, 0


class NeighborBatches(RandomBatches):
    """Batches of whole chunks of neighbours, the chunks shuffled anew every epoch.

    The chunks, one after another, are cut into batches: B / chunk of them where all are full. A chunk that is short (its
    images are unknown or corrupt, or it is the last one) moves the cuts after it, and a chunk that a cut falls into is
    shared by two batches. So every sample comes at most once an epoch, and N mod B are left out, as of random batches; with
    chunks of one sample these are random batches.
    """

    def __init__(self, chunks: npt.NDArray[np.integer], batch_size: int, seed: int) -> None:
        """Describe the batches.

        Args:
            chunks: The chunk of each sample, of any numbering; -1: in a chunk of its own; (N,).
            batch_size: B.
            seed: The run's.

        Raises:
            OptionError: If there are fewer samples than a batch holds.
        """
        super().__init__(len(chunks), batch_size, seed)
        labels = chunks.astype(np.int64)
        alone = np.flatnonzero(labels < 0)
        labels[alone] = labels.max(initial=0) + 1 + np.arange(len(alone))
        self._members: Int64 = np.argsort(labels, kind="stable")
        sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
        self._starts: Int64 = np.cumsum(sizes) - sizes
        self._sizes: Int64 = sizes
        # The order of the epoch asked for last: 16 bytes a chunk. Replaced as one, because two threads may ask.
        self._order: tuple[int, Int64, Int64] = (-1, sizes, sizes)

    def _samples_at(self, epoch: int, start: int, stop: int) -> Int64:
        """Samples of the places from `start` to `stop` - 1 of an epoch's order, chunk after chunk."""
        if start == stop:
            return np.empty(0, np.int64)
        chunks, ends = self._chunks_of(epoch)
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
        some = chunks[first : last + 1]
        members = np.concatenate([self._members[self._starts[c] : self._starts[c] + self._sizes[c]] for c in some])
        skipped = start - (int(ends[first]) - int(self._sizes[some[0]]))
        return members[skipped : skipped + stop - start]

    def _chunks_of(self, epoch: int) -> tuple[Int64, Int64]:
        """The chunks of an epoch in their order, and where each ends in it; (M,) each."""
        known, chunks, ends = self._order
        if known != epoch:
            chunks = shuffled(np.arange(len(self._sizes)), len(self._sizes), _key(self.seed, epoch, _SHUFFLE))
            ends = np.cumsum(self._sizes[chunks])
            self._order = (epoch, chunks, ends)
        return chunks, ends


def shuffled(places: Int64, count: int, key: int) -> Int64:
    """Return where a keyed pseudo-random permutation of 0..count-1 takes some places.

    A Feistel network on pairs of digits, mixed radix so that its domain is hardly larger than `count`; what falls outside
    is sent through again (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).

    Args:
        places: Numbers from 0 to count - 1, of any shape.
        count: Size of the set that is permuted; at least 1.
        key: Which permutation.
    """
    width = int(np.ceil(np.sqrt(count)))
    height = -(-count // width)
    result = places.astype(np.uint64)
    outside = np.ones(result.shape, np.bool_)
    while outside.any():
        result[outside] = _feistel(result[outside], np.uint64(width), np.uint64(height), key)
        outside = result >= np.uint64(count)
    return result.astype(np.int64)


def _feistel(values: _Words, width: np.uint64, height: np.uint64, key: int) -> _Words:
    """One pass of the network: a bijection of 0..width*height-1."""
    high, low = values // width, values % width
    for turn in range(_ROUNDS):
        if turn % 2:
            high = (high + _mix(low, key, turn) % height) % height
        else:
            low = (low + _mix(high, key, turn) % width) % width
    return high * width + low


def draw_captions(counts_B: Int64, samples_B: Int64, *, seed: int, epoch: int) -> Int64:
    """Return which of its captions each sample shows in an epoch: uniform, whatever the batch or the order; (B,).

    Args:
        counts_B: Captions of each sample, at least 1; (B,).
        samples_B: The samples; (B,).
        seed: The run's.
        epoch: From 0.
    """
    draws = _mix(samples_B.astype(np.uint64), _key(seed, epoch, _CAPTION), 0)
    return (draws % counts_B.astype(np.uint64)).astype(np.int64)


def draw_texts(
    offsets: Int64, text_ids: npt.NDArray[np.int32], samples_B: Int64, *, seed: int, epoch: int
) -> npt.NDArray[np.int32]:
    """Return the text that each sample shows in an epoch; (B,) int32.

    Args:
        offsets: Sample i has `text_ids[offsets[i]:offsets[i + 1]]`, at least one; (N + 1,).
        text_ids: Texts of all samples.
        samples_B: The samples of a batch; (B,).
        seed: The run's.
        epoch: From 0.
    """
    first = offsets[samples_B]
    drawn = draw_captions(offsets[samples_B + 1] - first, samples_B, seed=seed, epoch=epoch)
    texts: npt.NDArray[np.int32] = text_ids[first + drawn]
    return texts


def _key(seed: int, epoch: int, purpose: int) -> int:
    """64 bits for a purpose in an epoch."""
    words = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)
    return int(words[0])


def _mix(values: _Words, key: int, turn: int) -> _Words:
    """SplitMix64's finaliser (Steele et al. 2014) over value, key and turn: wraps around 2^64 by design."""
    offset = (key + 0x9E3779B97F4A7C15 * (turn + 1)) % (1 << 64)
    words = values * np.uint64(0xD1342543DE82EF95) + np.uint64(offset)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
