"""What is looked at before a week is spent: data, graph, memory, disk and time of a training run, each on a line of its own."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from graphbuild.errors import ArtifactError, UserError
from graphbuild.store.files import damage
from graphbuild.store.manifest import Manifest
from graphbuild.system.pictures import UnreadablePicture
from train.config import TrainConfig
from train.data.base import ImageSource, decode
from train.data.prepare import OpenData, load_data, open_data
from train.data.sources import open_images
from train.data.store import choose_load_size
from train.model.encoders import parameter_count
from train.run.loop import measure_step_seconds, settle
from train.run.trainer import build_model

Found = TypeVar("Found")
_DECODED = 64
_CHECKPOINTS = 3
"""Checkpoints on the disk at one time: two that stay, and the one being written."""


@dataclass(slots=True)
class DryRun:
    """What was found, in order."""

    lines: list[str] = field(default_factory=list)
    problems: int = 0

    def ok(self, topic: str, text: str) -> None:
        """Note something that is as it should be."""
        self.lines.append(f"{topic:<8}ok       {text}")

    def problem(self, topic: str, text: str) -> None:
        """Note something that would end the run."""
        self.problems += 1
        self.lines.append(f"{topic:<8}PROBLEM  {text}")

    def summary(self) -> str:
        """Return the plan in lines for people."""
        verdict = f"{self.problems} problem{'s' if self.problems > 1 else ''}: mend first" if self.problems else "ready"
        return "\n".join([*self.lines, verdict])


def dry_run(config: TrainConfig, out: Path, *, timed_steps: int = 5) -> DryRun:
    """Check everything that a run needs, and time some of its steps; trains nothing, writes no run.

    Args:
        config: As for `train`.
        out: Folder of the run, whose disk is looked at.
        timed_steps: How many steps are timed.
    """
    found = DryRun()
    source = _checked(found, "data", lambda: _data(config, found))
    graph = _checked(found, "graph", lambda: _graph(config, found))
    opened = _checked(found, "graph", lambda: _match(config, found)) if graph else None
    if source is not None:
        # Without a graph the steps of SimCLR tell the time: the target's share is small.
        timed = config if opened else _without_graph(config)
        _checked(found, "time", lambda: _time(timed, opened, found, timed_steps))
        _checked(found, "disk", lambda: _disk(timed, out, found))
    return found


def _without_graph(config: TrainConfig) -> TrainConfig:
    return replace(
        config,
        objective="simclr",
        negatives="uniform",
        positives="own",
        tau_s=0.1,
        teacher="graph",
        batches="random",
        graph_dir=None,
    )


def _checked(found: DryRun, topic: str, check: Callable[[], Found]) -> Found | None:
    """What a check gives; its error is a problem found."""
    try:
        return check()
    except UserError as error:
        found.problem(topic, str(error))
        return None


def _data(config: TrainConfig, found: DryRun) -> ImageSource:
    """Open the images and decode some, spread over all of them."""
    assert config.data is not None, "recipes name their images"
    source = open_images(config.data, image_column=config.image_column, id_column=config.id_column)
    size = config.load_size or choose_load_size(source, config.image_size)
    rows = np.unique(np.linspace(0, len(source) - 1, min(_DECODED, len(source))).astype(int)).tolist()
    images, failed = source.encoded(rows), []
    began = time.perf_counter()
    for row, image in zip(rows, images, strict=True):
        try:
            decode(image, size)
        except UnreadablePicture as error:
            failed.append(f"{source.sample_ids[row]}: {error}")
    rate = len(rows) / (time.perf_counter() - began)
    mean = np.mean([len(image) for image in images if isinstance(image, bytes)] or [0])
    text = f"{source.name}: {len(source):,} images of {mean / 1e3:,.1f} kB; {len(rows)} decoded to {size} px, {rate:,.0f}/s a core"
    # More of them than the run would stand.
    if failed and len(failed) / len(rows) * len(source) > config.max_corrupt:
        found.problem("data", f"{text}; {len(failed)} cannot be read, such as {failed[0]} (--max-corrupt {config.max_corrupt})")
    else:
        found.ok("data", text + (f"; {len(failed)} cannot be read, such as {failed[0]}" if failed else ""))
    return source


def _graph(config: TrainConfig, found: DryRun) -> Manifest:
    """Every file of the graph that training reads, by its digest."""
    assert config.graph_dir is not None, "recipes name their graph"
    folder = Path(config.graph_dir)
    manifest = Manifest.load(folder)
    files = {**manifest.require("text", folder).files, **manifest.require("knn", folder).files}
    for name, receipt in files.items():
        if problem := damage(folder, receipt):
            raise ArtifactError(f"{folder / name} {problem}. Run `graphbuild embed` and `graphbuild knn` again.")
    size = sum(receipt.bytes for receipt in files.values())
    found.ok("graph", f"{folder}: {len(files)} files, {size / 1e9:.2f} GB, digests as recorded; {manifest.counts['texts']:,} texts")
    return manifest


def _match(config: TrainConfig, found: DryRun) -> OpenData:
    opened = open_data(config)
    if opened.joined is not None:
        examples = f"; unknown, for example: {', '.join(opened.joined.examples)}" if opened.joined.unknown else ""
        found.ok("graph", f"{opened.joined.summary()}{examples}")
    return opened


def _time(config: TrainConfig, opened: OpenData | None, found: DryRun, timed_steps: int) -> None:
    """Time steps with images as they come from the disk, and say what a run of such steps would take."""
    # Nothing is held in memory: to decode everything first could take hours.
    timed = replace(settle(config), cache_gb=0.0)
    opened = replace(opened, config=replace(opened.config, cache_gb=0.0)) if opened else open_data(timed)
    data = load_data(opened)
    try:
        seconds = measure_step_seconds(timed, steps=timed_steps, data=data)
    finally:
        data.close()
    found.ok("time", _duration_of_run(timed, len(data.store), seconds))
    found.ok("memory", _memory(replace(timed, cache_gb=config.cache_gb), len(data.store), data.store.size))


def _duration_of_run(config: TrainConfig, images: int, seconds: float) -> str:
    steps = config.epochs * (images // config.batch_size)
    steps = min(config.steps or steps, steps)
    return (
        f"{seconds:.3f} s a step ({config.batch_size / seconds:,.0f} images/s; {config.model}, {config.precision}, "
        f"{config.device}): {steps:,} steps take {_duration(seconds * steps)} in one process"
    )


def _memory(config: TrainConfig, images: int, size: int) -> str:
    """Peak of what was timed; what holding the images would take."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    held = images * 3 * size * size / 1e9
    fits = "held" if held <= config.cache_gb else "not held"
    cached = f"decoded, all images take {held:,.1f} GB: {fits} with --cache-gb {config.cache_gb:g}"
    if not config.device.startswith("cuda"):
        return f"{host:.1f} GB at the peak; {cached}"
    used = torch.cuda.max_memory_allocated(config.device) / 1e9
    total = torch.cuda.get_device_properties(config.device).total_memory / 1e9
    return f"{used:.1f} of {total:.1f} GB on {config.device}, {host:.1f} GB here; {cached}"


def _disk(config: TrainConfig, out: Path, found: DryRun) -> None:
    """Room for the checkpoints: weights, and one or two moments of each."""
    numbers = parameter_count(build_model(config, torch.device("cpu")))
    needed = _CHECKPOINTS * 4 * numbers * (3 if config.optimizer == "adamw" else 2)
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    tell = found.ok if free > needed else found.problem
    tell("disk", f"{free / 1e9:,.1f} GB free in {folder}; checkpoints of {numbers / 1e6:,.1f} M weights take {needed / 1e9:.2f} GB")


def _duration(seconds: float) -> str:
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    return f"{days:.0f} d {hours:.0f} h" if days else f"{hours:.0f} h {rest / 60:.0f} min" if hours else f"{rest:.0f} s"
