"""Processor cores: how many this process may use, and the share of each of several processes."""

from __future__ import annotations

import os


def thread_shares(count: int) -> dict[str, str]:
    """Return the environment by which each of several processes starts its share of threads, whichever library does."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(max(1, available_cores() // count)))


def available_cores() -> int:
    """Return the number of cores that this process may use, fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) else cores
