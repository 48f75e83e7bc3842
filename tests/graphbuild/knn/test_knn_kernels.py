"""The Triton kernels: run by Triton's interpreter on the CPU, and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graphbuild.knn.engines.gpu import triton_steps

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")
FOLDER = Path(__file__).parent


def run(script: str, **environment: str) -> str:
    # A process of its own: Triton decides when it is imported whether it interprets.
    path = os.pathsep.join(sys.path)
    found = subprocess.run(
        [sys.executable, "-W", "ignore", str(FOLDER / script)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_kernels_agree_with_numpy_and_the_engine_with_them_with_a_brute_force() -> None:
    assert len(run("kernels_interpreted.py", TRITON_INTERPRET="1").splitlines()) == 5


@pytest.mark.faults
def test_kernels_compile_without_spills_for_gpus_that_are_not_here() -> None:
    # Ampere and Hopper.
    lines = run("kernels_compiled.py").splitlines()
    assert {line.split()[0] for line in lines} == {"sm_80", "sm_90"}


def test_kernels_are_left_out_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton_steps.usable(torch.device("cpu"))
