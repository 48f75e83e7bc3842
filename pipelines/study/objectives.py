"""`python -m pipelines.study.objectives --data FOLDER`: one training of each objective, beside its twin without the graph.

The study's data, net and quarter of its budget; every arm with one seed before the next seed. A run's record is a line of RECORDS,
written when the run is evaluated; killed and started again, the same command goes on. `--table` prints what is recorded.
An example, not a claim: no option was tuned, and what suits one objective may not suit another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from graphbuild.errors import OptionError
from graphbuild.system.options import DEFAULT_ENCODER, FILE, FOLDER, HELP
from graphbuild.system.process import run_cli
from pipelines.study.confirm import flat
from pipelines.study.data import StudyData, prepare_data
from pipelines.study.execute import Study, StudyConfig
from pipelines.study.graphs import build_graph, class_similarities, import_similarities
from pipelines.study.jobs import claim
from pipelines.study.plan import PROMPTS, Arm, Planned
from pipelines.study.records import append_record, recorded, require_same, result_of, scores_of
from train.evaluate.intervals import mean_interval

if TYPE_CHECKING:
    from train.config import TrainConfig

BUDGET = 80_000
"""Images that a run sees: a quarter of the study's."""
MEASURES: Mapping[str, str] = {"knn_top1": "kNN", "linear_top1": "linear probe", "held_out_knn": "held-out kNN"}
_FLAT, _OTHER = "prompts-flat", "definitions"
"""A graph with one similarity for all other classes; and the second graph, where there are two."""
_REPULSIONS = ("decoupled", "decoupled-weighted", "hard", "mixed")


class Trial(NamedTuple):
    """One way to train, and what it is set beside."""

    arm: Arm
    twin: str | None = None
    """Name of the arm without the graph, or with a graph that says nothing."""
    beside: str | None = None
    """How a second graph is used: `mixed` into the target, or with a projector of its own (`heads`)."""


def _trial(
    name: str, objective: str, twin: str | None = None, *, graph: str = PROMPTS, beside: str | None = None, **options: Any
) -> Trial:
    return Trial(Arm(name=name, group="objectives", objective=objective, graph=graph, options=options), twin, beside)


def _trials() -> list[Trial]:
    repelled = [
        trial
        for name in _REPULSIONS
        for trial in (
            _trial(f"simclr-{name}", "simclr", negatives=name),
            _trial(f"xclr-{name}", "xclr", f"simclr-{name}", negatives=name),
        )
    ]
    settings: Mapping[str, dict[str, Any]] = {"simsiam": {"projector_bn": True}}
    pulled = [
        _trial(f"{name}-{kind}", name, f"{name}-own" if kind == "graph" else None, positives=kind, **settings.get(name, {}))
        for name in ("vicreg", "barlow", "simsiam", "lejepa")
        for kind in ("own", "graph")
    ]
    return [
        _trial("simclr", "simclr"),
        _trial("supcon", "supcon", label_column="name"),
        _trial("xclr-flat", "xclr", graph=_FLAT),
        _trial("xclr", "xclr", "xclr-flat"),
        *repelled,
        _trial("simclr-graph", "simclr", "simclr", negatives="graph"),
        _trial("xclr-graph", "xclr", "xclr", negatives="graph"),
        *pulled,
        _trial("rank-flat", "rank", graph=_FLAT),
        _trial("rank", "rank", "rank-flat"),
        # Of a flat graph only the own class is as near as that, which is SupCon.
        _trial("rank-near", "rank", "supcon", min_similarity=0.5),
        _trial("xclr-two-graphs", "xclr", "xclr", beside="mixed"),
        _trial("xclr-two-heads", "xclr", "xclr", beside="heads"),
    ]


TRIALS: Mapping[str, Trial] = {trial.arm.name: trial for trial in _trials()}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedConfig:
    """Where runs are made and recorded, and how long they are."""

    source: Path
    """Holds tiny_imagenet/ and classes/."""
    out: Path
    records: Path
    """A file of JSON lines."""
    budget: int = BUDGET
    batch_size: int = 256
    encoder: str = DEFAULT_ENCODER

    def studied(self) -> StudyConfig:
        """Return how the study makes such runs, and by which protocols it scores them."""
        return StudyConfig(
            out=self.out,
            budget=self.budget,
            batch_size=self.batch_size,
            encoder=self.encoder,
            protocols=("knn", "linear", "few-shot"),
            records=self.records.parent,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialsConfig(RecordedConfig):
    """Which runs, and how many of each."""

    names: tuple[str, ...] = tuple(TRIALS)
    seeds: int = 3


class Trials(Study):
    """The runs of the table, made as those of the study are."""

    def train_config(self, planned: Planned, images: int | None = None) -> TrainConfig:
        """Return the configuration of a run, with a second graph where the arm has one."""
        config = super().train_config(planned, images)
        first, beside = str(config.graph_dir), TRIALS[planned.arm.name].beside
        other = str(Path(first).with_name(_OTHER))
        if beside == "heads":
            return replace(config, head=(f"{planned.arm.graph}={first}:0.5", f"{_OTHER}={other}:0.5"))
        return replace(config, more_graphs=(other,)) if beside == "mixed" else config


def execute(config: TrialsConfig) -> None:
    """Make and record every run that has no record.

    Raises:
        ArtifactMismatch: If a record is of a run that was made otherwise.
        UserError: If a run cannot be made; those before it stand.
    """
    data = prepare_data(config.source, config.out)
    _build_graphs(config, data)
    make_recorded(Trials(config.studied(), data), planned_runs(config), config.records, TRIALS)


def make_recorded(study: Study, runs: Sequence[Planned], records: Path, trials: Mapping[str, Trial]) -> None:
    """Make each run that has no record, and add one.

    Args:
        study: Makes them; their graphs are there.
        runs: In this order.
        records: The file.
        trials: What is known of their arms, by name.

    Raises:
        ArtifactMismatch: If a record is of a run that was made otherwise.
        UserError: If a run cannot be made; those before it stand.
    """
    for planned in runs:
        with claim(study.run_dir(planned)) as mine:
            record = recorded(records, "seed").get((planned.arm.name, planned.seed))
            options = {**study.requested(planned), **study.named(planned), "beside": trials[planned.arm.name].beside}
            if record is not None:
                require_same(records, f"{planned.arm.name}, seed {planned.seed}", record, options)
            elif mine:
                click.echo(f"{planned.name}")
                study.make_run(planned)
                append_record(records, _record(planned, study.run_dir(planned), options))


def planned_runs(config: TrialsConfig) -> list[Planned]:
    """Return the runs in the order in which they are made."""
    return [Planned(TRIALS[name].arm, seed) for seed in range(config.seeds) for name in config.names]


def table(path: Path, trials: Mapping[str, Trial] = TRIALS) -> str:
    """Return what is recorded, in percent: means over seeds with 95 % intervals, and differences from the twin, paired by seed."""
    found = recorded(path, "seed")
    heads = [cell for name in MEASURES.values() for cell in (name, "over twin")]
    lines = [f"| arm | seeds | twin | {' | '.join(heads)} |", f"|---|---:|---|{'---:|' * len(heads)}"]
    for name, trial in trials.items():
        own = {seed: line["scores"] for (arm, seed), line in found.items() if arm == name}
        other = {seed: line["scores"] for (arm, seed), line in found.items() if arm == trial.twin}
        shared = sorted(own.keys() & other.keys())
        cells = []
        for measure in MEASURES:
            cells += [_shown([scores[measure] for scores in own.values()])]
            cells += [_shown([own[seed][measure] - other[seed][measure] for seed in shared], sign="+")]
        if own:
            lines.append(f"| {name} | {len(own)} | {trial.twin or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    mean, half = mean_interval(values)
    return f"{100 * mean:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _build_graphs(config: TrialsConfig, data: StudyData) -> None:
    folder = config.out / "graphs"
    build_graph(PROMPTS, data, folder, config.encoder)
    import_similarities(folder / _FLAT, flat(class_similarities(PROMPTS, data, folder, config.encoder)), data)
    if any(TRIALS[name].beside for name in config.names):
        build_graph(_OTHER, data, folder, config.encoder)


def _record(planned: Planned, run_dir: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    scores = scores_of(run_dir)
    kept = {name: scores[name] for name in MEASURES}
    return {"arm": planned.arm.name, "seed": planned.seed, **result_of(run_dir, kept, options)}


records_option = click.option(
    "--records",
    type=FILE,
    default=None,
    help="File of records, a line a run; runs that it holds are not made again (default: OUT/records.jsonl).",
)
budget_option = click.option("--budget", type=click.IntRange(min=1), default=BUDGET, show_default=True, help="Images a run sees.")
table_option = click.option("--table", "as_table", is_flag=True, help="Print what is recorded, and make nothing.")


@click.command(context_settings=HELP)
@click.option("--data", "source", type=FOLDER, help="Folder of tiny_imagenet/ and classes/.")
@click.option("--out", type=FOLDER, default=Path("runs/objectives"), show_default=True)
@records_option
@click.option("--only", multiple=True, type=click.Choice(tuple(TRIALS)), help="Arms to run; repeatable (default: all).")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Of every arm.")
@budget_option
@table_option
def objectives(
    source: Path | None, out: Path, records: Path | None, only: tuple[str, ...], seeds: int, budget: int, as_table: bool
) -> None:
    """Train each objective and its twin, and evaluate them; those that have a record are not made again."""
    file = records or out / "records.jsonl"
    if not as_table:
        if source is None:
            raise OptionError("--data names the folder of tiny_imagenet/ and classes/: give it, or --table.")
        names = only or tuple(TRIALS)
        execute(TrialsConfig(source=source, out=out, records=file, names=names, seeds=seeds, budget=budget))
    click.echo(table(file))


if __name__ == "__main__":
    run_cli(objectives, debug_variable="TRAIN_DEBUG")
