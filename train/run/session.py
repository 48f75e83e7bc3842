"""One process's part of a run: steps, log lines, checkpoints, and the end of a run, or its stop by a signal.

Of several processes the first one writes; all stop, and save, at the same step.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import torch

from graphbuild.errors import ArtifactMismatch
from graphbuild.system.progress import Meter, progress, say
from train.data.held_out import eval_command
from train.data.prepare import TrainingData, event
from train.run.checkpoint import (
    WEIGHTS,
    Checkpoint,
    Position,
    newest_checkpoint,
    read_checkpoint,
    resume_command,
    save_checkpoint,
    save_encoder,
    save_text_tower,
)
from train.run.distributed import Ranks
from train.run.folder import Interrupted, RunFolder
from train.run.metrics import EVENTS_FILE, METRICS_FILE, append_line, cut_metrics, read_metrics
from train.run.objectives.clip import Clip
from train.run.result import RunResult
from train.run.signals import stop_signal
from train.run.trainer import StepReport, Trainer
from train.run.watch import COLLAPSED, Scalars

_MOST_WAIT = 0.1
"""Share of the time that steps may wait for images before the data are called the bottleneck."""


class Session:
    """One process's part of a run: the trainer, and what the first process writes."""

    def __init__(self, folder: RunFolder, data: TrainingData, ranks: Ranks) -> None:
        self.ranks = ranks
        self.folder, self.path, self.config, self.data = folder, folder.path, folder.config, data
        self.trainer = Trainer(folder.config, data, ranks)
        self.fingerprint = data.fingerprint()
        self._scalars: Scalars | None = None
        self._flat_lines = 0
        self._saved_at = time.monotonic()
        self._events_read = 0
        self._events_written: set[str] = set()

    def run(self, label: str) -> RunResult:
        """Go on from the newest checkpoint, to the end or to a signal."""
        self._restore()
        self._write_data_events()
        trainer, first = self.trainer, self.trainer.step
        if self.config.tensorboard and self.ranks.is_main:
            self._scalars = Scalars(self.path, first)
        facts = {"threads": torch.get_num_threads(), "processes": self.ranks.count}
        self._event("resume" if first else "start", step=first, objective=self.config.objective, note=trainer.learner.note, **facts)
        with (
            stop_signal(ignore_second=self.ranks.count > 1) as stop,
            progress(label, int(trainer.total_steps), unit="steps", done=first) as meter,
        ):
            images = 0
            for report in trainer.steps():
                images += report.images
                if self._is_logged(trainer.step):
                    self._log(report, images, meter)
                    images = 0
                meter.advance()
                # One exchange for both: all processes stop, or save, at the same step.
                signal_number, due = self.ranks.largest(stop(), self._is_due())
                if signal_number:
                    self._interrupt(signal_number)
                if trainer.step % self.config.checkpoint_every == 0 or due:
                    self._checkpoint()
        return self._finish(first)

    def _finish(self, first: int) -> RunResult:
        """Write the last checkpoint and the encoder, and say what a session that began at a step has done."""
        trainer = self.trainer
        self._checkpoint()
        if self.ranks.is_main:
            if isinstance(trainer.learner, Clip):
                save_text_tower(self.path, trainer.learner.text)
            save_encoder(self.path / WEIGHTS, trainer.learner.encoder)
        self.ranks.wait()
        if self._scalars is not None:
            self._scalars.close()
        self._event("finish", step=trainer.step, seconds=round(trainer.clock.total(), 3))
        return RunResult(
            run_dir=self.path,
            objective=self.config.objective,
            steps=trainer.step,
            images_seen=trainer.images_seen,
            seconds=trainer.clock.total(),
            first_step=first,
            last=read_metrics(self.path)[-1] if self.ranks.is_main else {},
            eval_command=eval_command(self.path, self.config, self.data.opened.source, self.data.opened.graph),
        )

    def _restore(self) -> None:
        found: Checkpoint | None = None

        def find() -> Path | None:
            nonlocal found
            found = newest_checkpoint(self.path, self._warn)
            return found.path if found else None

        path = self.ranks.broadcast_from_main(find)
        if path is not None and found is None:
            found = read_checkpoint(path)
        if found is not None:
            if found.position.fingerprint != self.fingerprint:
                self.ranks.stop(
                    ArtifactMismatch(
                        f"{found.path}: was made with other images or another graph than {self.config.data} and "
                        f"{self.config.graph_dir} now hold. Restore them, choose another --run-dir, or start again with "
                        "--overwrite."
                    )
                )
            self.trainer.restore(found.position, found.weights, found.optimizer)
            say(f"{self.path}: going on from step {found.position.step:,}.")
            self._compare_arithmetic(found.position)
        if self.ranks.is_main:
            cut_metrics(self.path, self.trainer.step)

    def _compare_arithmetic(self, before: Position) -> None:
        """Say what will make the rest of the run differ in its last bits from an undisturbed one."""
        now = self.trainer.position(self.fingerprint)
        pairs = {"threads": (before.threads, now.threads), "processes": (before.processes, now.processes)}
        changed = {name: pair for name, pair in pairs.items() if pair[0] and pair[0] != pair[1]}
        if changed:
            told = ", ".join(f"{one} {name} before, {other} now" for name, (one, other) in changed.items())
            say(f"warning: {self.path}: {told}: sums are rounded otherwise, so the run is not bit for bit what it would have been.")
            self._event("arithmetic", **{name: list(pair) for name, pair in changed.items()})

    def _is_logged(self, step: int) -> bool:
        return step == 1 or step % self.config.log_every == 0 or step == self.trainer.total_steps

    def _log(self, report: StepReport, images: int, meter: Meter) -> None:
        step, every = self.trainer.step, self.config.kl_every
        # A logged step measures KL if it is the first one at or after a multiple of `kl_every`.
        with_kl = bool(every) and (step == 1 or step // every > max(step - self.config.log_every, 0) // every)
        line = {**report.metrics(with_kl=with_kl), **self.trainer.clock.lap(images)}
        if self.ranks.is_main:
            append_line(self.path / METRICS_FILE, line)
        if self._scalars is not None:
            self._scalars.add(line)
        self._watch(line)
        self._write_data_events()
        hits = "" if line["hit_rate"] is None else f", hit rate {line['hit_rate']:.3g}"
        meter.advance(
            0,
            f"loss {line['loss']:.3f}{hits}, {line['images_per_s']:,.0f} images/s, {_bottleneck(line['data_wait_share'])}",
        )

    def _watch(self, line: dict[str, Any]) -> None:
        """Say once that the embeddings have collapsed: on two lines, because a net may begin so."""
        self._flat_lines = self._flat_lines + 1 if line["spread"] < COLLAPSED else 0
        if self._flat_lines == 2:
            self._event("collapse", step=line["step"], spread=line["spread"])
            say(
                f"warning: step {line['step']:,}: the embeddings are nearly the same for all images (spread {line['spread']:.3g}, "
                "where 1 is even). Lower --lr, raise --warmup-epochs or --batch-size, or lower --tau-s."
            )

    def _is_due(self) -> bool:
        """Whether a checkpoint is due by the clock of the first process."""
        minutes = self.config.checkpoint_minutes
        return self.ranks.is_main and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def _checkpoint(self) -> None:
        trainer = self.trainer
        self._saved_at = time.monotonic()
        trainer.check()
        if self.ranks.is_main:
            position = trainer.position(self.fingerprint)
            save_checkpoint(self.path, position, trainer.model.state_dict(), trainer.optimizer.state_dict())
        self._write_data_events()

    def _interrupt(self, number: int) -> None:
        self._checkpoint()
        name = signal.Signals(number).name
        self._event("interrupt", step=self.trainer.step, signal=name)
        # None of the processes may end while the first one is writing.
        self.ranks.wait()
        self.ranks.stop(
            Interrupted(
                f"stopped by {name} after step {self.trainer.step:,} of {self.trainer.total_steps:,}; a checkpoint was written. "
                f"Go on with: {resume_command(self.path)}",
                number,
            )
        )

    def _warn(self, message: str) -> None:
        say(f"warning: {message}")
        self._event("damaged_checkpoint", message=message)

    def _event(self, kind: str, **facts: Any) -> None:
        if self.ranks.is_main:
            append_line(self.path / EVENTS_FILE, event(kind, **facts))

    def _write_data_events(self) -> None:
        # Decoding threads may add to the list meanwhile; what is new then is written next time.
        events = self.data.events[self._events_read :]
        self._events_read += len(events)
        for line in (line for lines in self.ranks.gather_objects(events) for line in lines):
            facts = json.dumps({name: value for name, value in line.items() if name != "time"})
            # Where the processes hold all images, each of them has met what there is.
            if self.ranks.is_main and facts not in self._events_written:
                append_line(self.path / EVENTS_FILE, line)
            self._events_written.add(facts)


def _bottleneck(wait_share: float) -> str:
    """Say what a run would be faster with more of: steps that never wait for images are bound by the device."""
    return f"bound by {'data' if wait_share > _MOST_WAIT else 'compute'} ({wait_share:.0%} waiting for data)"
