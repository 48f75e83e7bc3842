"""Commands that choose samples by the stored graph: dedup, sample, outliers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from graphbuild.cli.options import graph_dir_option
from graphbuild.store.manifest import find_graph_dir
from graphbuild.store.reading import reading_options
from graphbuild.system.answers import answer
from graphbuild.system.options import FILE, SEED, FiniteRange, json_option, replace_option

out_option = partial(
    click.option,
    "--out",
    type=FILE,
    help="A Parquet file: every sample, whether it is kept, and why. `graphbuild subset --keep` takes it.",
)


@click.command()
@graph_dir_option
@reading_options
@out_option(required=False)
@click.option(
    "--threshold",
    type=FiniteRange(min=-1, max=1),
    default=0.95,
    show_default=True,
    help="Similarity from which two texts count as the same.",
)
@click.option("--show", "show_levels", is_flag=True, help="Compare thresholds: what each would drop, with its least similar pairs.")
@replace_option
@json_option
def dedup(graph_dir: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Keep one text of each group of near-duplicates, and one sample of each text.

    Texts are taken by falling number of samples; one is kept unless a kept text is at least --threshold similar to it. Without
    --out nothing is written.
    """
    from graphbuild.quality.curate.dedup import find_duplicates

    answer(find_duplicates(find_graph_dir(graph_dir), out, **options), as_json)


@click.command()
@graph_dir_option
@reading_options
@out_option(required=True)
@click.option("--count", type=click.IntRange(min=1), required=True, help="Texts to choose.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the random choice compared with.")
@replace_option
@json_option
def sample(graph_dir: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Choose the texts that together cover the graph best (facility location), and the first sample of each."""
    from graphbuild.quality.curate.sample import choose_sample

    answer(choose_sample(find_graph_dir(graph_dir), out, **options), as_json)


@click.command()
@graph_dir_option
@reading_options
@out_option(required=True)
@click.option("--share", type=FiniteRange(0, 1, min_open=True, max_open=True), default=None, help="Share of texts (default: 0.01).")
@click.option("--below", type=FiniteRange(-1, 1), default=None, help="Or: every text whose similarity is lower.")
@click.option("--ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Nearest neighbours averaged.")
@replace_option
@json_option
def outliers(graph_dir: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Find the texts that are farthest from all others; the samples of the rest are kept."""
    from graphbuild.quality.curate.outliers import find_outliers

    answer(find_outliers(find_graph_dir(graph_dir), out, **options), as_json)
