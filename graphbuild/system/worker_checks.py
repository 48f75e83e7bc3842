"""What every worker of a running cluster must find before it works: equal versions, the same folders, and what a task asks for.

Workers are reached by a client that is given; nothing here imports dask.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graphbuild.errors import ResourceError

_SHARED = "It must lie on a file system that all workers share, under the same absolute path."

Check = Callable[[], str | None]
"""Says what is wrong on a worker, in words that follow its name, or None; it travels there."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What every worker must find."""

    versions: dict[str, str]
    probe: str
    token: str
    """What the probe file holds."""
    shared: tuple[str, ...]
    check: Check | None


@contextmanager
def expectations(shared: Sequence[Path], check: Check | None) -> Iterator[Expected]:
    """Yield what every worker must find, with a probe in the first folder that lies there as long as the work goes on."""
    token = uuid.uuid4().hex
    probe = shared[0] / f".probe-{token}.tmp"
    try:
        probe.write_text(token, encoding="utf-8")
        yield Expected(versions(), str(probe), token, tuple(str(path) for path in shared), check)
    finally:
        for path in shared[0].glob(f".probe-{token}*.tmp"):
            path.unlink(missing_ok=True)


def check_workers(client: Any, scheduler: str, expected: Expected) -> None:
    """Check before work starts that every worker runs the same versions, may write to the same folders, and passes the check.

    Raises:
        ResourceError: Naming a worker, how many others are like it, and what to do.
    """
    found = client.run(inspect_worker, expected, on_error="return")
    answers = {address: _problem_of(answer) for address, answer in found.items()}
    if not answers:
        raise ResourceError(
            f"--scheduler {scheduler}: this cluster has no workers. Start some with `dask worker --nthreads 1 {scheduler}`."
        )
    problems = {address: problem for address, problem in answers.items() if problem}
    if problems:
        address, problem = next(iter(problems.items()))
        others = f" ({len(problems)} of {len(answers)} workers have a problem.)" if len(problems) > 1 else ""
        raise ResourceError(f"worker {address} {problem}{others}")


def _problem_of(answer: Any) -> str | None:
    """Say what is wrong with a worker, by what `inspect_worker` returned there; None if nothing is."""
    if isinstance(answer, Exception):
        # Most likely graphbuild itself is missing there, or what it needs.
        return f"cannot do this work ({type(answer).__name__}: {answer}). Install the same environment there as here."
    problem, written = answer
    return problem or (None if Path(written).exists() else f"writes {written}, which does not arrive here. {_SHARED}")


def inspect_worker(expected: Expected) -> tuple[str | None, str]:
    """Return what is wrong on a worker, in words that follow its name, and the file that it wrote; runs there."""
    written = expected.probe.removesuffix(".tmp") + f"-{uuid.uuid4().hex}.tmp"
    return _problem(expected, Path(written)), written


def _problem(expected: Expected, written: Path) -> str | None:
    found = versions()
    differing = [name for name, version in expected.versions.items() if found.get(name) != version]
    if differing:
        what = ", ".join(f"{name} {found.get(name)} (here {expected.versions[name]})" for name in differing)
        return f"runs {what}. Install the same on both."
    if missing := [path for path in expected.shared if not Path(path).exists()]:
        return f"does not see {missing[0]}. {_SHARED}"
    try:
        if Path(expected.probe).read_text(encoding="utf-8") != expected.token:
            return f"sees another {Path(expected.probe).parent}. {_SHARED}"
        written.touch()
    except FileNotFoundError:
        return f"sees another {Path(expected.probe).parent}. {_SHARED}"
    except OSError as error:
        return f"cannot write to {written.parent} ({error.strerror}). Let its user write there."
    return expected.check() if expected.check is not None else None


def versions() -> dict[str, str]:
    """Return the versions, in this process, of what decides the bytes."""
    packages = {package: _version(package) for package in ("torch", "sentence-transformers", "numpy", "pyarrow")}
    return {"graphbuild": version("xclr-graph"), "python": ".".join(platform.python_version_tuple()[:2]), **packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
