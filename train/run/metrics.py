"""What a run writes while it goes: `metrics.jsonl`, a line every so many steps, and `events.jsonl`, what happened."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphbuild.store.atomic import write_text
from graphbuild.system.progress import say

METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one JSON object; what cannot be written as JSON (NaN, infinity) becomes null."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({name: _clean(value) for name, value in values.items()}, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all objects of a file, without a last line that a crash cut short; none if there is no file.

    Other lines that cannot be read are left out, and said.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    objects, damaged = [], []
    # What follows the last line feed is a line that a crash cut short.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            objects.append(found)
        else:
            damaged.append(number)
    if damaged:
        say(f"warning: {path}: {len(damaged):,} lines cannot be read and are left out, the first of them line {damaged[0]:,}.")
    return objects


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a run, in order."""
    return read_lines(run_dir / METRICS_FILE)


def cut_metrics(run_dir: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which will be done again, and a line that a crash cut short."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return
    kept = [json.dumps(line, ensure_ascii=False) + "\n" for line in read_lines(path) if line["step"] <= step]
    write_text(path, "".join(kept))


def _clean(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
