"""Commands on small graphs that are struck, many in one interpreter: it imports once, and every command is a fork.

Run as `python faults_server.py FOLDER random FIRST_SEED COUNT`, or `... FOLDER enumerate POINTS [COMMAND...]`: then every
command, or those that are named, is killed, and fails, right before so many of its file-changing calls, evenly spread (0: before
each of them). Prints a line of JSON for every trial: a command is struck, and the same call is made again, undisturbed. Nothing
here starts a thread in the parent, for a fork with threads is none.
"""

from __future__ import annotations

import errno
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
import torch
from helpers_embed import embed, numbered_captions, write_captions
from helpers_graph import receipt_of, to_old_layout
from helpers_train import CLASSES, draw, encode, tiny_config

from graphbuild.embed.text.keys import KeyTable
from graphbuild.errors import UserError, describe_os_error
from graphbuild.exchange.export import export_edges
from graphbuild.exchange.fused import fuse_graphs
from graphbuild.exchange.fusion import FuseConfig
from graphbuild.exchange.imported import ImportConfig, import_graph
from graphbuild.exchange.subset import SubsetConfig, subset_graph
from graphbuild.knn import stage as _knn_stage  # noqa: F401
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.digests import digest_file
from graphbuild.store.files import damage
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import build_partition
from train.data.reshard import reshard
from train.evaluate.options import EvalOptions
from train.evaluate.run import evaluate_run
from train.results.export import export_run
from train.run.loop import train

CAPTIONS, SHARD = 36, 9
SOURCES = ("captions.parquet", "more.parquet")
APPENDED = 12
STAGES = ("embed", "knn", "append", "extend")
"""Each begins where the one before it ended: `append` adds captions to a graph with neighbours, `extend` searches for theirs."""
COMMANDS = {
    "embed": "nothing",
    "knn": "embed",
    "append": "knn",
    "extend": "append",
    "partition": "knn",
    "replace": "knn",
    "renew": "knn",
    "scenes": "nothing",
    "import": "nothing",
    "reimport": "import",
    "subset": "nothing",
    "adopt": "knn",
    "fuse": "nothing",
    "edges": "knn",
    "train": "nothing",
    "retrain": "train",
    "score": "train",
    "card": "train",
    "reshard": "nothing",
}
"""What is enumerated, and what each command begins with. `replace` and `renew` overwrite texts and neighbours by other options,
`adopt` continues a graph of the old layout; `edges` and `card` export, and `retrain` overwrites a finished run."""
READ = {"subset": "embed", "fuse": "knn", "train": "knn", "reshard": "partition"}
"""What else commands read, beside what they begin with."""
FATES = ("kill", "fail")
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
    """The work of a stage; what it reads must be there."""
    captions, more = (graph_dir.parent / name for name in SOURCES)
    if stage == "embed":
        embed(graph_dir, captions, shard_size=SHARD)
    elif stage in ("append", "mend"):
        # What is lost of a graph that was appended to is built again from all sources, without --append.
        embed(graph_dir, None, sources=(str(captions), str(more)), shard_size=SHARD, append=stage == "append")
    elif stage in ("knn", "extend"):
        build_knn(graph_dir, KnnConfig(k=10, device="cpu"))
    else:
        OTHERS[stage](graph_dir)


def _import(graph_dir: Path, edges: str, *, overwrite: bool) -> None:
    folder = graph_dir.parent
    import_graph(
        graph_dir,
        ImportConfig(texts=folder / "nodes.csv", edges=folder / edges, shard_size=3, overwrite=overwrite),
    )


def _subset(graph_dir: Path) -> None:
    subset_graph(graph_dir.parent / "whole-embed", graph_dir, SubsetConfig(keep=graph_dir.parent / "keep.txt"))


def _run(graph_dir: Path, *, seed: int = 0, overwrite: bool = False) -> None:
    """Train for a few steps on pictures that have the ids of the captions."""
    folder = graph_dir.parent
    torch.set_num_threads(1)
    config = tiny_config(
        objective="xclr",
        graph_dir=str(folder / "whole-knn"),
        data=str(folder / "pictures" / SOURCES[0]),
        id_column=None,
        epochs=1,
        steps=4,
        checkpoint_every=2,
        kl_every=0,
        workers=1,
        seed=seed,
    )
    train(config, graph_dir, overwrite=overwrite)


def _score(run_dir: Path) -> None:
    torch.set_num_threads(1)
    options = EvalOptions(
        data=str(run_dir.parent / "held-out.parquet"), label_columns=("label",), protocols=("knn",), untrained=False, device="cpu"
    )
    evaluate_run(run_dir, options)


def _reshard(out: Path) -> None:
    pictures = str(out.parent / "pictures" / SOURCES[0])
    reshard(tiny_config(graph_dir=str(out.parent / "whole-partition"), data=pictures, id_column=None, chunk=4), out, shard_size=9)


def _fuse(graph_dir: Path) -> None:
    folder = graph_dir.parent
    fuse_graphs([folder / "whole-embed", folder / "whole-knn"], graph_dir, FuseConfig(weights=(0.5, 0.5)))


OTHERS: dict[str, Callable[[Path], object]] = {
    "partition": lambda at: build_partition(at, PartitionConfig(chunk=4)),
    "replace": lambda at: embed(at, at.parent / SOURCES[0], shard_size=2 * SHARD, overwrite=True),
    "renew": lambda at: build_knn(at, KnnConfig(k=6, device="cpu", overwrite=True)),
    "scenes": lambda at: embed(at, "train=30,val=10,side=16", "scenes"),
    "import": lambda at: _import(at, "edges.csv", overwrite=False),
    "reimport": lambda at: _import(at, "other.csv", overwrite=True),
    "subset": _subset,
    "adopt": lambda at: build_knn(at, KnnConfig(k=10, device="cpu")),
    "fuse": _fuse,
    "edges": lambda at: export_edges(at, at / "export/edges.parquet"),
    "train": _run,
    "retrain": lambda at: _run(at, seed=1, overwrite=True),
    "score": _score,
    "card": lambda at: export_run(at, at / "export"),
    "reshard": _reshard,
}


def fork(work: Callable[[], None], *, meanwhile: Callable[[int], None] = lambda _: None) -> int:
    """Do something in a forked process: its exit code, negative where a signal ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
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


def _write_pictures(folder: Path) -> None:
    for path, seed in ((folder / "pictures" / SOURCES[0], 0), (folder / "held-out.parquet", CAPTIONS)):
        path.parent.mkdir(exist_ok=True)
        pictures = [encode(draw(seed + number)) for number in range(CAPTIONS)]
        write_captions(path, {"image": pictures, "label": [number % CLASSES for number in range(CAPTIONS)]})


class Bench:
    """What trials share: a finished graph of each stage, and what building it took."""

    def __init__(self, folder: Path, commands: Sequence[str]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # The first kernel that is called makes numba load most of itself, here once for all forks.
        KeyTable().number(np.zeros((1, 2), np.uint64))
        texts = numbered_captions(CAPTIONS + APPENDED)
        for name, some in zip(SOURCES, (texts[:CAPTIONS], texts[CAPTIONS:]), strict=True):
            assert fork(lambda at=folder / name, some=some: (write_captions(at, {"caption": some}), None)[1]) == 0  # type: ignore[misc]
        (folder / "nodes.csv").write_text("id,text\n" + "".join(f"n{i},node {i}\n" for i in range(7)))
        for name, step in (("edges.csv", 1), ("other.csv", 2)):
            rows = [f"n{i},n{(i + j * step) % 7},{0.9 - 0.1 * j:.1f}\n" for i in range(7) for j in (1, 2)]
            (folder / name).write_text("src,dst,similarity\n" + "".join(rows))
        assert fork(lambda: (_write_pictures(folder), None)[1]) == 0
        (folder / "keep.txt").write_text("".join(f"{SOURCES[0]}:{row}\n" for row in range(0, CAPTIONS, 2)))
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
        if COMMANDS[stage] == "nothing":
            return graph_dir
        shutil.copytree(self._whole[COMMANDS[stage]], graph_dir)
        if stage == "adopt":
            to_old_layout(graph_dir)
        return graph_dir

    def enumerate(self, points: int, commands: Sequence[str]) -> Iterator[Trial]:
        """Strike commands right before their file-changing calls: so many of them, or all where 0."""
        for stage in commands:
            steps = int(self._took[stage]["steps"])
            spread = sorted({1 + i * (steps - 1) // max(1, points - 1) for i in range(points)})
            for place, last in enumerate(spread or range(1, steps + 1)):
                # Where only some points are tried, the faults take turns.
                yield from (self._strike_at(stage, last, fault) for fault in (FATES if not points else FATES[place % 2 :][:1]))

    def _strike_at(self, stage: str, last: int, fault: str) -> Trial:
        graph_dir = self._begin(stage)
        code = fork(lambda: struck_at(graph_dir, stage, last, fault))
        expected = code in (-signal.SIGKILL, 0, 1)
        problem = self._rebuilt(graph_dir, stage, False) if expected else f"struck, it exits {code}"
        where = f"call {last} of {self._took[stage]['steps']:.0f}"
        return Trial(seed=last, stage=stage, fault=fault, where=where, struck=code != 0, problem=problem)

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
        again = "mend" if harmed and stage == "append" else stage
        if code := fork(lambda: build(graph_dir, again)):
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
        # The manifest's digest of itself covers its times, too.
        left_out = (*_VOLATILE, "digest") if "generation" in value else _VOLATILE
        return {name: _stable(item) for name, item in value.items() if name not in left_out}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def _needed(commands: Sequence[str]) -> tuple[str, ...]:
    """Some commands with all that they begin with and read, in the order in which they are built."""
    found, left = set(), list(commands)
    while left:
        found.add(name := left.pop())
        left += [other for other in (COMMANDS[name], READ.get(name)) if other is not None and other in COMMANDS]
    return tuple(name for name in COMMANDS if name in found)


def main() -> None:
    """Run trials of consecutive seeds, or of one call after another."""
    folder, how, number, *more = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
    if how == "random":
        trials = map(Bench(folder, STAGES).trial, range(number, number + int(more[0])))
    else:
        trials = Bench(folder, _needed(more or tuple(COMMANDS))).enumerate(number, more or tuple(COMMANDS))
    for trial in trials:
        sys.stdout.write(json.dumps(asdict(trial)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
