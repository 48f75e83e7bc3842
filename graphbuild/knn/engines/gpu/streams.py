"""Streams and events of a GPU."""

from __future__ import annotations

import torch


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream of work beside the current one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def new_event(*, timing: bool = False) -> torch.cuda.Event:
    """Return a mark in a stream that can be waited for; with `timing`, the time between two can be asked for."""
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]
