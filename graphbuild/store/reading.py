"""Options of every command that reads a graph, whichever program it belongs to.

They set variables of the environment, for what is read deep below, and in the processes that a command starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graphbuild.store.cache import CACHE_VARIABLE
from graphbuild.store.verified import VERIFY_VARIABLE


def set_for_this_command(context: click.Context, variable: str, value: str) -> None:
    """Set a variable of the environment, for the processes that the command starts, too, until it ends."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    context.call_on_close(lambda: os.environ.pop(variable, None) if before is None else os.environ.update({variable: before}))


def _leave_digests_out(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        set_for_this_command(context, VERIFY_VARIABLE, "0")


def _choose_cache(context: click.Context, _option: click.Parameter, given: Path | None) -> None:
    if given is not None:
        set_for_this_command(context, CACHE_VARIABLE, str(given.absolute()))


_verify_option = click.option(
    "--no-verify",
    is_flag=True,
    expose_value=False,
    callback=_leave_digests_out,
    help="Do not compare files with their digests, which is done once for each version of a file.",
)
_cache_option = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    expose_value=False,
    callback=_choose_cache,
    help="What is derived from a graph that cannot be written goes here (default: $XDG_CACHE_HOME, else ~/.cache).",
)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the options of reading a graph added."""
    return _verify_option(_cache_option(command))
