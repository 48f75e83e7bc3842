"""What the large recipes share: a command with --dry-run, a graph, a check of everything, a training that can be stopped.

The configuration is written down first, so that `train run --config` (under torchrun, on several GPUs) repeats it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click

from graphbuild.errors import OptionError, SourceError, UserError
from graphbuild.system.options import DEFAULT_ENCODER, FOLDER, HELP

CONFIG = "recipe.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where a data set's parts are."""

    train: str
    val: str | None = None
    """Images with labels to evaluate on."""
    learn: str | None = None
    """Images with labels that a probe learns from; None: those trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A data set, its graph, and how an encoder is trained on it."""

    name: str
    about: str
    """First line of the help."""
    needs: str
    """What --data takes."""
    layout: Callable[[Path], Layout]
    """Finds the parts in the folder; a UserError if one is missing."""
    embed: Callable[[Layout], dict[str, Any]]
    """Fields of `EmbedConfig`."""
    k: Literal["all"] | int
    """Neighbours a text, as `graphbuild knn --k` takes it."""
    train: Mapping[str, Any]
    """Fields of `TrainConfig`."""
    label: str
    """Column of the classes, for evaluation."""
    own_labels: bool
    """Whether the data themselves hold the images with labels; else --imagenet names them."""
    defined: Mapping[str, Any] | None = None
    """Fields of `TrainConfig` that go with --definitions; None: its texts are no classes of WordNet, and the option is left out."""


def command(recipe: Recipe) -> click.Command:
    """Return the command line of a recipe."""

    graphs, runs = Path("graphs") / recipe.name, Path("runs") / recipe.name

    @click.command(context_settings=HELP, help=recipe.about)
    @click.option("--data", "folder", type=FOLDER, required=True, help=recipe.needs)
    @click.option("--graph-dir", type=FOLDER, default=graphs, show_default=True, help="The graph; built where it is missing.")
    @click.option("--out", type=FOLDER, default=runs, show_default=True, help="Run, configuration and report.")
    @click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Sentence Transformer of the captions.")
    @click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set an option of `train run`; repeatable.")
    @click.option("--dry-run", is_flag=True, help="Check data, graph, memory, disk and time; build and train nothing.")
    @click.option("--timed-steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps that --dry-run times.")
    def run(
        folder: Path,
        graph_dir: Path,
        out: Path,
        encoder: str,
        settings: Sequence[str],
        dry_run: bool,
        timed_steps: int,
        imagenet: Path | None = None,
        definitions: str | None = None,
        **sets: str | None,
    ) -> None:
        layout = recipe.layout(folder)
        if imagenet is not None:
            judged = imagenet_layout(imagenet)
            layout = replace(layout, val=judged.val, learn=judged.train)
        given = {name: path for name, path in sets.items() if path is not None}
        if given and layout.val is None:
            option = next(iter(given)).replace("_", "-")
            raise OptionError(f"--{option} needs --imagenet: a probe learns its classes first.")
        train = {**recipe.train, **((recipe.defined or {}) if definitions else {}), **parse_settings(settings)}
        options = {**train, "data": layout.train, "graph_dir": str(graph_dir)}
        if dry_run:
            _dry_run(options, out, timed_steps)
        else:
            embed = {**recipe.embed(layout), "encoder": encoder, "definitions": definitions}
            _run(recipe, layout, options, graph_dir, out, embed, given)

    run.params.extend(_own_options(recipe))
    return run


def _own_options(recipe: Recipe) -> list[click.Parameter]:
    """Options that not every recipe has."""
    options = {option: (click.Path(exists=True), about) for option, about in _SETS.items()}
    if not recipe.own_labels:
        options = {"--imagenet": (FOLDER, "ImageNet's folder of train/ and val/, to score."), **options}
    if recipe.defined is not None:
        values = ", ".join(f"{name} {value}" for name, value in recipe.defined.items())
        about = (
            f"WordNet 3.0's data.noun, or its folder: texts are names with definitions, and {values} unless --set says otherwise."
        )
        options = {"--definitions": (click.Path(exists=True), about), **options}
    return [click.Option([option], type=kind, help=about) for option, (kind, about) in options.items()]


_SETS = {
    "--real-labels": "ImageNet-Real's real.json, to score.",
    "--imagenet9": "Folder of the backgrounds challenge (ImageNet-9), to score.",
    "--objectnet": "ObjectNet's folder, to score.",
    "--mit-states": "MIT-States' folder, to score.",
}


def imagenet_layout(folder: Path) -> Layout:
    """Return ImageNet's folders train and val.

    Raises:
        SourceError: If one is missing.
    """
    for name in ("train", "val"):
        if not (folder / name).is_dir():
            raise SourceError(f"{folder / name}: no such folder. Name the folder of train/ and val/, with their wnid folders.")
    return Layout(train=str(folder / "train"), val=str(folder / "val"))


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` of options of `train run`; values as in TOML, quotes around text left out.

    Raises:
        OptionError: If an option is unknown, or there is no `=`.
    """
    from train.config import field_types

    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or name not in field_types():
            raise OptionError(f"--set {setting!r}: write NAME=VALUE, with an option of `train run`, such as epochs=10.")
        try:
            values[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = text.strip()
    return values


def _dry_run(options: Mapping[str, Any], out: Path, timed_steps: int) -> None:
    from pipelines.dry_run import dry_run
    from train.config import TrainConfig

    found = dry_run(TrainConfig(**options), out, timed_steps=timed_steps)
    click.echo(found.summary())
    if found.problems:
        raise UserError("the dry run found problems, listed above. Nothing was trained.")


def _run(
    recipe: Recipe,
    layout: Layout,
    options: Mapping[str, Any],
    graph_dir: Path,
    out: Path,
    embed: Mapping[str, Any],
    sets: Mapping[str, str],
) -> None:
    from graphbuild.embed.build import build_embeddings
    from graphbuild.embed.config import EmbedConfig
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn
    from graphbuild.store.atomic import write_text
    from pipelines.common import Steps, evaluate_once, score_headings, score_rows, tell
    from pipelines.paper_table import paper_table
    from train.config import TrainConfig
    from train.results.compare.table import markdown_table
    from train.results.report.write import write_report
    from train.run.loop import train

    steps = Steps(4)
    steps.begin("graph")
    tell(build_embeddings(graph_dir, EmbedConfig(**embed)))
    tell(build_knn(graph_dir, KnnConfig(k=recipe.k)))
    config, run_dir = TrainConfig(**options), out / str(options.get("objective", "xclr"))
    write_text(out / CONFIG, config.to_toml())
    steps.begin("train")
    click.echo(f"the same on several GPUs: torchrun --nproc-per-node N -m train run --config {out / CONFIG} --run-dir {run_dir}")
    tell(train(config, run_dir))
    steps.begin("scores" if layout.val else "scores: none, because there are no labels; give --imagenet, or see `train eval`")
    if layout.val:
        columns = (recipe.label,)
        found = evaluate_once(run_dir, data=layout.val, columns=columns, untrained=True, train_data=layout.learn, sets=sets)
        click.echo(markdown_table(score_headings(columns), score_rows({run_dir.name: found}, columns)))
    steps.begin("report")
    tell(write_report([run_dir], out / "report.html", data=layout.val))
    if layout.val:
        click.echo(f"\nThe paper's measures (arXiv 2407.18134), of the runs in {out}:\n\n{paper_table(out, recipe.label)}")
