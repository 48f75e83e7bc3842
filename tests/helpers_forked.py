"""Programs in processes of their own that a test may watch, limit and kill: forks of a server that has imported everything once.

A fresh interpreter spends seconds of processor time on its imports, a fork milliseconds. A claim about imports, about the
environment that an interpreter starts with, or about a console script needs a fresh one.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).parent
_LOADED = "helpers_loaded"


@cache
def server() -> ForkServerContext:
    """The server's context; it starts at the first call, and loads `helpers_loaded`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_LOADED])
    with pytest.MonkeyPatch.context() as patch:
        # It does not take over this process's path before it loads.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        patch.setenv("HF_HUB_OFFLINE", "1")
        forkserver.ensure_running()
    return context


def fork(work: Callable[..., None], *arguments: Any, said: Path, cwd: Path | None = None, **environment: str) -> ForkServerProcess:
    """Start a function in a fork, which writes what it says to `said`.out and `said`.err; it has one thread for torch."""
    changed = {**os.environ, **environment}
    return server().Process(target=_enter, args=(work, arguments, str(said), str(cwd or Path.cwd()), changed))


def _enter(work: Callable[..., None], arguments: tuple[Any, ...], said: str, cwd: str, environment: dict[str, str]) -> None:
    assert _LOADED in sys.modules
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    work(*arguments)


def _execute(code: str, arguments: tuple[str, ...]) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})


@contextmanager
def running(code: str, *arguments: str | Path | int, said: Path, **options: Any) -> Iterator[ForkServerProcess]:
    """A program as `python -c` takes it, which is killed at the end of the block if it still runs."""
    process = fork(_execute, code, tuple(map(str, arguments)), said=said, **options)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_program(code: str, *arguments: str | Path | int, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program as `python -c` takes it: its exit code, negative where a signal ended it, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        with running(code, *arguments, said=said, **options) as process:
            process.join(timeout)
            exit_code = process.exitcode
        assert exit_code is not None, f"it still ran after {timeout} s"
        out, err = (Path(f"{said}.{name}").read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess([code, *map(str, arguments)], exit_code, out, err)


def run_module(name: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A module as `python -m` runs it."""
    return run_program(f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)", *arguments, **options)
