"""The Triton kernels: run by Triton's interpreter on the CPU, and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from graphbuild.knn.kernels import fused

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")

_SEARCH = """
import sys
import numpy as np
from graphbuild.knn.kernels import fused
from graphbuild.knn.engines.device import DeviceEngine
from graphbuild.store.files import shard_ranges
from helpers_graph import clustered_vectors

entered, redone = [], []
collect, original = fused.collect, DeviceEngine._enter

def counted(rows, columns, *rest):
    entered.append(len(rows) * len(columns))
    collect(rows, columns, *rest)

def tile(self, *rest):
    redone.append(1)
    original(self, *rest)

fused.collect, DeviceEngine._enter = counted, tile
vectors = clustered_vectors(150, 40)
vectors[20:70] = vectors[20]  # More twins than a row has room for.
engine = DeviceEngine(vectors, k=6, memory_limit=10**9, device="cpu")
assert engine._fused
(found,) = engine.search(shard_ranges(150, 150))
assert entered and redone, (entered, redone)
wide = vectors.astype(np.float64)
exact = wide @ wide.T
np.fill_diagonal(exact, -9)
for row in range(150):
    order = np.lexsort((np.arange(150), -exact[row]))[:6]
    rounded = exact[row][order].astype(np.float16)
    order = order[np.lexsort((order, -rounded.astype(float)))]
    assert (found.ids_nK[row] == order).all(), (row, found.ids_nK[row], order)
    assert (found.similarities_nK[row] == exact[row][order].astype(np.float16)).all()
"""

_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from graphbuild.knn.kernels import fused

pointers = {"rows_nD": "*fp16", "columns_TD": "*fp16", "limits_n": "*fp16", "counts_n": "*i64", "candidates_nW": "*i32",
            "scores_nW": "*fp16", "vectors_ND": "*fp16", "own_t": "*i64", "candidates_tW": "*i64", "exact_tW": "*fp64"}
sizes = {"ROWS": fused._ROWS, "COLUMNS": fused._COLUMNS, "DEPTH": fused._DEPTH, "BAND": fused._BAND,
         "CANDIDATES": fused._CANDIDATES}
for kernel in fused._kernels():
    constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {name: "constexpr" if name in sizes else pointers.get(name, "i32") for name in kernel.arg_names}
    made = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", 90, 32),
                          options={"num_warps": fused._WARPS})
    assert len(made.asm["cubin"]) > 1000
    assert made.metadata.shared < 227 * 1024
"""


def run(script: str, **environment: str) -> None:
    # A process of its own: Triton decides when it is imported whether it interprets.
    path = os.pathsep.join(sys.path)
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr


def test_the_engine_with_fused_kernels_matches_float64_brute_force() -> None:
    run(_SEARCH, TRITON_INTERPRET="1")


@pytest.mark.faults
def test_the_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    run(_COMPILE)


def test_kernels_are_left_out_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not fused.usable(torch.device("cpu"), 32)
