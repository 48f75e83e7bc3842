"""Pictures and several graphs of them, for the tests of runs with more than one."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_several import Make, maker, write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the pictures and graphs."""
    return write_place(tmp_path_factory.mktemp("several"))


@pytest.fixture
def config_of(place: Path) -> Make:
    """Make configurations of runs there."""
    return maker(place)
