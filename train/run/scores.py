"""`eval.json`, the scores of a run: written with a digest of itself, by which one that was damaged is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphbuild.errors import ArtifactError
from graphbuild.store.atomic import read_json, write_json
from graphbuild.store.digests import digest_json

KNN_TOP1, LINEAR_TOP1 = "knn_top1", "linear_top1"
HEADLINE = ((KNN_TOP1, "kNN"), (LINEAR_TOP1, "linear"))
"""The two scores that every evaluation has, and the headings of their columns."""
IN_EDGES = ("severity", "severity_all", "severity_chance")
"""Scores that are counted in edges of a hierarchy, and are no shares."""
_DIGEST = "digest"


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Write what an evaluation found, and its digest."""
    # As it will be read back.
    content = json.loads(json.dumps(scores))
    write_json(path, {_DIGEST: digest_json(content), **content})


def read_scores(path: Path) -> dict[str, Any]:
    """Return what `write_scores` wrote; the digest may be missing, as in files of before.

    Raises:
        ArtifactError: If it cannot be read, or holds something else than was written.
        FileNotFoundError: If there is none.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise unreadable(path, error) from None
    if not isinstance(content, dict):
        raise unreadable(path, "no JSON object")
    if (claimed := content.pop(_DIGEST, None)) is not None and claimed != digest_json(content):
        raise unreadable(path, "it holds something else than was written: its digest differs")
    return content


def unreadable(path: Path, reason: object) -> ArtifactError:
    """Return the error of an eval.json that does not hold what an evaluation writes."""
    return ArtifactError(f"{path}: cannot be read ({reason}). Run `train eval {path.parent}` again.")
