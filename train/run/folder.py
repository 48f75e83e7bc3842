"""The folder of a run: which one, whether it goes on or starts anew, and that only one process trains in it.

RUN_DIR/ config.toml · metrics.jsonl · events.jsonl · checkpoints/ · model.safetensors
"""

from __future__ import annotations

import fcntl
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from graphbuild.errors import OptionError, UserError
from train.config import TrainConfig, flag, load_config
from train.run.checkpoint import FOLDER, TEXT_TOWER, WEIGHTS
from train.run.metrics import EVENTS_FILE, METRICS_FILE

CONFIG_FILE = "config.toml"
LOCK_FILE = ".lock"
_OURS = (CONFIG_FILE, METRICS_FILE, EVENTS_FILE, WEIGHTS, TEXT_TOWER, FOLDER)
# Scores and pictures of an earlier run would be taken for those of the new one.
_DERIVED = ("tensorboard", "eval.json", "features", "report.html")
_BY_MACHINE = ("precision", "load_size", "lr")
"""What a run settles for itself where the user leaves it open; a resumed run keeps it."""


class Interrupted(UserError):
    """A signal stopped the run after a step; its exit code is the shell's, 128 and the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(slots=True)
class RunFolder:
    """A run's folder, locked until `close`."""

    path: Path
    config: TrainConfig
    resumed: bool
    """Whether it held this run before."""
    _lock: IO[str] | None = None
    """Held by the process that writes."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / WEIGHTS).exists()

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.close()


def open_run(run_dir: Path | None, asked: TrainConfig, settled: TrainConfig, *, overwrite: bool = False) -> RunFolder:
    """Choose, lock and set up the folder of a run.

    Without a folder, the newest unfinished `runs/<objective>-<n>` of the same configuration goes on; else the next n is new.

    Args:
        run_dir: As the user says.
        asked: The configuration as given, with `auto` and None.
        settled: The same with these settled.
        overwrite: Remove an earlier run of the folder.

    Raises:
        OptionError: If the folder holds a run of another configuration, or something else.
        UserError: If another process trains in it.
    """
    if run_dir is None:
        return _choose(asked, settled)
    if run_dir.exists() and not (run_dir / CONFIG_FILE).exists() and any(item.name != LOCK_FILE for item in run_dir.iterdir()):
        raise OptionError(f"{run_dir}: exists, and is not the folder of a run. Choose another --run-dir.")
    lock = _lock(run_dir)
    if lock is None:
        raise UserError(f"{run_dir}: another process is training in this folder. Wait for it, or choose another --run-dir.")
    if overwrite:
        _remove_run(run_dir)
    return _enter(run_dir, asked, settled, lock)


def read_run_config(run_dir: Path) -> TrainConfig:
    """The configuration that a run was made with.

    Raises:
        OptionError: If the folder is not that of a run.
    """
    if not (run_dir / CONFIG_FILE).exists():
        raise OptionError(f"{run_dir}: not the folder of a run (config.toml is missing). `train run` makes one.")
    return load_config(run_dir / CONFIG_FILE, {})


def _choose(asked: TrainConfig, settled: TrainConfig) -> RunFolder:
    pattern = re.compile(rf"{settled.objective}-(\d+)")
    numbers = sorted((int(match[1]) for path in Path("runs").glob("*") if (match := pattern.fullmatch(path.name))), reverse=True)
    for number in numbers:
        path = Path("runs") / f"{settled.objective}-{number}"
        if (path / WEIGHTS).exists() or not (path / CONFIG_FILE).exists():
            continue
        stored = read_run_config(path)
        if not stored.differences(_keep_settled(stored, asked, settled)) and _same_data(stored, settled) and (lock := _lock(path)):
            return _enter(path, asked, settled, lock)
    while True:
        path = Path("runs") / f"{settled.objective}-{(numbers[0] if numbers else 0) + 1}"
        if (lock := _lock(path)) is not None:
            return _enter(path, asked, settled, lock)
        numbers.insert(0, numbers[0] + 1 if numbers else 1)


def _same_data(one: TrainConfig, other: TrainConfig) -> bool:
    return (one.graph_dir, one.data) == (other.graph_dir, other.data)


def _enter(path: Path, asked: TrainConfig, settled: TrainConfig, lock: IO[str]) -> RunFolder:
    """Compare with the run that is there, or write the configuration of a new one."""
    if not (path / CONFIG_FILE).exists():
        _write(path / CONFIG_FILE, settled.to_toml())
        return RunFolder(path, settled, False, lock)
    stored = read_run_config(path)
    settled = _keep_settled(stored, asked, settled)
    if changed := stored.differences(settled):
        lock.close()
        told = ", ".join(f"{flag(name)}: {_show(before)} -> {_show(after)}" for name, (before, after) in changed.items())
        raise OptionError(
            f"{path}: holds a run of another configuration ({told}). "
            "Add --overwrite to start it again, or choose another --run-dir."
        )
    return RunFolder(path, settled, True, lock)


def _keep_settled(stored: TrainConfig, asked: TrainConfig, settled: TrainConfig) -> TrainConfig:
    open_fields = [name for name in _BY_MACHINE if getattr(asked, name) in ("auto", None, 0)]
    return replace(settled, **{name: getattr(stored, name) for name in open_fields})


def _show(value: object) -> str:
    return "none" if value is None else str(value)


def _lock(path: Path) -> IO[str] | None:
    """An exclusive lock on a folder, which is made; None if another process holds it. It ends with the process."""
    path.mkdir(parents=True, exist_ok=True)
    stream = (path / LOCK_FILE).open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def _remove_run(path: Path) -> None:
    for name in (*_OURS, *_DERIVED):
        item = path / name
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
