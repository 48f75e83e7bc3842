"""What options of both command lines, and of recipes, share: types of places and numbers, and options that many commands have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
HELP = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command."""
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""The Sentence Transformer that comes as a package."""
LARGEST_SEED = 2**32 - 1
"""What every library here takes for a seed."""
SEED = click.IntRange(0, LARGEST_SEED)


class FiniteRange(click.FloatRange):
    """A number within bounds; NaN, which comparisons never find beyond one, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, if it is finite and within the bounds."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def together(*options: Decorator) -> Decorator:
    """Return a decorator that adds several options to a command, in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
replace_option = click.option("--overwrite", is_flag=True, help="Replace a file that none of these commands wrote, too.")
upload_options = together(
    click.option("--repo", default=None, metavar="USER/NAME", help="Upload all to the Hugging Face hub; needs a token (HF_TOKEN)."),
    click.option("--private", is_flag=True, help="Make a private repository, if it is not there yet."),
)
