"""The folder of a run: which one, whether it goes on or starts anew, and that only one process trains in it.

RUN_DIR/ config.toml · metrics.jsonl · events.jsonl · checkpoints/ · model.safetensors
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import BaseFileLock

from graphbuild.errors import OptionError, UserError
from graphbuild.store.atomic import write_text
from graphbuild.store.folders import is_temporary, remove, remove_temporaries
from graphbuild.store.locks import SOFT, take
from train.config import TrainConfig, load_config, read_toml
from train.config.kinds import flag
from train.run.checkpoint import CONFIG_FILE, FOLDER, TEXT_TOWER, WEIGHTS
from train.run.metrics import EVENTS_FILE, METRICS_FILE

LOCK_FILE = ".lock"
_OURS = (WEIGHTS, TEXT_TOWER, METRICS_FILE, EVENTS_FILE, CONFIG_FILE)
_FOLDERS = {FOLDER: "*step-*", "features": "*.safetensors", "tensorboard": "events.out.tfevents.*"}
"""Folders of a run, and what it writes there; `*step-*` takes a killed process's unfinished checkpoint, too."""
EVAL_FILE = "eval.json"
TRAINED, UNTRAINED = "trained", "untrained"
"""The two encoders whose scores it holds."""
# Scores and pictures of an earlier run would be taken for those of the new one.
_DERIVED = (EVAL_FILE, "report.html")
_MARKS = {"objective", "model", "batch_size", "epochs", "seed", "precision"}
"""Some of what every run's configuration holds."""
_BY_MACHINE = ("precision", "load_size", "crop_from", "lr")
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
    _lock: BaseFileLock | None = None
    """Held by the process that writes."""
    _replaced_by: str | None = None
    """The configuration that `begin` writes once it has removed the run that the folder holds; None: there is none to remove."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self._replaced_by is None and (self.path / WEIGHTS).exists()

    def begin(self) -> None:
        """Remove the run that this one replaces, if any: by now nothing can be wrong with the command that does."""
        if self._replaced_by is not None:
            _remove_run(self.path)
            write_text(self.path / CONFIG_FILE, self._replaced_by)
            self._replaced_by = None

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Take back a new run that is refused before its first step, so that the mended command finds nothing in its way."""
        try:
            yield
        except UserError:
            if self._lock is not None and not self.resumed and self._replaced_by is None:
                (self.path / CONFIG_FILE).unlink(missing_ok=True)
                self._lock.release()
                # Others may have files there, or the next command the lock.
                with suppress(OSError):
                    (self.path / LOCK_FILE).unlink(missing_ok=True)
                    self.path.rmdir()
            raise

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()


def open_run(run_dir: Path | None, given: TrainConfig, settled: TrainConfig, *, overwrite: bool = False) -> RunFolder:
    """Choose, lock and set up the folder of a run.

    Without a folder, the newest unfinished `runs/<objective>-<n>` of the same configuration goes on; else the next n is new.

    Args:
        run_dir: As the user says.
        given: The configuration as given, with `auto` and None.
        settled: The same with these settled.
        overwrite: Replace an earlier run of the folder, which `RunFolder.begin` removes.

    Raises:
        OptionError: If the folder holds a run of another configuration, or something else.
        UserError: If another process trains in it.
    """
    if run_dir is None:
        return _choose(given, settled)
    _require_ours(run_dir)
    lock = take(run_dir / LOCK_FILE, run_dir)
    if lock is None:
        raise UserError(f"{run_dir}: another process is training in this folder. Wait for it, or choose another --run-dir.")
    remove_temporaries(run_dir, _OURS)
    return _enter(run_dir, given, settled, lock, overwrite=overwrite)


def read_run_config(run_dir: Path) -> TrainConfig:
    """Return the configuration that a run was made with.

    Raises:
        OptionError: If the folder is not that of a run.
    """
    if not (run_dir / CONFIG_FILE).exists():
        raise OptionError(f"{run_dir}: not the folder of a run (config.toml is missing). `train run` makes one.")
    config = load_config(run_dir / CONFIG_FILE, {})
    # A run settles this, so its configuration is from before there was a choice.
    return replace(config, crop_from="held") if config.crop_from == "auto" else config


def _choose(given: TrainConfig, settled: TrainConfig) -> RunFolder:
    pattern = re.compile(rf"{settled.objective}-(\d+)")
    numbers = sorted((int(match[1]) for path in Path("runs").glob("*") if (match := pattern.fullmatch(path.name))), reverse=True)
    for number in numbers:
        path = Path("runs") / f"{settled.objective}-{number}"
        if (path / WEIGHTS).exists() or not (path / CONFIG_FILE).exists():
            continue
        stored = read_run_config(path)
        if (
            not stored.differences(_keep_settled(stored, given, settled))
            and _same_data(stored, settled)
            and (lock := take(path / LOCK_FILE, path))
        ):
            return _enter(path, given, settled, lock)
    while True:
        path = Path("runs") / f"{settled.objective}-{(numbers[0] if numbers else 0) + 1}"
        if (lock := take(path / LOCK_FILE, path)) is not None:
            return _enter(path, given, settled, lock)
        numbers.insert(0, numbers[0] + 1 if numbers else 1)


def _same_data(one: TrainConfig, other: TrainConfig) -> bool:
    return (one.graphs, one.data) == (other.graphs, other.data)


def _enter(path: Path, given: TrainConfig, settled: TrainConfig, lock: BaseFileLock, *, overwrite: bool = False) -> RunFolder:
    """Compare with the run that is there, or write the configuration of a new one; what a killed process left goes."""
    for folder in (path, *(path / name for name in _FOLDERS)):
        remove_temporaries(folder)
    if not (path / CONFIG_FILE).exists():
        write_text(path / CONFIG_FILE, settled.to_toml())
        return RunFolder(path, settled, False, lock)
    if overwrite:
        return RunFolder(path, settled, False, lock, settled.to_toml())
    stored = read_run_config(path)
    settled = _keep_settled(stored, given, settled)
    if changed := stored.differences(settled):
        lock.release()
        told = ", ".join(f"{flag(name)}: {_show(before)} -> {_show(after)}" for name, (before, after) in changed.items())
        raise OptionError(
            f"{path}: holds a run of another configuration ({told}). "
            "Add --overwrite to start it again, or choose another --run-dir."
        )
    return RunFolder(path, settled, True, lock)


def _keep_settled(stored: TrainConfig, given: TrainConfig, settled: TrainConfig) -> TrainConfig:
    open_fields = [name for name in _BY_MACHINE if getattr(given, name) in ("auto", None, 0)]
    return replace(settled, **{name: getattr(stored, name) for name in open_fields})


def _show(value: object) -> str:
    return "none" if value is None else str(value)


def _require_ours(path: Path) -> None:
    """Refuse a folder that holds something else than a run.

    Raises:
        OptionError: If it holds files but no configuration of a run, or one that no run wrote.
    """
    if not path.exists():
        return
    if (path / CONFIG_FILE).exists():
        written = read_toml(path / CONFIG_FILE)
        # A run writes all fields that have a value, whatever is given: other programs' config.toml does not look so.
        if not written.keys() >= _MARKS:
            raise OptionError(f"{path}: its {CONFIG_FILE} was not written by a run. Choose another --run-dir.")
    elif any(item.name.removesuffix(SOFT) != LOCK_FILE and not is_temporary(item.name, _OURS) for item in path.iterdir()):
        raise OptionError(f"{path}: exists, and is not the folder of a run. Choose another --run-dir.")


def _remove_run(path: Path) -> None:
    """Remove what a run wrote, and nothing else.

    The order leaves a run, finished or not, wherever the process is killed: without checkpoints it starts at its beginning, and
    the configuration, by which the folder is known, goes last.
    """
    for folder, pattern in _FOLDERS.items():
        for item in sorted((path / folder).glob(pattern)):
            remove(item)
        if (path / folder).is_dir() and not any((path / folder).iterdir()):
            (path / folder).rmdir()
    for name in (*_DERIVED, *_OURS):
        remove(path / name)
