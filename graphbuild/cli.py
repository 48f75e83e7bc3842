"""The `graphbuild` command line: parse, one call, print. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graphbuild.errors import OptionError, run_cli
from graphbuild.store import schemas
from graphbuild.store.manifest import find_graph_dir
from graphbuild.system.answers import FORMS, Form

graph_dir_option = click.option(
    "--graph-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The graph directory (default: $GRAPHBUILD_DIR, else the only graph under graphs/).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=None,
    help="Dask worker processes on this machine; 0 works in this process (default: what is fastest, by a short calibration).",
)
scheduler_option = click.option(
    "--scheduler", default=None, metavar="ADDRESS", help="A running Dask scheduler, such as tcp://10.0.0.1:8786."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Build again what was built with other options.")

_HEALTH_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option("--batch-size", type=click.IntRange(min=2), default=1024, show_default=True, help="For the hit rate and target."),
    click.option("--tau-s", type=click.FloatRange(min=0, min_open=True), default=0.1, show_default=True, help="Of the target."),
    click.option(
        "--label-column", "label_columns", multiple=True, help="A sample column whose agreement is measured; may be repeated."
    ),
    click.option("--group-column", default=None, help="A sample column of what belongs together, such as captions of a picture."),
    click.option(
        "--wordnet",
        type=click.Path(dir_okay=False, path_type=Path),
        default=None,
        help="TSV of wnid and hypernym_path, or NPZ of wnids and dist; for samples with a wnid.",
    ),
    click.option("--absent", type=float, default=None, help="Similarity of pairs not stored, for a graph without a sketch."),
)


def health_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of measuring a graph."""
    for option in reversed(_HEALTH_OPTIONS):
        command = option(command)
    return command


class _KOption(click.ParamType[int | str]):
    """A positive number, `all`, or `auto`."""

    name = "INT|all|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int):
            return value
        if value in ("all", "auto"):
            return str(value)
        if isinstance(value, str) and value.isdecimal() and int(value) > 0:
            return int(value)
        raise click.BadParameter(f"{value!r} is not a positive number, 'all' or 'auto'.", ctx, param)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="xclr-graph")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Exact nearest-neighbour graphs of captions and class prompts.

    captions -> texts + samples -> embeddings -> index -> knn. Start with `graphbuild embed`, then `graphbuild knn`.
    """


@cli.command()
@click.option("--dataset", required=True, metavar="NAME", help="What to read; `graphbuild datasets` lists the names.")
@click.option("--source", "sources", multiple=True, metavar="PATH", help="A file, folder, glob or URL; may be repeated.")
@graph_dir_option
@click.option("--caption-column", default=None, help="Column of the captions (default: a usual name, if there is just one).")
@click.option("--id-column", default=None, help="Column of the sample ids (default: <file>:<row>).")
@click.option("--keep-columns", default=None, metavar="A,B", help="Columns copied into samples, separated by commas.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="The captions are class names: put each into this prompt, as in 'a photo of a {}'. Several are averaged; a .json file "
    "holds a list of them, clip80 stands for CLIP's 80.",
)
@click.option(
    "--definitions",
    default=None,
    metavar="PATH",
    help="WordNet 3.0's data.noun, or its folder: imagenet's classes, and imagefolder's wnid folders, become 'NAME: DEFINITION', "
    "without a template unless one is given.",
)
@click.option("--replace", "replacements", multiple=True, metavar="OLD=NEW", help="Replace a string in every caption; recorded.")
@click.option("--multi-caption", is_flag=True, help="Rows that share a sample id are several captions of one sample.")
@click.option("--encoder", default="all-MiniLM-L6-v2", show_default=True, help="A Sentence Transformer: a name, or a folder.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the encoder; auto takes half precision where the hardware is made for it.",
)
@click.option("--shard-size", type=click.IntRange(min=1), default=schemas.SHARD_SIZE, show_default=True, help="Texts a shard.")
@click.option("--append", is_flag=True, help="Add the sources to a graph that is there: only new texts are embedded, ids stay.")
@workers_option
@scheduler_option
@overwrite_option
@json_option
def embed(graph_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Embed every caption or class prompt: everything up to index.faiss."""
    from graphbuild.embed.build import build_embeddings, default_graph_dir
    from graphbuild.embed.config import EmbedConfig

    keep = options.pop("keep_columns")
    config = EmbedConfig(keep_columns=tuple(keep.split(",")) if keep else (), **options)
    _answer(build_embeddings(graph_dir or default_graph_dir(config), config), as_json)


@cli.command()
@graph_dir_option
@click.option(
    "--k", type=_KOption(), default="auto", show_default=True, help="Neighbours a text; auto is all up to 4,096 texts, else 256."
)
@click.option(
    "--sketch-dim",
    type=click.IntRange(min=0, max=1024),
    default=schemas.DEFAULT_SKETCH_DIM,
    show_default=True,
    help="Bytes of sketch a text; 0 leaves it out.",
)
@click.option(
    "--method",
    type=click.Choice(["exact", "ivf"]),
    default="exact",
    show_default=True,
    help="ivf searches through index.faiss: faster for many millions of texts, and misses some neighbours.",
)
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="Share of the neighbours that ivf must find, measured on 2,000 random texts.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the exact search computes; auto takes a GPU where there is one.",
)
@click.option(
    "--memory-limit",
    default=None,
    metavar="SIZE",
    help="Memory for data to stay within, such as 4GB (default: half of what is free); of each worker where there is a scheduler.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Dask worker processes on this machine, a shard each; 0 works in this process, which is faster on one machine.",
)
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Only say what it would take: time, by a short calibration, memory and disk.")
@overwrite_option
@json_option
def knn(graph_dir: Path | None, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Find the k nearest texts of every text: exactly, unless told otherwise."""
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn, estimate_knn

    _answer((estimate_knn if dry_run else build_knn)(find_graph_dir(graph_dir), KnnConfig(**options)), as_json)


@cli.command()
@graph_dir_option
@click.option("--chunk", type=click.IntRange(min=1, max=128), default=32, show_default=True, help="Samples a chunk.")
@click.option(
    "--neighbor-ranks",
    default=None,
    metavar="FIRST:LAST",
    help="Grow chunks along the neighbours of these ranks only, such as 1:64 (default: all).",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Orders seeds that are linked alike.")
@click.option("--memory-limit", default=None, metavar="SIZE", help="Memory to stay within (default: half of what is free).")
@json_option
def partition(graph_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Cut the samples into chunks of neighbours, for `train run --batches neighbors`.

    The trainer makes what is missing; partitions of several options lie side by side.
    """
    from graphbuild.targets.partition import PartitionConfig, build_partition

    _answer(build_partition(find_graph_dir(graph_dir), PartitionConfig(**options)), as_json)


@cli.command()
@graph_dir_option
@click.option("--batch-size", type=click.IntRange(min=2), default=1024, show_default=True, help="Samples a batch.")
@click.option("--tau-s", type=float, default=0.1, show_default=True, help="Temperature of the target.")
@click.option("--batches", type=click.IntRange(min=1), default=4, show_default=True, help="Batches of either kind to measure on.")
@click.option("--chunk", type=click.IntRange(min=1, max=128), default=32, show_default=True, help="Samples a chunk of neighbours.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the batches.")
@json_option
def advise(graph_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Which k, sketch and tau_s suit this graph: bytes a row against KL to the dense target, and its effective positives."""
    from graphbuild.quality.advise import advise as measure

    _answer(measure(find_graph_dir(graph_dir), **options), as_json)


@cli.command()
@graph_dir_option
@click.option("--sql", default=None, metavar="QUERY", help="A SELECT over the tables texts, samples, edges and embeddings.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=None, help="Rows of a --sql answer (default: 50 in a table, else all)."
)
@click.option("--health/--no-health", default=True, show_default=True, help="Measure the graph: a pass over all edges.")
@health_options
@click.option(
    "--format", "form", type=click.Choice(FORMS), default="table", show_default=True, help="Of the answer; parquet is binary."
)
@json_option
def inspect(
    graph_dir: Path | None, sql: str | None, limit: int | None, health: bool, form: Form, as_json: bool, **options: Any
) -> None:
    """Counts and quality at a glance, or SQL over the graph.

    Every figure stands beside what a good value is, and beside that of a shuffled graph. Tables of --sql: texts, samples,
    edges (src, dst, rank, similarity) and embeddings. In Polars, the fixed-size lists of the files are Array columns: use
    `.arr`, not `.list`. The same tables in Python: `graphbuild.open(directory)`.
    """
    from graphbuild.quality.inspect import run_sql, summarize
    from graphbuild.system.answers import encode

    directory, form = find_graph_dir(graph_dir), "json" if as_json else form
    if sql is not None:
        _print_bytes(run_sql(directory, sql, limit=limit, form=form), form)
        return
    summary = summarize(directory, health=health, **options)
    if form in ("csv", "parquet"):
        _print_bytes(encode(summary.to_frame(), form), form)
    else:
        _answer(summary, form == "json")


@cli.command()
@click.argument("text", help="Any text.")
@graph_dir_option
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
@json_option
def neighbors(text: str, graph_dir: Path | None, count: int, as_json: bool) -> None:
    """Nearest stored texts of any TEXT, by the graph's encoder."""
    from graphbuild.embed.nearest import nearest_texts

    _answer(nearest_texts(find_graph_dir(graph_dir), text, count=count), as_json)


@cli.command()
@graph_dir_option
@click.option(
    "--exact-sample", type=click.IntRange(min=1), default=1000, show_default=True, help="Rows compared with a float64 brute force."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample of rows.")
@json_option
def verify(graph_dir: Path | None, exact_sample: int, seed: int, as_json: bool) -> None:
    """Check digests, invariants and recall; exit 1 and name the file if something is wrong."""
    from graphbuild.quality.verify import verify_graph

    _answer(verify_graph(find_graph_dir(graph_dir), exact_sample=exact_sample, seed=seed), as_json)


@cli.command()
@graph_dir_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="The page (default: report/report.html in the graph).",
)
@click.option(
    "--fidelity/--no-fidelity",
    default=True,
    show_default=True,
    help="Measure the targets, which makes a partition if there is none.",
)
@health_options
@json_option
def report(graph_dir: Path | None, out: Path | None, fidelity: bool, as_json: bool, **options: Any) -> None:
    """Measure a graph, and write one HTML page and metrics.json.

    Warnings come first. The page needs no network; its captions and pictures are those of the graph.
    """
    from graphbuild.quality.report.write import write_report

    _answer(write_report(find_graph_dir(graph_dir), out, fidelity=fidelity, **options), as_json)


@cli.command()
@graph_dir_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file: .parquet or .npz.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "csr"]),
    default=None,
    help="parquet: src, dst, rank, similarity; csr: for scipy.sparse.load_npz (default: by the file's name).",
)
@json_option
def export(graph_dir: Path | None, out: Path, form: Any, as_json: bool) -> None:
    """Write all edges to one file, for other programs."""
    from graphbuild.exchange.export import export_edges

    _answer(export_edges(find_graph_dir(graph_dir), out, form), as_json)


@cli.command("import")
@click.option("--graph-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where the graph goes.")
@click.option(
    "--texts",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Parquet, CSV, TSV or JSON lines: text, and id (default: the row number); other columns are kept.",
)
@click.option(
    "--edges",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Likewise: src, dst (ids), similarity in [-1, 1].",
)
@click.option(
    "--samples",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Likewise: sample_id, id of its text (default: one sample a text, named by its id).",
)
@click.option("--k", type=click.IntRange(min=1), default=None, help="Neighbours kept (default: as many as every text has).")
@click.option("--symmetric", is_flag=True, help="Every edge counts both ways.")
@overwrite_option
@json_option
def import_(graph_dir: Path, as_json: bool, **options: Any) -> None:
    """Make a graph of edges from elsewhere: metadata, WordNet, human judgement.

    It has neither embeddings nor a sketch: `train run` needs --absent, the similarity of pairs that are not stored.
    """
    from graphbuild.exchange.imported import ImportConfig, import_graph

    _answer(import_graph(graph_dir, ImportConfig(**options)), as_json)


@cli.command()
@graph_dir_option
@click.option(
    "--keep",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Sample ids to keep: text, one a line; CSV with a header; or Parquet.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where the new graph goes.")
@click.option("--id-column", default=None, help="Of the CSV or Parquet file (default: sample_id, url, id, or the only column).")
@overwrite_option
@json_option
def subset(graph_dir: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Make the graph of some samples, such as those that could be downloaded, without embedding again.

    Texts are numbered anew, by first appearance. Neighbours are found by `graphbuild knn`, as usual.
    """
    from graphbuild.exchange.subset import SubsetConfig, subset_graph

    _answer(subset_graph(find_graph_dir(graph_dir), out, SubsetConfig(**options)), as_json)


@cli.command()
@click.argument("first", type=click.Path(file_okay=False, path_type=Path), help="A graph directory.")
@click.argument("second", type=click.Path(file_okay=False, path_type=Path), help="Another, of the same texts.")
@click.option("-n", "--count", type=click.IntRange(min=0), default=10, show_default=True, help="Texts to list that changed most.")
@json_option
def compare(first: Path, second: Path, count: int, as_json: bool) -> None:
    """How far two graphs of the same texts agree, rank by rank, and which texts changed most."""
    from graphbuild.quality.compare import compare_graphs

    _answer(compare_graphs(first, second, count=count), as_json)


@cli.command()
@json_option
def datasets(as_json: bool) -> None:
    """What --dataset takes: size, licence note, and where it comes from."""
    from graphbuild.datasets.registry import describe_all

    _answer(describe_all(), as_json)


def _answer(result: Any, as_json: bool) -> None:
    """Print a result: its `summary()` for people, its `to_json()` for scripts."""
    click.echo(json.dumps(result.to_json(), ensure_ascii=False) if as_json else result.summary())


def _print_bytes(data: bytes, form: Form) -> None:
    """Print an encoded answer; binary ones only where they are redirected."""
    if form == "parquet" and sys.stdout.isatty():
        raise OptionError("--format parquet is binary. Send it to a file: add `> answer.parquet`.")
    sys.stdout.buffer.write(data if form == "parquet" else data.rstrip(b"\n") + b"\n")


def main() -> None:
    """Entry point of the console script."""
    run_cli(cli)
