"""Memory that is freed and taken again costs no page faults after `keep_freed_memory`."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from graphbuild.system.allocator import keep_freed_memory
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.ones(1 << 26, np.uint8)
before = faults()
for _ in range(4):
    np.ones(1 << 26, np.uint8)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def faults(way: str) -> int:
        done = subprocess.run([sys.executable, "-c", _PROGRAM, way], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # 64 MiB four times: in pages of 4 KiB 65,536, in huge pages 128.
    given_back, kept = faults("give-back"), faults("keep")
    assert given_back >= 4 * 32
    assert kept < given_back / 4
