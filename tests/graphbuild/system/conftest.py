"""Where worker processes find their tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workers_find_the_tasks() -> Iterator[None]:
    """Let worker processes import `helpers_cluster`."""
    with pytest.MonkeyPatch.context() as patch:
        # The clone first: tests/graphbuild must not be taken for the package.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        yield
