"""One target of several graphs over the same samples: the mean of their targets, or of their similarities.

Shape letters: B samples in a batch, b of them this process's, T anchors of a tile, S samples, N graphs.
Nothing here waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.store.choices import Mix
from graphbuild.store.mixture import share_weights
from graphbuild.targets.samples import Coverage
from graphbuild.torch.assembler import GraphTarget
from graphbuild.torch.blocks import Target
from graphbuild.torch.soft_targets import SampleIds, SoftTargets, describe_target
from graphbuild.torch.softmax import apply_options, target_weights

_SHARED = ("tau_s", "min_similarity", "own_weight")
"""Options of the target that belong to the mixture, and not to a graph."""


@dataclass(frozen=True, slots=True)
class _Mean:
    """Rows of several graphs as those of one."""

    parts: tuple[Target, ...]
    shares: tuple[float, ...]
    mix: Mix
    tau_s: float

    def rows(self, start: int, stop: int) -> Tensor:
        """Return G of some anchors, (T, B): the mean, or what has the mean of the targets for its softmax at tau_s.

        A graph whose share is 0 is not looked at; a pair that one of the others leaves out of its similarities has none.
        """
        used = [(share, part.rows(start, stop)) for share, part in zip(self.shares, self.parts, strict=True) if share]
        if self.mix == "similarities":
            return reduce(torch.add, (share * similarity for share, similarity in used))
        logs = [math.log(share) + target_weights(similarity, self.tau_s, start=start)[1] for share, similarity in used]
        mean = torch.stack(logs).logsumexp(dim=0)
        # The own view is at 0 and not at 1: with a small tau_s the others lie so near that float32 would not tell them apart.
        return self.tau_s * (mean - mean.diagonal(start)[:, None])


@dataclass(frozen=True, slots=True)
class MixedTarget(GraphTarget):
    """G of several graphs by rows: what a loss takes of one."""

    parts: tuple[GraphTarget, ...]
    shares: tuple[float, ...]
    mix: Mix

    def rows(self, start: int, stop: int) -> Tensor:
        """Return G of some anchors, with the options of the target applied; (T, B) float32."""
        if self.mix == "similarities":
            return GraphTarget.rows(self, start, stop)
        # Which pairs are left out is for each graph to say; the own view's share is one of the mean.
        kept = tuple(replace(part, options=replace(part.options, own_weight=0.0)) for part in self.parts)
        mean = _Mean(kept, self.shares, self.mix, self.options.tau_s).rows(start, stop)
        own_weight, tau_s = self.options.own_weight, self.options.tau_s
        return apply_options(mean, min_similarity=None, own_weight=own_weight, tau_s=tau_s, start=start)

    def hit_rate(self, anchors: range) -> Tensor | None:
        """Compute the stored neighbours per anchor in the batch, the mean over graphs by their shares; a scalar."""
        found = [(share, part.hit_rate(anchors)) for share, part in zip(self.shares, self.parts, strict=True)]
        known = [share * rate for share, rate in found if rate is not None]
        return torch.stack(known).sum() if len(known) == len(found) else None

    def at(self, tau_s: float) -> MixedTarget:
        """Return the same at another temperature of the target."""
        parts = [replace(part, options=replace(part.options, tau_s=tau_s)) for part in self.parts]
        return mix_targets(parts, self.shares, self.mix)


def mix_targets(parts: Sequence[GraphTarget], shares: Sequence[float], mix: Mix) -> MixedTarget:
    """Return the target of several graphs.

    Args:
        parts: G of the same batch by each graph; all with one `tau_s`, `min_similarity` and `own_weight`.
        shares: What each counts; they sum to 1.
        mix: `targets`: the target is the mean of theirs. `similarities`: G is the mean of theirs.
    """
    options, weights = parts[0].options, tuple(shares)

    def mean(targets: Sequence[Target]) -> Target:
        return _Mean(tuple(targets), weights, mix, options.tau_s)

    makers: list[Callable[[], Target]] = [part.exact for part in parts if part.exact is not None]
    exact = (lambda: mean([make() for make in makers])) if len(makers) == len(parts) else None
    return MixedTarget(mean([part.plain for part in parts]), options, exact, None, tuple(parts), weights, mix)


class MixedSoftTargets:
    """Similarities among the samples of a batch by several graphs at once: what `XCLRLoss` takes.

    Samples are matched by their ids. It pickles, and works in threads and workers, as `SoftTargets` does.

    >>> from graphbuild.torch import MixedSoftTargets
    >>> targets = MixedSoftTargets([example_graph, example_graph], weights=[0.7, 0.3])
    >>> targets(["sample-0-0", "sample-1-0", "sample-2-0"]).shape
    torch.Size([3, 3])
    """

    def __init__(self, graphs: Sequence[SoftTargets | Path | str], weights: Sequence[float] = (), *, mix: Mix = "targets") -> None:
        """Put graphs together.

        Args:
            graphs: Graph directories, or `SoftTargets` where a graph has options; temperature, `min_similarity`, `own_weight`,
                device and `gather_distributed` are the same in all.
            weights: One a graph, of any sum; none: all alike.
            mix: `targets`: the target is the mean of those of the graphs. `similarities`: G is the mean of theirs.

        Raises:
            OptionError: If there is no graph, weights are wrong, or graphs differ in what has to be the same.
            ArtifactError: If there is no graph in a folder, or its knn stage is not done.
        """
        if mix not in ("targets", "similarities"):
            raise OptionError(f"mix {mix!r} is neither targets nor similarities.")
        self.parts = tuple(item if isinstance(item, SoftTargets) else SoftTargets(item) for item in graphs)
        if not self.parts:
            raise OptionError("MixedSoftTargets takes one graph or more.")
        self.shares, self.mix = share_weights(weights, len(self.parts), option="weights"), mix
        first, *others = (_facts(part) for part in self.parts)
        for other in others:
            for name, value in first.items():
                if other[name] != value:
                    raise OptionError(f"{name} is {value} for the first graph, and {other[name]} for another. Give all the same.")

    def __repr__(self) -> str:
        return f"MixedSoftTargets({list(self.parts)}, {self.shares}, mix={self.mix!r})"

    def __call__(self, ids: SampleIds, *, epoch: int | None = None) -> Tensor:
        """Compute the similarities among the samples of a batch.

        Args:
            ids: The samples of this process: sample ids, (b,), or positions from `positions`, (b, N).
            epoch: For the draw among captions, from 0; None: that of `set_epoch`.

        Returns:
            G, (B, B) float32, or, where processes share the batch, (b, B). With `mix="targets"` only its softmax at `tau_s`
            has a meaning, which is the mean of the targets; its diagonal is 0.

        Raises:
            SourceError: If a graph does not know all samples; the message names it, and how many they are.
            ArtifactError: If a file of a graph is missing or damaged.
            OptionError: If absent pairs have no similarity, or positions are not of these graphs.
        """
        target, anchors = self.of_ids(ids, epoch)
        return target.rows(anchors.start, anchors.stop)

    def set_epoch(self, epoch: int) -> None:
        """Draw other captions from now on. Has no effect on workers that are running: pass them `epoch=`."""
        for part in self.parts:
            part.set_epoch(epoch)

    def positions(self, ids: Sequence[str]) -> Tensor:
        """Look up samples once, for all batches to come: row i of a data set has positions i.

        Returns:
            The first row of each in the samples table of each graph; (S, N) int64 on the CPU.

        Raises:
            SourceError: If a graph does not know all samples.
        """
        return torch.stack([part.positions(ids) for part in self.parts], dim=1)

    def coverage(self, ids: Sequence[str]) -> tuple[Coverage, ...]:
        """Count how many of some sample ids each graph knows; samples to train on are in the `mask` of all."""
        return tuple(part.coverage(ids) for part in self.parts)

    def describe(self, ids: SampleIds, *, epoch: int | None = None) -> dict[str, float]:
        """Measure the target of a batch, for logging, as `SoftTargets.describe`; `hit_rate` is the mean over graphs by share."""
        for part in self.parts:
            part.assembler.load_embeddings()
        return describe_target(*self.of_ids(ids, epoch))

    def of_ids(self, ids: SampleIds, epoch: int | None = None) -> tuple[MixedTarget, range]:
        """Make the target of a batch, by rows, and tell which of its samples are this process's."""
        every: list[SampleIds] = [ids] * len(self.parts)
        if isinstance(ids, np.ndarray) and np.issubdtype(ids.dtype, np.integer):
            ids = torch.from_numpy(ids)
        if isinstance(ids, Tensor):
            if ids.ndim != 2 or ids.shape[1] != len(self.parts):
                raise OptionError(f"positions are (b, {len(self.parts)}), as positions(ids) gives them, not {tuple(ids.shape)}.")
            every = list(ids.unbind(dim=1))
        found = [part.of_ids(own, epoch) for part, own in zip(self.parts, every, strict=True)]
        return mix_targets([target for target, _ in found], self.shares, self.mix), found[0][1]


def _facts(part: SoftTargets) -> dict[str, object]:
    options = {name: getattr(part.options, name) for name in _SHARED}
    return {**options, "device": part.device, "gather_distributed": part.gather_distributed}
