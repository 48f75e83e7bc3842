"""A queue of past embeddings as further columns of a contrastive loss (cross-batch memory, arXiv 1912.06798).

Shape letters: B samples in a batch, Q in the queue, D width of the projection.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphbuild.store.arrays import Int64

_NONE = -1
"""Stands for a sample where the queue is not full yet."""


class Queue(nn.Module):
    """Both views of the newest samples, the same in all processes; part of the weights, so that checkpoints hold it."""

    views_2QD: Tensor
    samples_Q: Tensor

    def __init__(self, length: int, width: int, device: torch.device) -> None:
        """Begin empty.

        Args:
            length: Samples that it holds.
            width: D.
            device: Where the embeddings are.
        """
        super().__init__()
        self.register_buffer("views_2QD", torch.zeros(2, length, width, device=device))
        self.register_buffer("samples_Q", torch.full((length,), _NONE, device=device))
        self.samples: Int64 = np.zeros(0, np.int64)
        """The samples that are held, the oldest first: on the host, where targets are made."""
        self.register_load_state_dict_post_hook(_read_samples)  # type: ignore[no-untyped-call]

    def with_batch(self, samples_B: Int64) -> Int64:
        """Return the samples of a batch, and after them those of the queue; (B + Q,)."""
        return np.concatenate([samples_B, self.samples])

    def views(self) -> Tensor:
        """Return the embeddings that are held, first views before second ones, without a gradient; (2Q, D)."""
        return self.views_2QD[:, self.views_2QD.shape[1] - len(self.samples) :].flatten(0, 1)

    @torch.no_grad()
    def push(self, views_2BD: Tensor, samples_B: Int64) -> None:
        """Take in a batch, first views before second ones, (2B, D); the oldest samples go."""
        length = len(self.samples_Q)
        new = views_2BD.to(self.views_2QD.dtype).view(2, len(samples_B), -1)
        # A new tensor: the gradient of the batch's loss may still need the old one.
        self.views_2QD = torch.cat([self.views_2QD, new], dim=1)[:, -length:].contiguous()
        self.samples = np.concatenate([self.samples, samples_B])[-length:]
        held = np.concatenate([np.full(length - len(self.samples), _NONE), self.samples])
        self.samples_Q.copy_(torch.from_numpy(held), non_blocking=True)


def _read_samples(queue: Any, _: Any) -> None:
    held = queue.samples_Q.cpu().numpy()
    queue.samples = held[held != _NONE]
