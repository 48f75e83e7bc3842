"""Several processes as one trainer: `torchrun --nproc-per-node 8 -m train run ...`.

Every process knows the whole batch by its sample numbers, decodes and encodes its own part, and takes the loss of its own
anchors against the embeddings of all (`graphbuild.torch.gather`). Shape letters: B samples in a batch, b of them this process's.

A process that dies takes the others with it: their next exchange fails, and torchrun ends what is left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from graphbuild.errors import OptionError, ResourceError, UserError
from graphbuild.store.arrays import Int64
from graphbuild.torch.gather import Place, gather

Value = TypeVar("Value")
_PATIENCE = timedelta(minutes=30)
"""The longest that processes wait for one another: while the first one makes a partition, say."""
_SPEAKS_FIRST = 2.0
"""Seconds that other processes outlive an error that the first one reports."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a job, and which of them this is. All of them call each method, in the same order."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Among those of this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def require_divisible(self, batch_size: int) -> None:
        """Refuse batches that cannot be shared out evenly.

        Raises:
            OptionError: With batch sizes that can.
        """
        if batch_size % self.count:
            below = batch_size - batch_size % self.count
            near = f"{below:,} or {below + self.count:,}" if below else f"{self.count:,}"
            raise OptionError(
                f"--batch-size {batch_size:,} is that of all {self.count} processes together, and cannot be divided by them. "
                f"Take {near}."
            )

    def device(self, device: str) -> str:
        """Return this process's device, for one that names no number."""
        kind = torch.device(device).type
        return f"{kind}:{self.local_rank}" if self.count > 1 and kind == "cuda" else device

    def part(self, batch: int) -> range:
        """Return the places of a batch that are this process's."""
        return Place(self.rank, self.count).part(batch)

    def gather_numbers(self, own: Int64) -> Int64:
        """Gather numbers of all processes, exchanged on the host; (b,) -> (B,)."""
        return gather(torch.from_numpy(own)).numpy()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes, elementwise."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values / self.count

    def gather_objects(self, own: Value) -> list[Value]:
        """Return what every process has, for all."""
        if self.count == 1:
            return [own]
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, own)
        return every

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest of the processes' first numbers, of their second ones, and so on, in one exchange."""
        every = self.gather_numbers(np.array(numbers, np.int64)).reshape(self.count, len(numbers))
        return tuple(every.max(axis=0).tolist())

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose gradients, after `average_gradients`, are those of the mean of all processes' losses."""
        if self.count == 1 or device.type == "cpu":
            return model
        # BatchNorm sees the whole batch, so that its averages are the same everywhere.
        return nn.parallel.DistributedDataParallel(model, device_ids=[device], broadcast_buffers=False)

    def average_gradients(self, model: nn.Module, device: torch.device) -> None:
        """Average the gradients of all processes; on GPUs torch does so while gradients are still being made.

        Torch sorts its buckets anew after the first step, so that a run that goes on from a checkpoint would add in another
        order: on a CPU every bit is to be the same.
        """
        if self.count == 1 or device.type != "cpu":
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def broadcast_from_main(self, make: Callable[[], Value]) -> Value:
        """Return to all processes what the first one makes; where that fails, all end and the first one says why."""
        if self.count == 1:
            return make()
        sent: list[Any] = [0, None]
        if self.is_main:
            try:
                sent[1] = make()
            except UserError as error:
                dist.broadcast_object_list([error.exit_code, None])
                raise
        dist.broadcast_object_list(sent)
        if sent[0]:
            _end_quietly(sent[0])
        value: Value = sent[1]
        return value

    def broadcast(self, own: Value | None) -> Value:
        """Return to all processes what the first one passes; what the others pass is not looked at."""
        sent: list[Any] = [own]
        if self.count > 1:
            dist.broadcast_object_list(sent)
        value: Value = sent[0]
        return value

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process do a piece of work before the others, which find the files that it makes."""
        if not self.is_main:
            self.broadcast_from_main(lambda: None)
            yield
            return
        try:
            yield
        except UserError as error:
            if self.count > 1:
                dist.broadcast_object_list([error.exit_code, None])
            raise
        self.broadcast_from_main(lambda: None)

    def stop(self, error: UserError) -> NoReturn:
        """End all processes with an error that all of them know; the first one says it."""
        if self.is_main:
            raise error
        _end_quietly(error.exit_code)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)


@contextmanager
def ranks_of_job(device: str) -> Iterator[Ranks]:
    """Connect the processes that torchrun started, while the context lasts; a single one where it did not.

    Raises:
        ResourceError: If another process died.
        OptionError: If there are more processes than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    try:
        _connect(ranks, device)
        yield ranks
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise ResourceError(
            f"process {ranks.rank} lost another one of the {count}: it died, or its machine cannot be reached. What it said stands "
            "above, if anything. Run the same command again to go on from the last checkpoint."
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _connect(ranks: Ranks, device: str) -> None:
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if ranks.local_rank >= torch.cuda.device_count():
            raise OptionError(
                f"torchrun started more processes on this machine than its {torch.cuda.device_count()} GPUs. "
                "Lower --nproc-per-node, or add --device cpu."
            )
        torch.cuda.set_device(ranks.local_rank)
    # What is agreed on the host goes through gloo, so that nothing waits for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "cpu:gloo", timeout=_PATIENCE)


def _is_lost(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "Connection closed", "NCCL", "Connection reset")
    )


def _end_quietly(code: int) -> NoReturn:
    # torchrun ends every process as soon as one has ended, and the first one has something to say.
    time.sleep(_SPEAKS_FIRST)
    raise SystemExit(code)
