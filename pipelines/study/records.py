"""Records of runs, a JSON line each: added whole or not at all, and compared with what is asked for."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphbuild.errors import ArtifactMismatch
from train.run.folder import EVAL_FILE, TRAINED, read_run_config
from train.run.metrics import read_lines
from train.run.scores import read_scores


def recorded(path: Path, number: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the records of a file by arm and `number` (block or seed); none if there is no file."""
    return {(line["arm"], line[number]): line for line in read_lines(path)}


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line, whole or not at all: what a killed process left of one is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        # The file is its own lock: one beside it would lie among the records.
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def scores_of(run_dir: Path) -> dict[str, Any]:
    """Return the scores of a run's trained net on its classes by name."""
    scores: dict[str, Any] = read_scores(run_dir / EVAL_FILE)["scores"][TRAINED]["name"]
    return scores


def result_of(run_dir: Path, scores: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of a run: scores, the options that were asked for, and how it was made."""
    import torch

    made = {"precision": read_run_config(run_dir).precision, "threads": torch.get_num_threads()}
    return {"scores": scores, "options": dict(options), "made": {**made, "torch": torch.__version__.partition("+")[0]}}


def require_same(path: Path, what: str, record: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a record of a run that was made otherwise.

    Raises:
        ArtifactMismatch: Naming `what` it is of, and the first option that differs.
    """
    for name, value in options.items():
        if (found := record["options"].get(name)) != value:
            raise ArtifactMismatch(
                f"{path}: {what}: was made with {name} {found!r}, and {value!r} is asked for: these runs do not compare. "
                "Name another --records."
            )
