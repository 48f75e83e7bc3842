"""The `train` command line: parse, one call, print. Heavy modules are imported by the command that needs them.

The options of `train run` are made from the fields of `TrainConfig`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from graphbuild.errors import visible
from graphbuild.store.outputs import require_replaceable
from graphbuild.store.reading import reading_options
from graphbuild.system.answers import answer
from graphbuild.system.options import FILE, FOLDER, HELP, FiniteRange, json_option, replace_option, upload_options
from graphbuild.system.process import run_cli
from train.config import load_config
from train.config.command_line import GroupedCommand, config_options
from train.evaluate.options import PROTOCOLS, EvalOptions

runs_argument = partial(click.argument, "runs", metavar="RUN...", nargs=-1, required=True, type=FOLDER)


@click.group(context_settings={**HELP, "max_content_width": 110})
@click.version_option(package_name="xclr-graph")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Train image encoders on a neighbour graph of their captions.

    Start with `train run`, then `train eval`, then `train report`.
    """


@cli.command(cls=GroupedCommand)
@click.option(
    "--config", "config_file", type=FILE, default=None, help="A TOML file such as a run's config.toml; options go before it."
)
@config_options()
@click.option(
    "--run-dir", type=FOLDER, default=None, help="The run's folder (default: runs/<objective>-<n>); a run that was stopped goes on."
)
@click.option("--overwrite", is_flag=True, help="Start again where the folder holds a run.")
@reading_options
@json_option
def run(config_file: Path | None, run_dir: Path | None, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Train an encoder, or go on with a run that was stopped."""
    config = load_config(config_file, {name: value for name, value in options.items() if value not in (None, ())})
    from train.run.loop import train

    _answer(train(config, run_dir, overwrite=overwrite), as_json)


@cli.command("eval")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path), help="The run's folder, or an encoder's .safetensors.")
@click.option(
    "--data", default=None, help="Images to classify (default: those held out of the training, or a validation set that is found)."
)
@click.option("--train-data", default=None, help="Images to learn from (default: those that the run was trained on).")
@click.option("--val-ids", default=None, metavar="FILE", help="Ids of images of the run's source to classify, one a line.")
@click.option("--val-fraction", type=FiniteRange(0, 1), default=0.0, help="Share of the run's images to classify.")
@click.option("--allow-overlap", is_flag=True, help="Go on although images to classify are among those to learn from.")
@click.option("--label-column", default="", metavar="A,B", help="Columns of the classes, separated by commas.")
@click.option(
    "--protocol",
    "protocols",
    type=click.Choice(PROTOCOLS),
    multiple=True,
    help="What is measured; repeatable (default: all that the data and files given allow).",
)
@click.option("--superclass-column", default=None, help="Column of the superclasses, for retrieval.")
@click.option("--held-out", default=None, metavar="FILE", help="Classes, one a line, that few-shot alone is scored on.")
@click.option("--hierarchy", default=None, metavar="FILE", help="Distances between classes, for severity: .npz, or .tsv of paths.")
@click.option("--templates", default=None, metavar="FILE", help='JSON list of prompts for zero-shot (default: "a photo of a {}").')
@click.option("--real-labels", default=None, metavar="FILE", help="ImageNet-Real's real.json.")
@click.option("--imagenet9", default=None, metavar="FOLDER", help="The backgrounds challenge: original/, mixed_same/, mixed_rand/.")
@click.option("--in9-map", default=None, metavar="FILE", help="Its in_to_in9.json (default: in that folder, or beside it).")
@click.option("--objectnet", default=None, metavar="FOLDER", help="ObjectNet: images/ and mappings/.")
@click.option("--mit-states", default=None, metavar="FOLDER", help="MIT-States: images/.")
@click.option("--no-cache", is_flag=True, help="Neither keep features beside the run nor use those that are there.")
@reading_options
@json_option
def evaluate(run: Path, label_column: str, no_cache: bool, as_json: bool, **options: Any) -> None:
    """Score frozen features by published protocols, with chance and the untrained net beside them."""
    from train.evaluate.run import evaluate_run

    columns = tuple(name for name in label_column.split(",") if name)
    _answer(evaluate_run(run, EvalOptions(label_columns=columns, cache=not no_cache, **options)), as_json)


@cli.command()
@runs_argument(help="Folders of runs; pictures come from the first one's images.")
@click.option(
    "--out",
    type=FILE,
    default=None,
    help="The file to write (default: report.html in the folder of a single run, else beside the first one's).",
)
@click.option("--data", default=None, help="Held-out images for the neighbours (default: those that the graph or eval.json names).")
@replace_option
@reading_options
@json_option
def report(runs: tuple[Path, ...], out: Path | None, data: str | None, overwrite: bool, as_json: bool) -> None:
    """Write one HTML file on finished runs: conditions, scores, curves, similarities, nearest neighbours."""
    from train.results.report.write import write_report

    place = out or (runs[0] if len(runs) == 1 else runs[0].parent) / "report.html"
    _answer(write_report(runs, place, data=data, overwrite=overwrite), as_json)


@cli.command()
@config_options("graph_dir", "data", "image_column", "id_column", "chunk", "neighbor_ranks", "allow_missing")
@click.option("--out", required=True, type=FOLDER, help="Folder for the shards.")
@click.option("--shard-size", type=click.IntRange(1, 999_999), default=10_000, show_default=True, help="Images a shard.")
@click.option("--memory-gb", type=FiniteRange(min=0.1), default=4.0, show_default=True, help="Images held at once.")
@reading_options
@json_option
def reshard(out: Path, shard_size: int, memory_gb: float, as_json: bool, **options: Any) -> None:
    """Write images as webdataset shards in the order of a graph's partition, neighbours together."""
    config = load_config(None, {name: value for name, value in options.items() if value is not None})
    from train.data.reshard import reshard as write

    _answer(write(config, out, shard_size=shard_size, memory_gb=memory_gb), as_json)


@cli.command()
@runs_argument(help="Folders of evaluated runs; those that differ in their seed alone are one row.")
@click.option("--measure", "measures", multiple=True, help="A score of eval.json; repeatable (default: the usual ones).")
@click.option("--baseline", default=None, help="The row that the others are set against (default: the first).")
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "json"]), default="md", show_default=True, help="How the table is written."
)
@click.option("--differences", is_flag=True, help="Differences from the baseline in place of means; csv and json hold both.")
@click.option("--holm", is_flag=True, help="Correct p values for all differences of the table, by Holm's method.")
@click.option(
    "--equivalence",
    metavar="POINTS",
    type=FiniteRange(min=0, min_open=True),
    default=None,
    help="Mark differences whose 90 % interval lies within so many points: none above that.",
)
@click.option("--figure", type=FILE, default=None, help="Draw accuracy against samples per class into this .png, .svg or .pdf.")
@click.option(
    "--matrices",
    type=FILE,
    default=None,
    help="Draw similarities of texts and those that each row's first run learned into this .png, .svg or .pdf.",
)
@replace_option
@reading_options
def compare(
    runs: tuple[Path, ...],
    measures: tuple[str, ...],
    baseline: str | None,
    form: str,
    differences: bool,
    holm: bool,
    equivalence: float | None,
    figure: Path | None,
    matrices: Path | None,
    overwrite: bool,
) -> None:
    """Show means and 95 % intervals over seeds, paired where seeds match, with differences that are not significant marked."""
    from train.results.compare.table import compare

    for path in (figure, matrices):
        if path is not None:
            require_replaceable(path, overwrite=overwrite)
    found = compare(runs, measures=measures, baseline=baseline, holm=holm, equivalence=equivalence)
    click.echo(visible(found.write(form, differences=differences)))
    # A table for a program has no room for remarks.
    for note in found.notes if form == "csv" else ():
        click.echo(visible(note), err=True)
    if figure is not None:
        from train.results.compare.figure import write_figure

        write_figure(found.arms, figure)
        click.echo(f"{figure}: accuracy against samples per class", err=True)
    if matrices is not None:
        from train.results.compare.matrices import write_matrices

        arms = found.arms
        write_matrices([arm.first for arm in arms], [arm.name for arm in arms], matrices, column=found.measures[0][0])
        click.echo(f"{matrices}: similarities of texts, and as learned", err=True)


@cli.command()
@click.argument("run", metavar="RUN", type=FOLDER, help="The run's folder.")
@click.option("--out", type=FOLDER, default=None, help="Folder to write to (default: RUN/export).")
@click.option(
    "--features", type=FILE, default=None, help="Write the features of all images to this Parquet file, too: sample_id, feature."
)
@click.option("--data", default=None, help="Images of --features (default: those of the run).")
@click.option("--license", "stated_license", default=None, metavar="NAME", help="Licence of the weights, for the card.")
@upload_options
@replace_option
@reading_options
@json_option
def export(run: Path, out: Path | None, repo: str | None, private: bool, as_json: bool, **options: Any) -> None:
    """Write the backbone as torchvision and timm load it, with a model card; image features and an upload on request."""
    from graphbuild.system.cards import Repository
    from train.results.export import export_run

    repository = None if repo is None else Repository(name=repo, kind="model", private=private)
    _answer(export_run(run, out or run / "export", repository=repository, **options), as_json)


@cli.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=FOLDER, help="Folders of runs.")
@json_option
def status(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show where runs stand, and how to go on: those named, else all under runs/."""
    from train.results.status import runs_status

    _answer(runs_status(runs), as_json)


def _answer(result: Any, as_json: bool) -> None:
    """Print a result; one process of a job speaks."""
    from graphbuild.system.progress import is_main_process

    if is_main_process():
        answer(result, as_json)


def main() -> None:
    """Run the console script."""
    run_cli(cli, debug_variable="TRAIN_DEBUG")
