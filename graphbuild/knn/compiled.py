"""Where numba keeps what it compiles."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from graphbuild.store.cache import cache_folder, writable


def keep_compiled_kernels(package: Path) -> None:
    """Set numba's cache folder where it would find none, as in a read-only installation without HOME."""
    if "NUMBA_CACHE_DIR" not in os.environ and not writable(package):
        os.environ["NUMBA_CACHE_DIR"] = str(cache_folder("numba"))
        if "numba" in sys.modules:
            vars(sys.modules["numba"].config)["CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
