"""Commands that look at a graph: inspect, neighbors, verify, advise, report, compare, status; and at the machine: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphbuild.cli.options import graph_dir_option, health_options, trust_option
from graphbuild.store.manifest import find_graph_dir
from graphbuild.store.reading import reading_options
from graphbuild.system.answers import FORMS, Form, answer, print_bytes
from graphbuild.system.options import FILE, FOLDER, SEED, FiniteRange, json_option, replace_option


@click.command()
@graph_dir_option
@reading_options
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
    """Show counts and quality at a glance, or query the graph with SQL.

    Every figure stands beside what a good value is, and beside that of a shuffled graph. Tables of --sql: texts, samples,
    edges (src, dst, rank, similarity) and embeddings. In Polars, the fixed-size lists of the files are Array columns: use
    `.arr`, not `.list`. The same tables in Python: `graphbuild.open(directory)`.
    """
    from graphbuild.quality.inspect import summarize
    from graphbuild.quality.sql import run_sql
    from graphbuild.system.answers import encode

    directory, form = find_graph_dir(graph_dir), "json" if as_json else form
    if sql is not None:
        print_bytes(run_sql(directory, sql, limit=limit, form=form), form)
        return
    summary = summarize(directory, health=health, **options)
    if form in ("csv", "parquet"):
        print_bytes(encode(summary.to_frame(), form), form)
    else:
        answer(summary, form == "json")


@click.command()
@click.argument("text", required=False, help="Any text.")
@graph_dir_option
@reading_options
@click.option("--id", "text_id", type=click.IntRange(min=0), default=None, help="A text_id of the graph, in place of TEXT.")
@click.option("--vector", type=FILE, default=None, help="A file of one vector (.npy, .safetensors, .parquet), in place of TEXT.")
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True, help="How many.")
@click.option(
    "--encoder",
    default=None,
    metavar="PATH|NAME",
    help="The graph's encoder; it must be named if it is not the built-in one, because a graph's word alone loads none. Of a "
    "graph of given vectors, the text encoder that made them.",
)
@trust_option
@json_option
def neighbors(
    text: str | None,
    text_id: int | None,
    vector: Path | None,
    graph_dir: Path | None,
    count: int,
    encoder: str | None,
    trust_remote_code: str | None,
    as_json: bool,
) -> None:
    """Find the nearest stored texts of any TEXT: by the stored neighbours of one that the graph holds, else by its encoder."""
    from graphbuild.embed.nearest import nearest_texts, nearest_to_vector

    if sum(given is not None for given in (text, text_id, vector)) > 1:
        raise click.UsageError("give one of TEXT, --id and --vector.")
    if vector is not None:
        answer(nearest_to_vector(find_graph_dir(graph_dir), vector, count=count), as_json)
        return
    query = text if text_id is None else text_id
    if query is None:
        raise click.UsageError("give a TEXT, the --id of a stored one, or the --vector of a file.")
    answer(nearest_texts(find_graph_dir(graph_dir), query, count=count, encoder=encoder, trust=trust_remote_code), as_json)


@click.command()
@graph_dir_option
@click.option(
    "--exact-sample", type=click.IntRange(min=1), default=1000, show_default=True, help="Rows compared with a float64 brute force."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the sample of rows.")
@json_option
def verify(graph_dir: Path | None, exact_sample: int, seed: int, as_json: bool) -> None:
    """Check digests, invariants and recall; exit 1 and name the file if something is wrong."""
    from graphbuild.exchange.known import known_similarity
    from graphbuild.quality.verify import verify_graph

    directory = find_graph_dir(graph_dir)
    answer(verify_graph(directory, exact_sample=exact_sample, seed=seed, known=known_similarity), as_json)


@click.command()
@graph_dir_option
@reading_options
@click.option("--batch-size", type=click.IntRange(min=2), default=1024, show_default=True, help="Samples a batch.")
@click.option(
    "--tau-s", type=FiniteRange(min=0, min_open=True), default=None, help="Temperature of the target (default: one is recommended)."
)
@click.option("--batches", type=click.IntRange(min=1), default=4, show_default=True, help="Batches of either kind to measure on.")
@click.option("--chunk", type=click.IntRange(min=1, max=128), default=32, show_default=True, help="Samples a chunk of neighbours.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the batches.")
@json_option
def advise(graph_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Recommend k, sketch and tau_s: bytes a row against KL to the dense target, and the target's effective positives."""
    from graphbuild.quality.advise import advise as measure

    answer(measure(find_graph_dir(graph_dir), **options), as_json)


@click.command()
@graph_dir_option
@reading_options
@click.option("--out", type=FILE, default=None, help="The page (default: report/report.html in the graph).")
@click.option(
    "--fidelity/--no-fidelity",
    default=True,
    show_default=True,
    help="Measure the targets, which makes a partition if there is none.",
)
@click.option(
    "--map/--no-map",
    "chart",
    default=True,
    show_default=True,
    help="Draw a map on top: that of `graphbuild explore`, else one of up to 5,000 texts.",
)
@health_options
@replace_option
@json_option
def report(graph_dir: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure a graph, and write one HTML page and metrics.json.

    Warnings come first, then the map and the worst cases. The page needs no network; its captions and pictures are those of the
    graph.
    """
    from graphbuild.quality.report.write import write_report

    answer(write_report(find_graph_dir(graph_dir), out, **options), as_json)


@click.command()
@click.argument("first", type=FOLDER, help="A graph directory.")
@click.argument("second", type=FOLDER, help="Another, of the same texts.")
@click.option("-n", "--count", type=click.IntRange(min=0), default=10, show_default=True, help="Texts to list that changed most.")
@click.option("--by-sample", is_flag=True, help="Match texts by their samples, although the graphs share some texts.")
@reading_options
@json_option
def compare(first: Path, second: Path, count: int, by_sample: bool, as_json: bool) -> None:
    """Show how far two graphs of the same texts or samples agree, rank by rank, and which texts changed most.

    Texts are matched by themselves, whatever encoders the graphs have; where the graphs share none, by their samples.
    """
    from graphbuild.quality.compare import compare_graphs

    answer(compare_graphs(first, second, count=count, by_sample=by_sample), as_json)


@click.command()
@graph_dir_option
@json_option
def status(graph_dir: Path | None, as_json: bool) -> None:
    """Show a graph's stages, what is missing, damaged or out of date, their sizes, and the next command."""
    from graphbuild.quality.status import graph_status

    answer(graph_status(find_graph_dir(graph_dir)), as_json)


@click.command()
@click.option(
    "--folder",
    type=FOLDER,
    default=None,
    help="Where graphs are to lie; what its file system can do is tried there (default: the working directory).",
)
@json_option
def doctor(folder: Path | None, as_json: bool) -> None:
    """Show versions, devices, number formats, threads and the file system: what a bug report needs."""
    from graphbuild.quality.doctor import diagnose

    answer(diagnose(folder), as_json)


@click.command()
@graph_dir_option
@reading_options
@click.option("--map-dir", "folder", type=FOLDER, default=None, help="Where the map's files go (default: explore/ in the graph).")
@click.option("--out", "site", type=FOLDER, default=None, help="Write a static site there, which needs no network.")
@click.option("--count", type=click.IntRange(min=4), default=200_000, show_default=True, help="Texts at most.")
@click.option("--all", "whole", is_flag=True, help="Show every text, however many.")
@click.option("--images/--no-images", default=True, show_default=True, help="Thumbnails, where pictures are at hand.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the map.")
@click.option("--open/--no-open", "view", default=False, show_default=True, help="Start the viewer, if it is installed.")
@replace_option
@json_option
def explore(graph_dir: Path | None, count: int, whole: bool, view: bool, as_json: bool, **options: Any) -> None:
    """Lay out the texts as a map to walk around in, and say how true it is.

    The map is drawn by embedding-atlas in a browser: positions by UMAP from the stored neighbours, labels, figures of the graph.
    """
    from graphbuild.quality.explore.viewer import start_viewer
    from graphbuild.quality.explore.write import ExploreConfig, write_map

    result = write_map(find_graph_dir(graph_dir), ExploreConfig(count=None if whole else count, **options))
    answer(result, as_json)
    if view and result.viewer is not None:
        start_viewer(result.viewer, result.folder, images=result.images > 0)
