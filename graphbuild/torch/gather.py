"""One batch over several processes of torch.distributed: rows of each brought together, in the order of their ranks.

Shape letters: B samples in a batch, b of them this process's, D width of the embeddings.
Without a process group, and in the workers of a DataLoader, there is one process, and everything is returned as it is.
All processes call the same functions in the same order, with equally many rows each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import get_worker_info


class Place(NamedTuple):
    """Which of the processes this one is."""

    rank: int
    world: int
    """How many there are."""

    def part(self, batch: int) -> range:
        """Return the places of a batch that are this process's."""
        own = batch // self.world
        return range(self.rank * own, (self.rank + 1) * own)


def this_place() -> Place:
    """Return the rank of this process and how many there are."""
    # A forked worker inherits the process group of the training process, but is no member of it.
    if not (dist.is_available() and dist.is_initialized()) or get_worker_info() is not None:
        return Place(0, 1)
    return Place(dist.get_rank(), dist.get_world_size())


def gather(own: Tensor) -> Tensor:
    """Gather the rows of all processes, in the order of the batch, without a gradient; (b, ...) -> (B, ...)."""
    world = this_place().world
    if world == 1:
        return own
    home = own.device
    # A group of NCCL alone cannot exchange what lies on the host.
    device = home if _has_backend(home.type) else torch.device("cuda", torch.cuda.current_device())
    sent = own.to(device).contiguous()
    every = sent.new_empty((world * len(own), *own.shape[1:]))
    dist.all_gather_into_tensor(every, sent)
    return every.to(home)


def gather_rows(own: Tensor) -> Tensor:
    """Gather the rows of all processes, in the order of the batch, with the gradient of all their losses; (b, ...) -> (B, ...)."""
    if this_place().world == 1:
        return own
    every: Tensor = _Gather.apply(own)
    return every


def gather_views(z_2bD: Tensor) -> Tensor:
    """Gather the embeddings of all processes, first views before second ones, with the gradient of all losses; (2B, D)."""
    if this_place().world == 1:
        return z_2bD
    # Views of one sample side by side, so that the parts of the processes follow one another.
    paired = z_2bD.view(2, len(z_2bD) // 2, -1).transpose(0, 1)
    return gather_rows(paired).transpose(0, 1).flatten(0, 1)


def whole_batch(views_2bD: Tensor, *, distributed: bool) -> tuple[Tensor, range]:
    """Return the views of the batch, first ones before second ones, and which of its samples are this process's; (2B, D)."""
    if not distributed:
        return views_2bD, range(len(views_2bD) // 2)
    views_2BD = gather_views(views_2bD)
    return views_2BD, this_place().part(len(views_2BD) // 2)


def _has_backend(device_type: str) -> bool:
    """Whether the process group exchanges tensors of a kind of device: `cpu:gloo,cuda:nccl` tells."""
    return f"{device_type}:" in dist.get_backend_config()


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradient of a row is the sum of those that the processes' losses give it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return gather(own)

    @staticmethod
    def backward(ctx: Any, of_every: Tensor) -> Tensor:
        part = this_place().part(len(of_every))
        if of_every.device.type == "cpu":
            # With gloo's own reduce_scatter, four processes now and then end with a size that does not match.
            total = of_every.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total[part.start : part.stop]
        own = of_every.new_empty((len(part), *of_every.shape[1:]))
        dist.reduce_scatter_tensor(own, of_every.contiguous())
        return own
