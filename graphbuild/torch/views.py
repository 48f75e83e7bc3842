"""What the loss modules share: two views of this process's samples, and the batch that they are a part of."""

from __future__ import annotations

from torch import Tensor, nn

from graphbuild.torch.blocks import MatrixTarget, OneHotTarget, Target
from graphbuild.torch.gather import Place, this_place


class ViewLoss(nn.Module):
    """Views in, a scalar out; under torch.distributed that of one process, unless its batch is its own."""

    shown: tuple[str, ...] = ()
    """Options that `print` shows."""

    def __init__(self, gather_distributed: bool) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown)

    def place_of(self, first: Tensor, second: Tensor) -> tuple[Place, int]:
        """Return which process this is, and B.

        Raises:
            ValueError: If the views do not fit together.
        """
        if first.ndim != 2 or first.shape != second.shape or not len(first):
            raise ValueError(
                f"views are {tuple(first.shape)} and {tuple(second.shape)}: both are (b, D), row i of each of sample i"
            )
        place = this_place() if self.gather_distributed else Place(0, 1)
        return place, place.world * len(first)

    def target_of(self, similarity: Tensor | None, first: Tensor, second: Tensor) -> Target:
        """Return G by rows: what `SoftTargets` gave for these samples, or, for None, the other view alone.

        Raises:
            ValueError: If the shapes do not fit.
        """
        place, batch = self.place_of(first, second)
        if similarity is None:
            return OneHotTarget(batch, first.device)
        if not isinstance(similarity, Tensor):
            raise ValueError(
                f"similarities are a {type(similarity).__name__}: pass the tensor that SoftTargets gives for these samples"
            )
        rows = len(similarity)
        if similarity.shape != (rows, batch) or rows not in (len(first), batch):
            raise ValueError(
                f"similarities are {tuple(similarity.shape)}, but {place.world} process(es) with {len(first)} samples each need "
                f"({len(first)}, {batch}): those of this process's samples with all. Call SoftTargets in the training process, "
                "with the ids of this batch and the same gather_distributed"
            )
        own = place.part(batch).start if rows < batch else 0
        real = similarity if similarity.is_floating_point() else similarity.float()
        return MatrixTarget(real.to(first.device, non_blocking=True), first=own)
