"""What a run came to, for people and for scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphbuild.system.answers import Answer, next_steps
from train.run.folder import RunFolder
from train.run.metrics import read_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult(Answer):
    """What a run came to."""

    run_dir: Path
    objective: str
    steps: int
    images_seen: int
    seconds: float
    """Spent training, all sessions together."""
    first_step: int
    """Where this session went on; 0 for a new run, `steps` for one that was finished before."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last line of metrics.jsonl."""
    eval_command: str = ""
    """How the run is evaluated; what the user has to name stands there in capitals."""

    def summary(self) -> str:
        """Return lines for people."""
        if self.first_step == self.steps:
            return f"{self.run_dir}: was finished before ({self.steps:,} steps).\n{next_steps(self.eval_command)}"
        before = f", went on from step {self.first_step:,}" if self.first_step else ""
        rate = self.images_seen / max(self.seconds, 1e-9)
        kl = self.last.get("kl")
        away = "" if kl is None else f", KL to the target {_number(kl)} nats"
        return (
            f"{self.run_dir}: {self.objective}, {self.steps:,} steps{before}, {self.images_seen:,} images in {self.seconds:,.0f} s "
            f"({rate:,.0f}/s); loss {_number(self.last.get('loss'))}{away}\n"
            f"{next_steps(self.eval_command)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the same for scripts."""
        return {**Answer.to_json(self), "seconds": round(self.seconds, 3)}


def finished_result(folder: RunFolder, eval_command: str) -> RunResult:
    """Return the result of a run that had come to its end before."""
    last = (read_metrics(folder.path) or [{}])[-1]
    steps = int(last.get("step", 0))
    return RunResult(
        run_dir=folder.path,
        objective=folder.config.objective,
        steps=steps,
        images_seen=int(last.get("images_seen", 0)),
        seconds=0.0,
        first_step=steps,
        last=last,
        eval_command=eval_command,
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
