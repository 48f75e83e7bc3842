"""Making the runs of a study: graphs first, then each run trained and evaluated; what is finished is not done again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from graphbuild.errors import ArtifactMismatch
from pipelines.study.data import StudyData
from pipelines.study.graphs import build_graph
from pipelines.study.plan import COMMON, SCENES, Arm, Planned
from pipelines.study.scenes import COLUMNS, prepare_scenes
from pipelines.study.tables import write_tables

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.data.prepare import TrainingData


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What holds for all runs."""

    out: Path
    budget: int
    """Images that every run sees."""
    batch_size: int
    encoder: str


class Study:
    """A study's folder: OUT/data, OUT/graphs, and a run in each OUT/runs/ARM/seed-N."""

    def __init__(self, config: StudyConfig, data: StudyData) -> None:
        self._config, self._data = config, data
        self._loaded: dict[str | None, TrainingData] = {}
        """The decoded images of one data set, which its runs share."""

    def run_dir(self, planned: Planned) -> Path:
        """The folder of a run."""
        return self._config.out / "runs" / planned.name

    def execute(self, runs: Sequence[Planned]) -> None:
        """Make all of them, one after the other.

        Raises:
            UserError: If one cannot be made; those before it stand.
        """
        tables: list[Path] = []
        for number, planned in enumerate(runs):
            click.echo(f"[{number + 1}/{len(runs)}] {planned.name}")
            self._train(planned)
            self._evaluate(planned)
            # After each run: who looks in before the end sees what there is.
            tables = write_tables(self._config.out)
        for path in tables:
            click.echo(f"{path}\n{path.read_text(encoding='utf-8')}")

    def _train(self, planned: Planned) -> None:
        from train.checkpoint import WEIGHTS
        from train.loop import train

        run_dir = self.run_dir(planned)
        if (run_dir / WEIGHTS).exists():
            click.echo(f"  {run_dir}: was finished before")
            return
        if planned.arm.graph == SCENES:
            prepare_scenes(self._data.folder)
        graph_dir = build_graph(planned.arm.graph, self._data, self._config.out / "graphs", self._config.encoder)
        data = self._images(self.train_config(planned, graph_dir))
        config = self.train_config(planned, graph_dir, len(data.store))
        click.echo("  " + train(config, run_dir, data=data, label=planned.name).summary())

    def train_config(self, planned: Planned, graph_dir: Path, images: int | None = None) -> TrainConfig:
        """The configuration of a run that sees the budget of images, however many there are."""
        from train.config import TrainConfig

        arm, batch_size = planned.arm, self._config.batch_size
        options: dict[str, Any] = {
            **COMMON,
            "objective": arm.objective,
            "graph_dir": str(graph_dir),
            "data": str(self._data.images(arm.graph)),
            "image_column": "image",
            "id_column": "sample_id" if arm.graph == SCENES else "file",
            "batch_size": batch_size,
            "seed": planned.seed,
            **_absent(arm),
            **arm.options,
        }
        if images is not None:
            steps = max(1, self._config.budget // batch_size)
            options |= {"steps": steps, "epochs": math.ceil(steps / max(1, images // batch_size))}
        return TrainConfig(**options)

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
        from train.evaluate.options import EvalOptions
        from train.evaluate.run import EVAL_FILE, evaluate_run

        run_dir = self.run_dir(planned)
        if (run_dir / EVAL_FILE).exists():
            return
        # The same net for all objectives of a seed: once is enough.
        untrained = planned.arm.objective == "simclr"
        if planned.arm.graph == SCENES:
            scenes, asked = str(self._data.scenes), str(self._data.scenes_val)
            options = EvalOptions(
                data=asked, train_data=scenes, label_columns=COLUMNS, protocols=("knn", "linear"), untrained=untrained
            )
        else:
            options = EvalOptions(
                data=str(self._data.val),
                train_data=str(self._data.known),
                label_columns=("name",),
                superclass_column="coarse",
                held_out=str(self._data.held_out),
                hierarchy=str(self._data.distances),
                untrained=untrained,
            )
        click.echo("  " + evaluate_run(run_dir, options).summary().replace("\n", "\n  "))


def _absent(arm: Arm) -> dict[str, Any]:
    # Imported graphs have no sketch; they are complete, so that no pair is ever absent.
    return {"absent": 0.0} if arm.objective == "xclr" and ("+" in arm.graph or arm.graph == "wordnet") else {}
