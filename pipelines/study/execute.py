"""Making the runs of a study: graphs first, then each run trained and evaluated; what is finished is not done again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from graphbuild.errors import ArtifactMismatch
from graphbuild.store.atomic import write_json, write_text
from pipelines.study.data import StudyData
from pipelines.study.graphs import build_graph, is_imported
from pipelines.study.jobs import claim, run_jobs
from pipelines.study.plan import ARMS, COMMON, SCENES, SECOND, Arm, Planned
from pipelines.study.scenes import COLUMNS, prepare_scenes
from pipelines.study.tables import write_gaps_figure, write_tables
from train.run.checkpoint import CONFIG_FILE
from train.run.folder import EVAL_FILE, read_run_config
from train.run.scores import read_scores

if TYPE_CHECKING:
    from train.config import ModelName, TrainConfig
    from train.data.prepare import TrainingData
    from train.evaluate.options import ProtocolName

_RECORDED = ("objective", "protocols", "images", "train_images", "corrupt_images", "scores")
"""Of eval.json; the rest are places."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What holds for all runs."""

    out: Path
    budget: int
    """Images that a run sees; of those of some arms, a share."""
    batch_size: int
    encoder: str
    second_encoder: str | None = None
    """Of the arm that has another one."""
    model: ModelName = "small"
    """A small net, so that differences between objectives can be seen in hours on a CPU."""
    image_size: int = 32
    protocols: tuple[ProtocolName, ...] = ()
    """What runs on Tiny-ImageNet's classes are evaluated by; none: everything."""
    jobs: int = 1
    """Processes that make runs, each one at a time."""
    records: Path
    """Folder of what is known of finished runs, ARM/seed-N: how each was made, and its scores; what tables are made of.

    Nothing in it names a place, so it can move; a run that is there is not made again, wherever it was made.
    """

    def steps(self, arm: Arm) -> int:
        """Return the steps of every run of an arm."""
        return max(1, round(arm.share * self.budget) // self.batch_size)


class Study:
    """A study's folder: OUT/data, OUT/graphs, and a run in each OUT/runs/ARM/seed-N; and its records."""

    def __init__(self, config: StudyConfig, data: StudyData) -> None:
        self._config, self._data = config, data
        self._loaded: dict[str | None, TrainingData] = {}
        """The decoded images of one data set, which its runs share."""

    def run_dir(self, planned: Planned) -> Path:
        """Return the folder of a run."""
        return self._config.out / "runs" / planned.name

    def record_dir(self, planned: Planned) -> Path:
        """Return where what is known of a finished run stands."""
        return self._config.records / planned.name

    def is_done(self, planned: Planned) -> bool:
        """Return whether a run is trained, evaluated and recorded."""
        return (self.record_dir(planned) / EVAL_FILE).exists()

    def execute(self, runs: Sequence[Planned]) -> None:
        """Make all of them, and the tables.

        Args:
            runs: Which; those that are recorded are not made again.

        Raises:
            ArtifactMismatch: If a record is of another study than this one.
            UserError: If one cannot be made; those before it stand.
        """
        self.check()
        todo = [planned for planned in runs if not self.is_done(planned)]
        for planned in runs:
            if planned not in todo:
                click.echo(f"{self.record_dir(planned)}: was finished before")
        for graph in dict.fromkeys(planned.arm.graph for planned in todo):
            self._build(graph)
        if (jobs := min(self._config.jobs, len(todo))) > 1:
            run_jobs(partial(_make, self._config, self._data, todo), jobs)
        else:
            self.make(todo)
        if left := [planned.name for planned in todo if not self.is_done(planned)]:
            click.echo(f"{len(left):,} runs are left to another process, which is at them: {', '.join(left)}")
        for path in self.write_tables():
            click.echo(f"{path}\n{path.read_text(encoding='utf-8')}")
        write_gaps_figure(self._config.records, self._config.out / "tables")

    def make(self, runs: Sequence[Planned]) -> None:
        """Train, evaluate and record, one run after the other; what another process is at, or has finished, is passed over.

        Raises:
            UserError: If one cannot be made; those before it stand.
        """
        for number, planned in enumerate(runs):
            with claim(self.run_dir(planned)) as mine:
                if not mine or self.is_done(planned):
                    continue
                click.echo(f"[{number + 1}/{len(runs)}] {planned.name}")
                self.make_run(planned)
                self._record(planned)
            # After each run: who looks in before the end sees what there is.
            self.write_tables()

    def make_run(self, planned: Planned) -> None:
        """Train and evaluate one run, as far as it is not; its graph is there.

        Raises:
            UserError: If it cannot be made.
        """
        self._train(planned)
        self._evaluate(planned)

    def write_tables(self) -> list[Path]:
        """Write the tables of the records that there are; returns the Markdown files."""
        return write_tables(self._config.records, self._config.out / "tables")

    def _build(self, graph: str) -> None:
        """Make a graph, and the images that it is about, as far as they are missing."""
        if graph == SCENES:
            prepare_scenes(self._data.folder)
        build_graph(graph, self._data, self._graphs, self._encoder(graph))

    def _encoder(self, graph: str) -> str:
        second = self._config.second_encoder
        return second if second is not None and graph == SECOND else self._config.encoder

    @property
    def _graphs(self) -> Path:
        return self._config.out / "graphs"

    def _train(self, planned: Planned) -> None:
        from pipelines.common import tell
        from train.run.checkpoint import WEIGHTS
        from train.run.loop import train

        run_dir = self.run_dir(planned)
        if (run_dir / WEIGHTS).exists():
            _require(run_dir, self.requested(planned))
            click.echo(f"  {run_dir}: was trained before")
            return
        data = self._images(self.train_config(planned))
        config = self.train_config(planned, len(data.store))
        tell(train(config, run_dir, data=data, label=planned.name), indent="  ")

    def train_config(self, planned: Planned, images: int | None = None) -> TrainConfig:
        """Return the configuration of a run that sees its budget of images, however many there are."""
        from train.config import TrainConfig

        graph = planned.arm.graph
        options = {**self.requested(planned), "graph_dir": str(self._graphs / graph), "data": str(self._data.images(graph))}
        if images is not None:
            options["epochs"] = math.ceil(options["steps"] / max(1, images // self._config.batch_size))
        return TrainConfig(**options)

    def requested(self, planned: Planned) -> dict[str, Any]:
        """Return the options of a run, but for where its graph and its images are."""
        arm = planned.arm
        return {
            **COMMON,
            "model": self._config.model,
            "image_size": self._config.image_size,
            "objective": arm.objective,
            "image_column": "image",
            "id_column": "sample_id" if arm.graph == SCENES else "file",
            "batch_size": self._config.batch_size,
            "steps": self._config.steps(arm),
            "seed": planned.seed,
            **_absent(arm),
            **arm.options,
        }

    def named(self, planned: Planned) -> dict[str, Any]:
        """Return graph and images of a run by their names, which are the same everywhere."""
        graph = f"{Path(self._encoder(planned.arm.graph)).name}/{planned.arm.graph}"
        return {"graph_dir": graph, "data": self._data.images(planned.arm.graph).name}

    def _images(self, config: TrainConfig) -> TrainingData:
        """The images joined to a run's graph; decoded for the first run of a data set, shared by the others."""
        from train.data.prepare import load_data, open_data

        opened = open_data(config)
        if config.data not in self._loaded:
            self._loaded = {config.data: load_data(opened)}
            return self._loaded[config.data]
        held = self._loaded[config.data]
        assert opened.joined is not None
        assert held.joined is not None
        if not np.array_equal(opened.joined.indices, held.joined.indices):
            raise ArtifactMismatch(f"{config.graph_dir}: knows other images than the graphs before it. Remove it and run again.")
        return replace(held, opened=replace(opened, config=replace(opened.config, load_size=held.opened.config.load_size)))

    def _evaluate(self, planned: Planned) -> None:
        from train.evaluate.options import TAKES, EvalOptions
        from train.evaluate.run import evaluate_run

        run_dir = self.run_dir(planned)
        if (run_dir / EVAL_FILE).exists():
            return
        # The same net for all objectives of a seed: once is enough.
        untrained = planned.arm.objective == "simclr"
        # Probes are thousands of small kernels, which on a GPU that others train on take minutes; its machine's cores are idle.
        device = "auto" if self._config.jobs == 1 else "cpu"
        if planned.arm.graph == SCENES:
            scenes, held_out = str(self._data.scenes), str(self._data.scenes_val)
            options = EvalOptions(
                data=held_out,
                train_data=scenes,
                label_columns=COLUMNS,
                protocols=("knn", "linear"),
                untrained=untrained,
                device=device,
            )
        else:
            protocols = self._config.protocols
            taken: dict[str, Any] = {"superclass_column": "coarse", "hierarchy": str(self._data.distances)}
            options = EvalOptions(
                data=str(self._data.val),
                train_data=str(self._data.known),
                label_columns=("name",),
                held_out=str(self._data.held_out),
                protocols=protocols,
                untrained=untrained,
                device=device,
                **{name: value for name, value in taken.items() if not protocols or TAKES[name] in protocols},
            )
        click.echo("  " + evaluate_run(run_dir, options).summary().replace("\n", "\n  "))

    def _record(self, planned: Planned) -> None:
        """Keep how a run was made, and its scores; these last, because they say that all is there."""
        run_dir, record = self.run_dir(planned), self.record_dir(planned)
        made = read_run_config(run_dir)
        # Seeds of one arm stay one arm, whichever machine trained them in whichever precision.
        anywhere = replace(made, **self.named(planned), device="auto", precision="auto")
        write_text(record / CONFIG_FILE, f"# Trained in {made.precision}.\n{anywhere.to_toml()}")
        scores = read_scores(run_dir / EVAL_FILE)
        write_json(record / EVAL_FILE, {name: scores[name] for name in _RECORDED})

    def check(self) -> None:
        """Compare all records, which tables are made of, with what their runs would be today.

        Raises:
            ArtifactMismatch: Naming the first difference.
        """
        for arm in ARMS:
            for path in sorted((self._config.records / arm.name).glob(f"seed-*/{EVAL_FILE}")):
                planned = Planned(arm, int(path.parent.name.removeprefix("seed-")))
                _require(path.parent, {**self.requested(planned), **self.named(planned)})


def _make(config: StudyConfig, data: StudyData, runs: Sequence[Planned]) -> None:
    """What each of several processes does."""
    Study(config, data).make(runs)


def _require(run_dir: Path, requested: Mapping[str, Any]) -> None:
    """Refuse a run that was made with other options than are asked for."""
    made = read_run_config(run_dir)
    # How often a checkpoint is written, say, changes no number.
    loose = {item.name for item in fields(made) if item.metadata.get("loose")} - {"graph_dir", "data"}
    for name, value in requested.items():
        if (found := getattr(made, name)) != value and name not in loose:
            raise ArtifactMismatch(
                f"{run_dir}: was made with {name} {found!r}, and {value!r} is asked for: these runs do not compare. Give the "
                "--budget, --batch-size, --model, --image-size and --encoder of before, or another --out and --records."
            )


def _absent(arm: Arm) -> dict[str, Any]:
    # Imported graphs have no sketch; they are complete, so that no pair is ever absent.
    return {"absent": 0.0} if arm.objective == "xclr" and is_imported(arm.graph) else {}
