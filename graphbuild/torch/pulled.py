"""Losses without negatives for a training loop: VICReg, Barlow Twins, SimSiam, LeJEPA; `graphbuild.torch.modules` has the others.

Without similarities each is the published loss; with those of a graph its partners, weighted by the target, take the place of
the other view. Under torch.distributed they are those of one process with the whole batch, as the others are.
Shape letters: B samples in a batch, over all processes; b of them this process's; D width of the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.targets.softmax import check_tau_s
from graphbuild.torch.gather import whole_batch
from graphbuild.torch.losses import tile_size
from graphbuild.torch.views import ViewLoss
from graphbuild.torch.without_negatives import barlow_loss, draw_directions, lejepa_loss, simsiam_loss, vicreg_loss


class _Pulled(ViewLoss):
    """What they share: the temperature of the target."""

    def __init__(self, tau_s: float, gather_distributed: bool) -> None:
        super().__init__(gather_distributed)
        check_tau_s(tau_s)
        self.tau_s = tau_s

    def _batch(self, y0: Tensor, y1: Tensor, similarity: Tensor | None, *, least: int = 1) -> dict[str, Any]:
        """Return the arguments that all of them take."""
        if self.place_of(y0, y1)[1] < least:
            raise ValueError(f"a batch of {len(y0)} has no variance: pass at least {least} samples")
        target = self.target_of(similarity, y0, y1)
        y_2BD, anchors = whole_batch(torch.cat([y0, y1]), distributed=self.gather_distributed)
        tile = tile_size(0, len(y_2BD) // 2)
        return {"y_2BD": y_2BD, "target": target, "anchors": anchors, "tile": tile, "tau_s": self.tau_s}


class VICRegLoss(_Pulled):
    """VICReg (arXiv 2105.04906), whose invariance may be that to the graph's partners (arXiv 2205.11508)."""

    shown = ("invariance", "variance", "covariance", "tau_s", "gather_distributed")

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        tau_s: float = 0.1,
        gather_distributed: bool = True,
    ) -> None:
        """Set the weights of its three parts, the temperature of the target, and whether processes share one batch."""
        super().__init__(tau_s, gather_distributed)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def forward(self, y0: Tensor, y1: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Compute the loss of this process's samples; a scalar.

        Args:
            y0: Embeddings of one view, whose length counts; (b, D).
            y1: Embeddings of the other view, in the same order; (b, D).
            similarity: What `SoftTargets` gave for these samples: (B, B), or, under torch.distributed, (b, B); None: the other
                view is the only partner.

        Raises:
            ValueError: If the shapes do not fit, or there is one sample alone.
        """
        weights: dict[str, Any] = {"invariance": self.invariance, "variance": self.variance, "covariance": self.covariance}
        return vicreg_loss(**self._batch(y0, y1, similarity, least=2), **weights).loss


class BarlowTwinsLoss(_Pulled):
    """Barlow Twins (arXiv 2103.03230); with a graph the first views correlate with the means of their partners."""

    shown = ("redundancy", "tau_s", "gather_distributed")

    def __init__(self, redundancy: float = 5e-3, tau_s: float = 0.1, gather_distributed: bool = True) -> None:
        """Set the weight of correlations between coordinates; the others are those of `VICRegLoss`."""
        super().__init__(tau_s, gather_distributed)
        self.redundancy = redundancy

    def forward(self, y0: Tensor, y1: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Compute the loss of this process's samples; a scalar. Arguments and errors are those of `VICRegLoss`."""
        return barlow_loss(**self._batch(y0, y1, similarity, least=2), redundancy=self.redundancy).loss


class SimSiamLoss(_Pulled):
    """SimSiam (arXiv 2011.10566); with a graph a view predicts all its partners, which take no gradient."""

    shown = ("tau_s", "gather_distributed")

    def __init__(self, tau_s: float = 0.1, gather_distributed: bool = True) -> None:
        """Set the temperature of the target, and whether processes of torch.distributed share one batch."""
        super().__init__(tau_s, gather_distributed)

    def forward(self, p0: Tensor, p1: Tensor, y0: Tensor, y1: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Compute the loss of this process's samples, minus a mean cosine; a scalar.

        Args:
            p0: What your predictor makes of `y0`; (b, D).
            p1: What it makes of `y1`; (b, D).
            y0: Embeddings of one view; (b, D).
            y1: Embeddings of the other view; (b, D).
            similarity: As in `VICRegLoss`.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if p0.shape != y0.shape or p1.shape != y1.shape:
            raise ValueError(
                f"predictions are {tuple(p0.shape)} and {tuple(p1.shape)}, embeddings {tuple(y0.shape)} and {tuple(y1.shape)}: "
                "all are (b, D)"
            )
        return simsiam_loss(torch.cat([p0, p1]), **self._batch(y0, y1, similarity)).loss


class LeJEPALoss(_Pulled):
    """LeJEPA of two global views (arXiv 2511.08544): partners near, embeddings spread as an isotropic Gaussian."""

    shown = ("isotropy", "directions", "tau_s", "gather_distributed")

    def __init__(self, isotropy: float = 0.05, directions: int = 1024, tau_s: float = 0.1, gather_distributed: bool = True) -> None:
        """Set the share of SIGReg and the random directions of a step; the others are those of `VICRegLoss`.

        Raises:
            OptionError: If the share is not from 0 to 1, or there is no direction.
        """
        super().__init__(tau_s, gather_distributed)
        if not 0 <= isotropy <= 1 or directions < 1:
            raise OptionError(f"isotropy {isotropy:g} is a share from 0 to 1, and directions {directions} are at least one.")
        self.isotropy, self.directions = isotropy, directions
        self.step = 0
        """Of training; it seeds the directions, which so are the same in all processes, and is part of the state dict."""

    def get_extra_state(self) -> int:
        """Return the step, for the state dict."""
        return self.step

    def set_extra_state(self, state: int) -> None:
        """Take the step of a state dict."""
        self.step = state

    def forward(self, y0: Tensor, y1: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Compute the loss of this process's samples; a scalar. Arguments and errors are those of `VICRegLoss`."""
        place = self._batch(y0, y1, similarity)
        return lejepa_loss(**place, directions_DM=self._draw(y0), isotropy=self.isotropy).loss

    # Compiled, it would be compiled again at each step.
    @torch.compiler.disable
    def _draw(self, y0: Tensor) -> Tensor:
        """Draw the directions of a step."""
        directions = draw_directions(y0.shape[1], self.directions, seed=self.step).to(y0.device)
        self.step += self.training
        return directions
