"""Devices as users name them: which are there, and how much memory they have to give."""

from __future__ import annotations

import torch

from graphbuild.errors import ResourceError

_SHARE = 0.85
"""Of the free memory of a GPU: kernels, and the libraries' own scratch, take some."""


def open_device(name: str) -> torch.device:
    """Return a device by its name, set up for exact work.

    Raises:
        ResourceError: If it is a GPU, and there is none.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError(f"--device {name}: torch finds no GPU here. Use --device cpu.")
    # The error bound takes sums in float32 for granted.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    return device


def resolve_device(name: str) -> str:
    """Return the device of an option; `auto` is a GPU where there is one.

    Raises:
        ResourceError: If a GPU is asked for, and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(open_device(name))


def device_memory(device: torch.device, memory_limit: int) -> int:
    """Return the bytes to work with on a device; on the CPU, the limit."""
    if device.type == "cuda":
        # What an earlier search gave back is the allocator's, and to be had again.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + cached) * _SHARE)
    return memory_limit
