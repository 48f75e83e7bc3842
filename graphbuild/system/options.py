"""Types of options that name places and numbers, for both command lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
LARGEST_SEED = 2**32 - 1
"""What every library here takes for a seed."""
SEED = click.IntRange(0, LARGEST_SEED)


class FiniteRange(click.FloatRange):
    """A number within bounds; NaN, which comparisons never find beyond one, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
