"""How many worker processes embed fastest on this machine: measured for a second or two, before much work is begun.

Processes with few threads each beat one process with many where batches are small; how much depends on the cores and on
what else runs. Threads stand in for processes here, each with its share of torch's threads: that takes no start-up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

from graphbuild.embed.encoder import Encoder, load_encoder
from graphbuild.embed.encoder_files import EncoderSpec
from graphbuild.system.cores import available_cores

_START_SECONDS = 12.0
"""What starting worker processes and loading the encoder there takes, about."""
_PROBE_TEXTS = 256
_FEW_TEXTS = 20_000
"""Embedded before worker processes would have paid for their start, and the measuring for itself."""
_PER_GPU = 2
"""Worker processes that share a GPU: while one tokenises, the other encodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How texts are embedded on this machine."""

    count: int
    """Worker processes; 0 is this one."""
    gpus: int = 0
    """GPUs that they share out."""
    rates: dict[int, float] = field(default_factory=dict)
    """Texts a second that were measured, by the number of workers; empty where there was nothing to choose."""

    def summary(self) -> str:
        """Return the choice, and what it rests on, in a line."""
        measured = ", ".join(f"{rate:,.0f}/s with {count}" for count, rate in self.rates.items())
        return f"embedding: {self.count or 'no'} worker processes (measured: {measured})"


def choose_workers(spec: EncoderSpec, probe: Sequence[str], *, left: int, tasks: int) -> Choice:
    """Return the number of worker processes that is done first, their start included.

    Args:
        spec: The encoder.
        probe: Some of the texts that are left.
        left: How many are left.
        tasks: In how many shards; more workers than that cannot help.
    """
    if tasks < 2 or left < _FEW_TEXTS or spec.folder is None:
        return Choice(count=0)
    import torch

    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        return Choice(count=min(tasks, _PER_GPU * gpus), gpus=gpus)
    cores = available_cores()
    rates = measure(load_encoder(spec), probe, [count for count in _powers(cores) if count <= tasks], cores)
    return Choice(count=fastest(rates, left), rates=rates)


def fastest(rates: dict[int, float], left: int) -> int:
    """Return the number of workers that finish so many texts first; 0 where one process does, because it is running already."""
    seconds = {count: left / rate + (_START_SECONDS if count > 1 else 0) for count, rate in rates.items()}
    best = min(seconds, key=lambda count: (seconds[count], count))
    return 0 if best == 1 else best


def measure(encoder: Encoder, probe: Sequence[str], counts: Sequence[int], cores: int) -> dict[int, float]:
    """Measure texts a second, by the number of workers that encode side by side, each with its share of the threads."""
    import torch

    threads = torch.get_num_threads()
    tokens, _ = encoder.tokenize((list(probe) * -(-_PROBE_TEXTS // len(probe)))[:_PROBE_TEXTS])
    encoder.encode(tokens)

    def work(start: Barrier, share: int) -> float:
        torch.set_num_threads(share)
        start.wait()
        began = time.monotonic()
        encoder.encode(tokens)
        return time.monotonic() - began

    rates = {}
    try:
        for count in counts:
            start = Barrier(count)
            with ThreadPoolExecutor(count) as pool:
                futures = [pool.submit(work, start, max(1, cores // count)) for _ in range(count)]
                rates[count] = count * len(tokens) / max(future.result() for future in futures)
    finally:
        torch.set_num_threads(threads)
    return rates


def _powers(cores: int) -> list[int]:
    return [1 << exponent for exponent in range(cores.bit_length()) if 1 << exponent <= cores]
