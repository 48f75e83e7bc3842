"""Options that several commands of `graphbuild` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphbuild.store import schemas
from graphbuild.store.reading import set_for_this_command
from graphbuild.system.cluster import TLS_VARIABLES
from graphbuild.system.options import FILE, FOLDER, FiniteRange, together

graph_dir_option = click.option(
    "--graph-dir",
    type=FOLDER,
    default=None,
    help="The graph directory (default: $GRAPHBUILD_DIR, else the only graph under graphs/).",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=None,
    help="Dask worker processes on this machine; 0 works in this process (default: what is fastest, by a short calibration).",
)
shard_workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Dask worker processes on this machine, a shard each; 0 works in this process.",
)
trust_option = click.option(
    "--trust-remote-code",
    default=None,
    metavar="NAME",
    help="Let code run that comes with the encoder: name it once more, after reading that code.",
)
part_option = click.option(
    "--part",
    default=None,
    metavar="I/N",
    help="Do every N-th shard that is missing and exit, from 1/N to N/N; a last call without it ends the stage.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Build again what was built with other options.")


def _set_certificates(context: click.Context, option: click.Parameter, given: Path | None) -> None:
    if given is not None:
        set_for_this_command(context, TLS_VARIABLES[str(option.name)], str(given.absolute()))


_TLS_OPTIONS = {
    "tls_ca_file": ("--tls-ca-file", "Certificates of the authority that a tls:// scheduler's own one is signed by."),
    "tls_client_cert": ("--tls-cert", "Certificate by which a tls:// scheduler knows this command."),
    "tls_client_key": ("--tls-key", "Key of that certificate."),
}


scheduler_option = together(
    click.option("--scheduler", default=None, metavar="ADDRESS", help="A running Dask scheduler, such as tcp://10.0.0.1:8786."),
    *(
        click.option(flag, name, type=FILE, default=None, expose_value=False, callback=_set_certificates, help=told)
        for name, (flag, told) in _TLS_OPTIONS.items()
    ),
)
health_options = together(
    click.option("--batch-size", type=click.IntRange(min=2), default=1024, show_default=True, help="For the hit rate and target."),
    click.option("--tau-s", type=FiniteRange(min=0, min_open=True), default=0.1, show_default=True, help="Of the target."),
    click.option(
        "--label-column", "label_columns", multiple=True, help="A sample column whose agreement is measured; may be repeated."
    ),
    click.option("--group-column", default=None, help="A sample column of what belongs together, such as captions of a picture."),
    click.option(
        "--wordnet",
        type=FILE,
        default=None,
        help="TSV of wnid and hypernym_path, or NPZ of wnids and dist; for samples with a wnid.",
    ),
    click.option(
        "--absent", type=FiniteRange(-1, 1), default=None, help="Similarity of pairs not stored, for a graph without a sketch."
    ),
)


class NeighborCount(click.ParamType[int | str]):
    """A positive number, `all`, or `auto`."""

    name = "INT|all|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number, or the word."""
        if isinstance(value, int):
            return value
        if value in ("all", "auto"):
            return str(value)
        if isinstance(value, str) and value.isdecimal() and int(value) > 0:
            return int(value)
        raise click.BadParameter(f"{value!r} is not a positive number, 'all' or 'auto'.", ctx, param)


k_option = click.option(
    "--k",
    type=NeighborCount(),
    default="auto",
    show_default=True,
    help="Neighbours a text; auto is all up to 4,096 texts, else 256.",
)
sketch_dim_option = click.option(
    "--sketch-dim",
    type=click.IntRange(min=0, max=1024),
    default=schemas.DEFAULT_SKETCH_DIM,
    show_default=True,
    help="Bytes of sketch a text; 0 leaves it out.",
)
shard_size_option = click.option(
    "--shard-size", type=click.IntRange(min=1), default=schemas.SHARD_SIZE, show_default=True, help="Texts a shard."
)
