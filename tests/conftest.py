"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import re
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from graphbuild.system.process import wait_without_spinning

wait_without_spinning()
# The same examples in every run: what fails is due to what changed. `--hypothesis-seed` draws others.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

TOGETHER = {
    "forks": re.compile(r"helpers_(forked|ranks)|from helpers_embed import .*\bgraphbuild\b"),
    "maps": re.compile(r"graphbuild\.quality\.(explore|report)\.write"),
    "kernels of relate": re.compile(r"graphbuild\.exchange\.relate\.stage"),
}
"""Files that share what takes seconds to begin, by words in them: a server of forks, UMAP, which compiles itself, and a kernel."""
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Together(LoadFileScheduling):
    """Gives the tests of a file to one worker, and those of files that share a start, which is then made once."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return group_of(self.config.rootpath / file)


@cache
def group_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return next((name for name, words in TOGETHER.items() if words.search(text)), str(path))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together | None:
    # Slow tests are few and long: what they share at the start counts for less than that no worker waits for another.
    together = config.getoption("dist") == "loadfile" and "not slow" in config.getoption("markexpr")
    return Together(config, log) if together else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed torch by the test's name: what a test draws depends on no other test, nor on the worker that runs it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(zlib.crc32(item.nodeid.encode()))


def pytest_collection_finish() -> None:
    """Leave out of every later search for garbage what was imported: millions of objects, and none of them is garbage."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let it be found at the end, for libraries complain of what outlives the interpreter."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Leave out fsync: it matters where the power fails, which no test tries, and is half the time of tests that write graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _handle: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the clone; tests that need it skip where it is missing, and fail in CI."""
    if SHARED_DATA.is_dir():
        return SHARED_DATA
    message = "../shared/data is missing: real Tiny-ImageNet, Flickr8k and captions are needed"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    """Give torch the threads that it had: libraries change them, and so does a search that a test leaves unfinished.

    Unfinished ones are found as garbage; what was there before the module's tests is none, and is not looked through again.
    """
    gc.freeze()
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    yield
    gc.collect()
    if torch is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)
