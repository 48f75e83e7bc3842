"""Processes that share work: whose it is, and how all of them end. What they do here is light, so that they start at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.exceptions import Exit

from graphbuild.errors import OptionError, ResourceError
from pipelines.study.jobs import claim, run_jobs
from train.run.signals import stop_signal


def test_a_run_that_another_process_is_at_is_passed_over(tmp_path: Path) -> None:
    run, other = tmp_path / "xclr/seed-0", tmp_path / "xclr/seed-1"
    with claim(run) as first, claim(run) as second, claim(other) as third:
        assert (first, second, third) == (True, False, True)
    with claim(run) as again:
        assert again


def test_jobs_end_with_the_error_of_the_one_that_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as stopped:
        run_jobs(partial(_fail_first, tmp_path / "first", tmp_path / "stopped"), 2)
    assert stopped.value.exit_code == 1
    assert capfd.readouterr().err == "error: this run cannot be made.\n"
    assert (tmp_path / "stopped").exists()


def _fail_first(mark: Path, stopped: Path) -> None:
    """Fail in the process that comes first, once the other one is there; the other one works on until it is stopped."""
    try:
        mark.mkdir()
    except FileExistsError:
        with stop_signal() as stop:
            (mark / "other").touch()
            _wait_until(lambda: stop() == signal.SIGTERM)
        stopped.touch()
        return
    _wait_until((mark / "other").exists)
    raise OptionError("this run cannot be made.")


def test_a_killed_job_is_told() -> None:
    with pytest.raises(ResourceError, match=r"a process of --jobs 2 was ended by SIGKILL"):
        run_jobs(_kill_this_process, 2)


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_jobs_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run_jobs(partial(_write_threads, tmp_path), 2)
    each = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [path.read_text() for path in tmp_path.iterdir()] == [f"{each} {each}"] * 2
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["NUMBA_NUM_THREADS"] == "7"


def _write_threads(folder: Path) -> None:
    (folder / str(os.getpid())).write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['NUMBA_NUM_THREADS']}")


@pytest.mark.slow
def test_jobs_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    code = (
        f"import test_study_jobs as t; from functools import partial; t.run_jobs(partial(t._sleep, t.Path({str(tmp_path)!r})), 2)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    _wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    process.kill()
    process.wait()
    # Each has written its number, and takes the mark away on its way out.
    _wait_until(lambda: not list(tmp_path.iterdir()))
    assert process.returncode == -signal.SIGKILL


def _sleep(folder: Path) -> None:
    mark = folder / str(os.getpid())
    mark.touch()
    with stop_signal() as stop:
        _wait_until(lambda: stop() == signal.SIGTERM)
    mark.unlink()


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
