"""Commands on small graphs that are struck, many in one interpreter: it imports once, and every command is a fork.

Run as `python faults_server.py FOLDER random FIRST_SEED COUNT`, or `... FOLDER enumerate POINTS [COMMAND...]`: then every
command of `faults_commands`, or those that are named, is killed, and fails, right before so many of its file-changing calls,
spread by a fixed seed (0: before each of them). Prints a line of JSON for every trial: a command is struck, and the same call is
made again, undisturbed. Nothing here starts a thread in the parent, for a fork with threads is none.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss  # noqa: F401 - imported for the forks
import numpy as np
import pyarrow as pa
from faults_commands import COMMANDS, mend, needed, write_inputs
from helpers_graph import receipt_of, to_old_layout
from PIL import Image

from graphbuild.embed.text.keys import KeyTable
from graphbuild.errors import UserError, describe_os_error
from graphbuild.store.digests import digest_file
from graphbuild.store.files import damage

STAGES = ("embed", "knn", "append", "extend")
"""What is struck at random. Each begins where the one before it ended: `append` adds captions to a graph with neighbours, `extend`
searches for theirs."""
FAULTS = ("kill", "kill", "kill", "timed kill", "full disk", "removed", "flipped")
"""Drawn from; kills at a step of the work are the most telling, for they can be repeated."""
_VOLATILE = ("seconds", "pids", "pid", "reused_shards", "generation", "position_digest", "written")
_LOGS = ("lock", "verified", "metrics.jsonl", "events.jsonl", "out.log")
"""Files whose names begin so tell what happened, and when."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One build that was struck, and what became of it."""

    seed: int
    stage: str
    fault: str
    where: str
    struck: bool
    """Whether it hit the work at all: a timed kill may come too late."""
    problem: str | None
    """None where the next run did only what was missing, finished, and left the same bytes."""


def build(graph_dir: Path, stage: str) -> None:
    """The work of a command; what it reads must be there."""
    COMMANDS[stage].do(graph_dir)


def fork(work: Callable[[], None], *, meanwhile: Callable[[int], None] = lambda _: None) -> int:
    """Do something in a forked process: its exit code, negative where a signal ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # What commands print is none of our lines.
            os.dup2(2, 1)
            work()
            code = 0
        except (UserError, OSError) as error:
            sys.stderr.write(f"{describe_os_error(error) if isinstance(error, OSError) else error}\n")
        except BaseException:
            traceback.print_exc()
            code = 70
        finally:
            sys.stderr.flush()
            os._exit(code)
    meanwhile(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_steps(graph_dir: Path, stage: str, out: Path) -> None:
    """Build, and write down how many steps on files of the graph it took, and the seconds."""
    steps, started = 0, time.monotonic()

    def step() -> None:
        nonlocal steps
        steps += 1

    _watch(graph_dir, step)
    build(graph_dir, stage)
    # Before the file of the answer is opened.
    counted = steps
    out.write_text(json.dumps({"steps": counted, "seconds": time.monotonic() - started}))


def struck_at(graph_dir: Path, stage: str, last: int, fault: str = "kill") -> None:
    """Build, and be killed, or have the system fail, right before a step."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == last and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if steps == last:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    _watch(graph_dir, step)
    build(graph_dir, stage)


def keep_states(graph_dir: Path, stage: str, at: Sequence[int], into: Path) -> None:
    """Build, and copy what lies on the disk right before some steps: what a process would leave that is killed there.

    One run is enough for all of them, and what a killed process has not handed to the system is in no copy either.
    """
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps in at:
            (into / str(steps)).mkdir(parents=True)
            if graph_dir.exists():
                shutil.copytree(graph_dir, into / str(steps) / graph_dir.name, symlinks=True)

    _watch(graph_dir, step)
    build(graph_dir, stage)


def _watch(graph_dir: Path, step: Callable[[], None]) -> None:
    """Call `step` before each call that changes a file or folder of the graph directory, as far as Python makes them."""
    root = str(graph_dir)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        if event == "open" and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if str(arguments[0]).startswith(root):
            step()

    sys.addaudithook(hook)


def limited(graph_dir: Path, stage: str, size: int) -> None:
    """Build where no file can grow beyond a size, which fails as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    build(graph_dir, stage)


def _prepare_for_forks(commands: Sequence[str]) -> None:
    """Do once what every fork would do anew."""
    importlib.import_module("pyarrow.dataset")
    for command in (COMMANDS[name] for name in commands):
        for module in command.loads:
            importlib.import_module(module)
        if command.warm is not None:
            command.warm()
    Image.init()
    # The first kernel that is called makes numba load most of itself, and the first list that pyarrow takes makes it load pandas.
    KeyTable().number(np.zeros((1, 2), np.uint64))
    pa.array(["a"]).to_pylist()
    # What is there now is not looked through, and so not copied, in every fork.
    gc.freeze()


class Bench:
    """What trials share: a finished graph of each stage, and what building it took."""

    def __init__(self, folder: Path, commands: Sequence[str]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        assert fork(lambda: write_inputs(folder)) == 0
        for write in [network for name in commands if (network := COMMANDS[name].network)]:
            assert fork(lambda write=write: (write(folder), None)[1]) == 0  # type: ignore[misc]
        _prepare_for_forks(commands)
        self._took: dict[str, dict[str, float]] = {}
        self._whole: dict[str, Path] = {}
        for stage in commands:
            graph_dir = self._begin(stage)
            assert fork(lambda stage=stage, at=graph_dir: count_steps(at, stage, folder / "took.json")) == 0  # type: ignore[misc]
            self._took[stage] = json.loads((folder / "took.json").read_text())
            self._whole[stage] = graph_dir.rename(folder / f"whole-{stage}")

    def _begin(self, stage: str) -> Path:
        """The graph directory as a command finds it. One path for all, for manifests record where things are."""
        graph_dir = self._folder / "graph"
        shutil.rmtree(graph_dir, ignore_errors=True)
        if COMMANDS[stage].begins == "nothing":
            return graph_dir
        shutil.copytree(self._whole[COMMANDS[stage].begins], graph_dir)
        if stage == "adopt":
            to_old_layout(graph_dir)
        return graph_dir

    def enumerate(self, points: int, commands: Sequence[str]) -> Iterator[Trial]:
        """Strike commands right before their file-changing calls: so many of them, or all where 0."""
        for stage in commands:
            steps = range(1, int(self._took[stage]["steps"]) + 1)
            # Where only some points are tried, the faults take turns.
            some = sorted(random.Random(stage).sample(steps, min(points, len(steps))))
            yield from self._killed(stage, some[::2] if points else steps)
            yield from (self._failed(stage, last) for last in (some[1::2] if points else steps))

    def _killed(self, stage: str, at: Sequence[int]) -> Iterator[Trial]:
        graph_dir, states = self._begin(stage), self._folder / "states"
        assert fork(lambda: keep_states(graph_dir, stage, at, states)) == 0
        for last in at:
            # Files that changed a moment ago are not remembered as verified, so that one run may make fewer calls than another.
            if not (states / str(last)).exists():
                continue
            shutil.rmtree(graph_dir, ignore_errors=True)
            if (states / str(last) / graph_dir.name).exists():
                (states / str(last) / graph_dir.name).rename(graph_dir)
            yield self._told(stage, last, "kill", True, self._rebuilt(graph_dir, stage, False))
        shutil.rmtree(states, ignore_errors=True)

    def _failed(self, stage: str, last: int) -> Trial:
        graph_dir = self._begin(stage)
        code = fork(lambda: struck_at(graph_dir, stage, last, "fail"))
        problem = self._rebuilt(graph_dir, stage, False) if code in (0, 1) else f"struck, it exits {code}"
        return self._told(stage, last, "fail", code != 0, problem)

    def _told(self, stage: str, last: int, fault: str, struck: bool, problem: str | None) -> Trial:
        where = f"call {last} of {self._took[stage]['steps']:.0f}"
        return Trial(seed=last, stage=stage, fault=fault, where=where, struck=struck, problem=problem)

    def trial(self, seed: int) -> Trial:
        """Strike a build, then build again."""
        rng = random.Random(seed)
        stage, fault = rng.choice(STAGES), rng.choice(FAULTS)
        graph_dir = self._begin(stage)
        begun = fault in ("removed", "flipped")
        if begun:
            shutil.rmtree(graph_dir, ignore_errors=True)
            shutil.copytree(self._whole[stage], graph_dir)
        where, struck = self._strike(rng, graph_dir, stage, fault)
        return Trial(
            seed=seed, stage=stage, fault=fault, where=where, struck=struck, problem=self._rebuilt(graph_dir, stage, begun)
        )

    def _strike(self, rng: random.Random, graph_dir: Path, stage: str, fault: str) -> tuple[str, bool]:
        if fault == "kill":
            last = rng.randint(1, int(self._took[stage]["steps"]))
            code = fork(lambda: struck_at(graph_dir, stage, last))
            return f"step {last} of {self._took[stage]['steps']:.0f}", code == -signal.SIGKILL
        if fault == "timed kill":
            delay = rng.uniform(0, self._took[stage]["seconds"])
            code = fork(lambda: build(graph_dir, stage), meanwhile=lambda pid: (time.sleep(delay), os.kill(pid, signal.SIGKILL))[1])
            return f"after {delay:.3f} s", code == -signal.SIGKILL
        if fault == "full disk":
            sizes = [path.stat().st_size for path in self._whole[stage].rglob("*") if path.is_file()]
            size = rng.randint(1, max(sizes) - 1)
            code = fork(lambda: limited(graph_dir, stage, size))
            assert code in (0, 1), f"seed: a full disk must be told in a line, not exit {code}"
            return f"files of {size} bytes", code == 1
        return _harm(rng, graph_dir, stage, fault), True

    def _rebuilt(self, graph_dir: Path, stage: str, harmed: bool) -> str | None:
        """Build again; what is wrong with the outcome."""
        whole = _content(self._whole[stage])
        # Counts are made again by every append, and older neighbours where they change.
        shards = (path for path in _finished(graph_dir) if path.parent.name != "counts")
        # Not what is the same by chance, as the texts of another import.
        shards = (path for path in shards if _key(path) == _key(self._whole[stage] / path.relative_to(graph_dir)))
        same = (path for path in shards if whole.get(path.relative_to(graph_dir).as_posix()) == digest_file(path))
        kept = {path: path.stat().st_mtime_ns for path in same}
        work = mend if harmed and stage == "append" else COMMANDS[stage].do
        if code := fork(lambda: work(graph_dir)):
            return f"the next run exits {code}"
        if redone := [path.relative_to(graph_dir).as_posix() for path, stamp in kept.items() if path.stat().st_mtime_ns != stamp]:
            return f"finished files were made again: {', '.join(redone)}"
        found = _content(graph_dir)
        if differing := [name for name in sorted({*whole, *found}) if whole.get(name) != found.get(name)]:
            return f"other content: {', '.join(differing)}"
        return None


def _harm(rng: random.Random, graph_dir: Path, stage: str, fault: str) -> str:
    """Remove a file that the stage made, or flip one of its bits."""
    folders = ("texts", "counts", "samples", "embeddings", ".") if stage in ("embed", "append") else ("knn",)
    # Not the receipts: of what is finished, the manifest holds a copy.
    found = (path for folder in folders for path in (graph_dir / folder).glob("*.*") if path.suffix != ".json")
    path = rng.choice(sorted(path for path in found if path.is_file()))
    if fault == "removed":
        path.unlink()
        return path.relative_to(graph_dir).as_posix()
    content = bytearray(path.read_bytes())
    position, bit = rng.randrange(len(content)), rng.randrange(8)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.relative_to(graph_dir).as_posix()}, bit {bit} of byte {position}"


def _finished(graph_dir: Path) -> list[Path]:
    """Shards that are there, whole, with their receipt."""
    shards = (path for path in graph_dir.glob("*/part-*") if path.suffix != ".json")
    return [path for path in shards if (receipt := receipt_of(path)) is not None and not damage(graph_dir, receipt)]


def _key(path: Path) -> str | None:
    receipt = receipt_of(path)
    return receipt.key if receipt else None


def _content(graph_dir: Path) -> dict[str, Any]:
    """All that must be the same: digests, or for JSON the values that are no times or processes."""
    # The index of shards has a key of their times.
    found = (path for path in graph_dir.rglob("*") if path.is_file() and ".xclr-index" not in path.parts)
    files = [path for path in found if not path.name.removeprefix(".").startswith(_LOGS)]
    return {
        path.relative_to(graph_dir).as_posix(): _stable(json.loads(path.read_text()))
        if path.suffix == ".json"
        else digest_file(path)
        for path in files
    }


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        # The digests that manifests and receipts have of themselves cover their times, too.
        left_out = (*_VOLATILE, "digest") if "generation" in value else (*_VOLATILE, "own_digest")
        return {name: _stable(item) for name, item in value.items() if name not in left_out}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Run trials of consecutive seeds, or of one call after another."""
    folder, how, number, *more = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
    if how == "random":
        trials = map(Bench(folder, STAGES).trial, range(number, number + int(more[0])))
    else:
        trials = Bench(folder, needed(tuple(more) or tuple(COMMANDS))).enumerate(number, more or tuple(COMMANDS))
    for trial in trials:
        sys.stdout.write(json.dumps(asdict(trial)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
