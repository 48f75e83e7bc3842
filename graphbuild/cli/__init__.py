"""The `graphbuild` command line: parse, one call, print. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import click

from graphbuild.cli import build, curate, exchange, quality
from graphbuild.system.options import HELP
from graphbuild.system.process import run_cli


@click.group(context_settings={**HELP, "max_content_width": 110})
@click.version_option(package_name="xclr-graph")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Exact nearest-neighbour graphs of captions and class prompts.

    captions -> texts + samples -> embeddings -> index -> knn. Start with `graphbuild embed`, then `graphbuild knn`.
    """


for command in (
    build.datasets,
    build.embed,
    build.knn,
    build.rescore_,
    build.partition,
    quality.advise,
    quality.inspect,
    quality.neighbors,
    quality.verify,
    quality.report,
    curate.dedup,
    curate.sample,
    curate.outliers,
    exchange.export,
    exchange.import_,
    exchange.subset,
    exchange.relate,
    exchange.fuse,
    exchange.publish,
    quality.compare,
    quality.explore,
    quality.status,
    quality.doctor,
):
    cli.add_command(command)


def main() -> None:
    """Run the console script."""
    run_cli(cli)
