"""Pairs of commands on one small graph, both forks of one interpreter, the second begun after a random while.

Run as `python faults_pairs.py FOLDER FIRST_SEED COUNT`. Prints a line of JSON for every pair. A pair is right if each command
either finishes or says in a line that the other one is in its way; if a command that did not finish does so when it is run alone
afterwards; and if `verify` then finds the graph whole, with the samples of every append in it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults_commands import APPENDED, CAPTIONS
from faults_server import Bench, build, fork

from graphbuild.errors import UserError
from graphbuild.exchange.subset import SubsetConfig, subset_graph
from graphbuild.quality.verify import verify_graph
from graphbuild.store.digests import digest_file
from graphbuild.store.locks import LockedError
from graphbuild.store.manifest import Manifest

PAIRS = {"knn": ("append", "partition", "renew", "subset"), "import": ("reimport", "partition")}
"""What is done at once, by what the graph is: one that was built, and one that was imported."""
DONE, REFUSED, OVERTAKEN = 0, 3, 4
"""Exit codes: by the lock of the other command; by a line that says that the graph is being changed, or was."""
_APART = 0.15
"""Most seconds between the beginnings of two commands, each of which takes about so long."""


def begin(work: Callable[[], Any]) -> int:
    """Do something in a fork: one of the exit codes above, or 1."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except LockedError:
            code = REFUSED
        except UserError as error:
            code = OVERTAKEN
            sys.stderr.write(f"{error}\n")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """The exit code of a fork."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def do(graph_dir: Path, command: str) -> None:
    """One command; `subset` writes a graph of its own beside the one that it reads."""
    if command == "subset":
        keep = graph_dir.parent / "keep.txt"
        subset_graph(graph_dir, graph_dir.parent / "part", SubsetConfig(keep=keep, overwrite=True))
    else:
        build(graph_dir, command)


def look(graph_dir: Path, commands: Sequence[str]) -> None:
    """Raise where a graph is not whole, or lacks what a command brought."""
    verify_graph(graph_dir)
    if "reimport" in commands:
        whole = graph_dir.parent / "whole-reimport"
        for path in (whole / "knn").iterdir():
            if digest_file(path) != digest_file(graph_dir / "knn" / path.name):
                raise UserError(f"{path.name}: not the neighbours that were imported")
        return
    expected = CAPTIONS + (APPENDED if "append" in commands else 0)
    if "embed" in Manifest.load(graph_dir).stages:
        _expect(graph_dir, expected)
    if "subset" in commands:
        verify_graph(graph_dir.parent / "part")
        _expect(graph_dir.parent / "part", CAPTIONS // 2)


def _expect(graph_dir: Path, samples: int) -> None:
    found = Manifest.load(graph_dir).counts["samples"]
    if found != samples:
        raise UserError(f"{graph_dir.name}: {found} samples, not {samples}")


def trial(folder: Path, seed: int) -> dict[str, Any]:
    """Begin two commands, and look at what they leave."""
    rng = random.Random(seed)
    kind = rng.choice(["knn", "knn", "knn", "import"])
    commands, pause = [rng.choice(PAIRS[kind]) for _ in range(2)], rng.uniform(0, _APART)
    graph_dir = folder / "graph"
    for path in (graph_dir, folder / "part"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder / f"whole-{kind}", graph_dir)
    pids = [begin(lambda: do(graph_dir, commands[0]))]
    time.sleep(pause)
    pids.append(begin(lambda: do(graph_dir, commands[1])))
    codes = [ended(pid) for pid in pids]
    names = {DONE: "finished", REFUSED: "refused", OVERTAKEN: "overtaken"}
    return {
        "seed": seed,
        "commands": commands,
        "pause": round(pause, 3),
        "ends": [f"{command} {names.get(code, code)}" for command, code in zip(commands, codes, strict=True)],
        "problem": _problem(graph_dir, commands, codes),
    }


def _problem(graph_dir: Path, commands: Sequence[str], codes: Sequence[int]) -> str | None:
    """What is wrong with how two commands ended, and with what they left."""
    if set(codes) - {DONE, REFUSED, OVERTAKEN}:
        return f"exits {codes}"
    # Neighbours that are older than the captions are for knn to renew, as it says.
    later = ["renew"] if "append" in commands else []
    later += [command for command, code in zip(commands, codes, strict=True) if code != DONE]
    for command in later:
        if code := fork(lambda command=command: do(graph_dir, command)):  # type: ignore[misc]
            return f"{command} exits {code} when it is run alone afterwards"
    code = fork(lambda: look(graph_dir, commands))
    return f"what they left is refused, exit {code}" if code else None


def main() -> None:
    """Run pairs of consecutive seeds."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    Bench(folder, ("embed", "knn", "import", "reimport"))
    for seed in range(first, first + count):
        sys.stdout.write(json.dumps(trial(folder, seed)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
