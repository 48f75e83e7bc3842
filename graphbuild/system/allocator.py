"""What the C library does with memory that tensors leave: kept for the next ones, where a process computes on the CPU.

glibc gives blocks above 32 MB back to the system each time, and large free space at the end of its heap, too. An encoder's
activations are such blocks, several a layer: the system clears their pages anew for each of them, which took a sixth of a
training step and of embedding here (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to 2 GiB at the end of its heap, until it ends.

    Returns:
        Whether it does: only where the C library is glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has none; elsewhere nothing changes.
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
