"""What a run writes while it goes: `metrics.jsonl`, a line every so many steps, and `events.jsonl`, what happened."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one JSON object; what cannot be written as JSON (NaN, infinity) becomes null."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({name: _clean(value) for name, value in values.items()}, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a file, without a last line that a crash cut short; empty if there is no file."""
    if not path.exists():
        return []
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            objects.append(json.loads(line))
        except ValueError:
            continue
    return objects


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The logged steps of a run, in order."""
    return read_lines(run_dir / METRICS_FILE)


def cut_metrics(run_dir: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which will be done again, and a line that a crash cut short."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    kept = [json.dumps(line, ensure_ascii=False) + "\n" for line in read_lines(path) if line["step"] <= step]
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write("".join(kept))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _clean(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
