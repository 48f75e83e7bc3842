"""Every benchmark's table at a small size: `python -m benchmarks`, or some of them: `python -m benchmarks knn targets`."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path

import click

NAMES = ("data", "embed", "kernels", "knn", "objectives", "partition", "query", "targets", "train")


def conditions() -> str:
    """Return one line about the machine, because every table needs its conditions."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--full", is_flag=True, help="The sizes of RESULTS.md instead of small ones; takes long.")
def main(names: tuple[str, ...], full: bool) -> None:
    """Print each benchmark's table."""
    click.echo(f"{conditions()}; {'full' if full else 'small'} size\n")
    for name in names or NAMES:
        click.echo(f"== {name}")
        click.echo(importlib.import_module(f"benchmarks.{name}").run(small=not full))
        click.echo()


if __name__ == "__main__":
    main()
