"""One training loop for every objective: images and a graph in, a run folder with an encoder out.

`train` is the whole of it; `measure_step_seconds` times steps without a folder. A run is a pure function of its
configuration and data: batches, captions and augmentations follow from (seed, epoch, step), so a resumed run goes on
with what an undisturbed one would have done, bit for bit on a CPU.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from graphbuild.system.progress import progress, stages
from graphbuild.torch.devices import choose_device
from train.config import TrainConfig
from train.data.held_out import eval_command
from train.data.prepare import OpenData, TrainingData, load_data, open_data, prepare
from train.model.encoders import has_fast_bfloat16
from train.model.optimizers import default_lr
from train.model.pretrained import absolute_init
from train.run.distributed import Ranks, ranks_of_job
from train.run.folder import RunFolder, open_run
from train.run.result import RunResult, finished_result
from train.run.session import Session
from train.run.trainer import Trainer

_WARM_UP_STEPS = 2


def settle(config: TrainConfig) -> TrainConfig:
    """Return a configuration without `auto`, except for what the data decide.

    Raises:
        OptionError: If the device does not exist, or lacks what is asked of it.
    """
    device = choose_device(config.device, option="--device")
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    lr, init = config.lr or default_lr(config), absolute_init(config.init)
    return replace(config, device=str(device), precision=precision, lr=lr, init=init)


def train(
    config: TrainConfig,
    run_dir: Path | None = None,
    *,
    overwrite: bool = False,
    data: TrainingData | None = None,
    label: str | None = None,
) -> RunResult:
    """Train an encoder, or go on with a run that was stopped.

    Args:
        config: How; what is `auto` or None is settled first.
        run_dir: The run's folder; None: the newest unfinished `runs/<objective>-<n>` of this configuration, else a new one.
        overwrite: Start again where the folder holds a run.
        data: Images that were prepared before, for a run of the same images and graph; they stay open.
        label: What the progress bar says.

    Raises:
        OptionError: If the folder holds a run of another configuration.
        ArtifactMismatch: If a checkpoint was made with other images or another graph.
        Interrupted: If SIGTERM or SIGINT came; a checkpoint was written.
        UserError: If the data do not fit, or a loss is not finite.
    """
    shown = label or f"train {config.objective}"
    with stages("opening images and graph", "decode images", shown), ranks_of_job(config.device) as ranks:
        with progress("opening images and graph", None):
            folder, opened = _enter(config, run_dir, overwrite, data, ranks)
        try:
            if ranks.broadcast_from_main(lambda: folder.finished):
                return finished_result(folder, eval_command(folder.path, folder.config, opened.source, opened.graph))
            # A run that goes on keeps what it settled, though the machine may now have less memory for images.
            with folder.beginning():
                loaded = data or load_data(replace(opened, config=replace(opened.config, crop_from=folder.config.crop_from)))
            try:
                with folder.beginning(), ranks.main_first():
                    session = Session(folder, loaded, ranks)
                    folder.begin()
                return session.run(shown)
            finally:
                if data is None:
                    loaded.close()
        finally:
            folder.close()


def _enter(
    config: TrainConfig, run_dir: Path | None, overwrite: bool, data: TrainingData | None, ranks: Ranks
) -> tuple[RunFolder, OpenData]:
    """Find the images and enter the folder: the first process locks, settles and writes, then the others learn what it chose."""
    with ranks.main_first():
        own = _enter_as_main(config, run_dir, overwrite, data, ranks) if ranks.is_main else None
    path, settled, resumed = ranks.broadcast((own[0].path, own[0].config, own[0].resumed) if own else None)
    settled = replace(settled, device=ranks.device(settled.device))
    if own is None:
        return RunFolder(path, settled, resumed), data.opened if data else open_data(settled)
    own[0].config = settled
    return own


def _enter_as_main(
    config: TrainConfig, run_dir: Path | None, overwrite: bool, data: TrainingData | None, ranks: Ranks
) -> tuple[RunFolder, OpenData]:
    ranks.require_divisible(config.batch_size)
    opened = data.opened if data else open_data(config)
    settled = settle(opened.settle(config))
    return open_run(run_dir, config, settled, overwrite=overwrite), opened


def measure_step_seconds(config: TrainConfig, *, steps: int = 5, data: TrainingData | None = None) -> float:
    """Measure the median seconds of a training step, after two that warm up; writes nothing.

    Args:
        config: As for `train`.
        steps: How many are timed.
        data: Images that were prepared before.

    Raises:
        UserError: As `train`.
    """
    loaded = data or prepare(config)
    settled = settle(loaded.opened.settle(config))
    total = _WARM_UP_STEPS + steps
    trainer = Trainer(replace(settled, steps=total, epochs=max(settled.epochs, total)), loaded)
    ends = []
    for _ in trainer.steps():
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        ends.append(time.perf_counter())
    if data is None:
        loaded.close()
    timed = ends[_WARM_UP_STEPS - 1 :]
    return statistics.median(after - before for before, after in pairwise(timed))
