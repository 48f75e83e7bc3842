"""Compiles the Triton kernels for GPUs that are not here: `python kernels_compiled.py` prints registers and spills of each.

A process of its own, for Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from graphbuild.knn.engines.gpu import triton_steps as steps
from graphbuild.knn.kernels import filter as filters
from graphbuild.knn.kernels import ranking

POINTERS = {
    "scores_RC": "*fp16", "limits_n": "*fp16", "counts_n": "*i32", "ids_nW": "*i32", "scores_nW": "*fp16",
    "row_positions_R": "*i32", "column_positions_C": "*i32",
    "codes_tM": "*i16", "limits_t": "*i16", "codes_nW": "*i16", "spilled_n": "*i8", "lowered": "*i16",
    "vectors_ND": "*fp16", "own_t": "*i32", "counts_t": "*i32", "ids_tW": "*i32", "exact_tW": "*fp64", "keys_tW": "*i64",
    "texts_N": "*i32", "texts_tK": "*i32", "bits_tK": "*i16", "kth_t": "*fp64",
}  # fmt: skip
ALIGNED = {"C", "D", "W", "M", "stride", "top", "at"}
"""Sizes that are multiples of 16 in a search of many texts, and known to be so at a launch."""
TILE = {"ROWS": steps.ROWS, "CHUNK": steps.CHUNK, "PART": steps.PART}
CODES = {"limits_n": "*i16"}
KERNELS: list[tuple[Any, dict[str, Any], dict[str, str], int]] = [
    (filters.filter_tile, TILE | {"BOTH": True}, {}, 1),
    (filters.filter_tile, TILE | {"BOTH": False}, {}, 1),
    (filters.seed_limits, {"SIZE": 16384}, {}, steps._warps(16384, 2048)),
    (filters.raise_limits, {"BY_RANK": True, "SIZE": 1024}, CODES, steps._warps(1024, 256)),
    (filters.raise_limits, {"BY_RANK": False, "SIZE": 1024}, CODES, steps._warps(1024, 256)),
    (filters.raise_limits, {"BY_RANK": False, "SIZE": steps._MOST}, CODES, steps._warps(steps._MOST, 256)),
    (ranking.exact_products, {"BLOCK": steps._EXACT_BLOCK, "DEPTH": steps._EXACT_DEPTH}, {}, 4),
    (ranking.best_rows, {"SIZE": 1024, "BEST": 256}, CODES, steps._warps(1024, 256, 8)),
    (ranking.best_rows, {"SIZE": steps._MOST, "BEST": 2048}, CODES, steps._warps(steps._MOST, 256, 8)),
]
"""Kernel, constants, kinds of pointers that differ, and warps, as `TritonSteps` launches them at k = 256 and at the widest."""


def compiled(kernel: Any, constants: dict[str, Any], kinds: dict[str, str], warps: int, target: int) -> Any:
    pointers = POINTERS | kinds
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    attributes = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(kernel.arg_names)
        if name in ALIGNED or signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of stack a thread, which are spills."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as stream:
        stream.write(cubin)
        stream.flush()
        shown = subprocess.run([tool, "-res-usage", stream.name], capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"{name}:(\d+)", shown)[1]) for name in ("REG", "STACK")}  # type: ignore[index]


def main() -> None:
    for target in (80, 90):
        for kernel, constants, kinds, warps in KERNELS:
            made = compiled(kernel, constants, kinds, warps, target)
            used = resources(made.asm["cubin"])
            name = kernel.__name__
            shown = " ".join(f"{key} {value}" for key, value in constants.items())
            line = f"sm_{target} {name} {shown}: {used['REG']} registers, {used['STACK']} B spilled, "
            line += f"{made.metadata.shared} B shared, {warps} warps"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
            assert used["STACK"] == 0, line
            assert made.metadata.shared < 160 * 1024, line


if __name__ == "__main__":
    main()
