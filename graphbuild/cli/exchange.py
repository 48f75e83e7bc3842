"""Commands that take graphs out and in: export, import, subset, relate, fuse, publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphbuild.cli.options import (
    NeighborCount,
    graph_dir_option,
    k_option,
    overwrite_option,
    part_option,
    scheduler_option,
    shard_size_option,
    shard_workers_option,
    sketch_dim_option,
)
from graphbuild.store.manifest import find_graph_dir
from graphbuild.store.parts import Part
from graphbuild.store.reading import reading_options
from graphbuild.system.answers import answer
from graphbuild.system.options import FILE, FOLDER, json_option, replace_option, upload_options


@click.command()
@graph_dir_option
@reading_options
@click.option("--out", type=FILE, required=True, help="The file: .parquet or .npz.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "csr"]),
    default=None,
    help="parquet: src, dst, rank, similarity; csr: for scipy.sparse.load_npz (default: by the file's name).",
)
@replace_option
@json_option
def export(graph_dir: Path | None, out: Path, form: Any, overwrite: bool, as_json: bool) -> None:
    """Write all edges to one file, for other programs."""
    from graphbuild.exchange.export import export_edges

    answer(export_edges(find_graph_dir(graph_dir), out, form, overwrite=overwrite), as_json)


@click.command("import")
@click.option("--graph-dir", type=FOLDER, required=True, help="Where the graph goes.")
@click.option(
    "--texts",
    type=FILE,
    required=True,
    help="Parquet, CSV, TSV or JSON lines: text, and id (default: the row number); other columns are kept.",
)
@click.option("--edges", type=FILE, required=True, help="Likewise: src, dst (ids), similarity in [-1, 1].")
@click.option(
    "--samples", type=FILE, default=None, help="Likewise: sample_id, id of its text (default: one sample a text, named by its id)."
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

    answer(import_graph(graph_dir, ImportConfig(**options)), as_json)


@click.command()
@graph_dir_option
@reading_options
@click.option(
    "--keep",
    type=FILE,
    required=True,
    help="Sample ids to keep: text, one a line; CSV with a header; or Parquet, such as dedup, sample and outliers write.",
)
@click.option("--out", type=FOLDER, required=True, help="Where the new graph goes.")
@click.option("--id-column", default=None, help="Of the CSV or Parquet file (default: sample_id, url, id, or the only column).")
@overwrite_option
@json_option
def subset(graph_dir: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Make the graph of some samples, such as those that could be downloaded, without embedding again.

    Texts are numbered anew, by first appearance. Neighbours are found by `graphbuild knn`, as usual.
    """
    from graphbuild.exchange.subset import SubsetConfig, subset_graph

    answer(subset_graph(find_graph_dir(graph_dir), out, SubsetConfig(**options)), as_json)


@click.command()
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="PATH",
    help="Parquet, CSV, TSV or JSON lines: a file, folder or glob; may be repeated.",
)
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    metavar="COLUMN=KIND",
    help="How a column is compared: category, taxonomy:FILE.tsv, tags, tags:idf, number:WIDTH, angle:PERIOD:WIDTH, date:30d, "
    "place:50km (of one column, or LAT,LON), text or text:ENCODER; may be repeated.",
)
@click.option("--weights", default=None, metavar="A,B", help="Of the mean, one a kernel, such as 0.7,0.3 (default: all alike).")
@click.option(
    "--rule",
    type=click.Choice(["mean", "product"]),
    default="mean",
    show_default=True,
    help="How several kernels become one similarity: product asks that samples are alike in all of them.",
)
@click.option("--id-column", default=None, help="Column of the sample ids (default: <file>:<row>).")
@click.option("--keep-columns", default=None, metavar="A,B", help="More columns copied into samples; those of kernels always are.")
@k_option
@sketch_dim_option
@shard_size_option
@click.option("--graph-dir", type=FOLDER, required=True, help="Where the graph goes.")
@shard_workers_option
@scheduler_option
@part_option
@click.option("--dry-run", is_flag=True, help="Only say what it would take: texts, pairs, time by computing a few, and disk.")
@overwrite_option
@json_option
def relate(
    graph_dir: Path,
    weights: str | None,
    keep_columns: str | None,
    part: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a graph of metadata: categories, tags, numbers, angles, dates, places, titles.

    Neighbours are exact, and are there at once. Samples that are equal in all columns are one text.
    """
    from graphbuild.exchange.relate.config import RelateConfig
    from graphbuild.exchange.relate.estimate import estimate_relate
    from graphbuild.exchange.relate.stage import relate_columns, relate_part

    keep = tuple(keep_columns.split(",")) if keep_columns else ()
    config = RelateConfig(weights=_numbers(weights), keep_columns=keep, **options)
    if part is not None and not dry_run:
        answer(relate_part(graph_dir, config, Part.parse(part)), as_json)
        return
    answer((estimate_relate if dry_run else relate_columns)(graph_dir, config), as_json)


def _numbers(weights: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in weights.split(",")) if weights else ()
    except ValueError:
        raise click.BadParameter(f"{weights!r} are no numbers, separated by commas.", param_hint="--weights") from None


@click.command()
@click.argument("graphs", nargs=-1, required=True, type=FOLDER, help="Graph directories.")
@reading_options
@click.option("--weights", default=None, metavar="A,B", help="Of the mean, one a graph, such as 0.7,0.3 (default: all alike).")
@click.option(
    "--rule",
    type=click.Choice(["mean", "max", "product"]),
    default="mean",
    show_default=True,
    help="How similarities become one.",
)
@click.option(
    "--k",
    type=NeighborCount(),
    default=None,
    help="Neighbours a text, where they are found here (default: as many as the graph with the fewest stores).",
)
@click.option("--out", type=FOLDER, required=True, help="Where the fused graph goes.")
@overwrite_option
@json_option
def fuse(graphs: tuple[Path, ...], weights: str | None, out: Path, as_json: bool, **options: Any) -> None:
    """Make one graph of several over the same samples: the mean of their similarities, the largest, or the product.

    The mean of graphs of vectors is a graph of vectors, whose neighbours `graphbuild knn` finds. Else they are found here, among
    those that the graphs store, and how many rows are proven exact is said.
    """
    from graphbuild.exchange.fused import fuse_graphs
    from graphbuild.exchange.fusion import FuseConfig

    answer(fuse_graphs(graphs, out, FuseConfig(weights=_numbers(weights), **options)), as_json)


@click.command()
@graph_dir_option
@reading_options
@click.option("--out", type=FOLDER, required=True, help="Where the folder goes.")
@click.option("--license", required=True, metavar="NAME", help="Licence of the captions, such as cc-by-4.0, or unknown.")
@upload_options
@json_option
def publish(graph_dir: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Write a folder that `datasets` reads, with a card, and upload it where a repository is named.

    The graph is verified and measured first: recall, certificate and health stand in the card.
    """
    from graphbuild.exchange.known import known_similarity
    from graphbuild.exchange.publish import Measured, PublishConfig, publish_graph, require_publishable
    from graphbuild.quality.health.measure import check_health
    from graphbuild.quality.verify import verify_graph
    from graphbuild.store.frames import Frames

    directory, config = find_graph_dir(graph_dir), PublishConfig(**options)
    require_publishable(directory, out, config)
    quality, health = verify_graph(directory, known=known_similarity).quality, check_health(Frames(directory))
    measured = Measured(
        recall=quality.recall if quality else None,
        recall_rows=quality.rows if quality else None,
        health=[(one.title, one.show(one.value), one.show(one.shuffled), one.verdict, one.good) for one in health.measures],
        notes=health.notes,
    )
    answer(publish_graph(directory, out, config, measured), as_json)
