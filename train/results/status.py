"""Where runs stand: steps done, the last checkpoint, the last figures, whether they are evaluated, and the next command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphbuild.errors import OptionError
from graphbuild.system.answers import Answer, next_steps, plain, quoted, render, table
from train.run.checkpoint import CONFIG_FILE, WEIGHTS, checkpoints, resume_command
from train.run.folder import EVAL_FILE, read_run_config
from train.run.metrics import read_metrics

_RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus(Answer):
    """Where a run stands."""

    run_dir: Path
    objective: str
    state: Literal["begun", "unfinished", "finished", "evaluated"]
    step: int
    """The last that was logged."""
    planned: str
    """How long it was to train."""
    checkpoint: int | None
    """Step that it would go on from; None without a checkpoint."""
    loss: float | None
    images_per_s: float | None
    megabytes: float
    next: str


@dataclass(frozen=True, slots=True)
class RunsStatus:
    """All runs that were asked for."""

    runs: tuple[RunStatus, ...]

    def summary(self) -> str:
        """Return a table for people, and each run's next command."""
        right = ("step", "checkpoint", "loss", "images/s", "MB")
        made = table(("run", "objective", "state", "step", "of", *right[1:]), right=right)
        for one in self.runs:
            checkpoint = "" if one.checkpoint is None else f"{one.checkpoint:,}"
            loss, rate = (("" if value is None else f"{value:,.4g}") for value in (one.loss, one.images_per_s))
            figures = (checkpoint, loss, rate, f"{one.megabytes:,.1f}")
            made.add_row(plain(str(one.run_dir)), one.objective, one.state, f"{one.step:,}", one.planned, *figures)
        return "\n".join([render(f"{len(self.runs)} run(s)", {"runs": made}), "", *(next_steps(one.next) for one in self.runs)])

    def to_json(self) -> list[dict[str, Any]]:
        """Return the same for scripts."""
        return [one.to_json() for one in self.runs]


def runs_status(run_dirs: Sequence[Path]) -> RunsStatus:
    """Look at runs: those named, else all under runs/.

    Raises:
        OptionError: If a folder is not that of a run, or there is none.
    """
    found = list(run_dirs) or sorted(path.parent for path in _RUNS.glob(f"*/{CONFIG_FILE}"))
    if not found:
        raise OptionError("no run under runs/. Start one with `train run`, or name the folder of one.")
    return RunsStatus(tuple(_look(path) for path in found))


def _look(run_dir: Path) -> RunStatus:
    config = read_run_config(run_dir)
    lines = read_metrics(run_dir)
    last = lines[-1] if lines else {}
    saved = checkpoints(run_dir)
    finished, evaluated = (run_dir / WEIGHTS).exists(), (run_dir / EVAL_FILE).exists()
    return RunStatus(
        run_dir=run_dir,
        objective=config.objective,
        state="evaluated" if finished and evaluated else "finished" if finished else "unfinished" if lines else "begun",
        step=int(last.get("step", 0)),
        planned=f"{config.steps:,} steps" if config.steps is not None else f"{config.epochs:,} epochs",
        checkpoint=int(saved[0].name.removeprefix("step-")) if saved else None,
        loss=last.get("loss"),
        images_per_s=last.get("images_per_s"),
        megabytes=sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file()) / 1e6,
        next=f"train {'report' if evaluated else 'eval'} {quoted(run_dir)}" if finished else resume_command(run_dir),
    )
