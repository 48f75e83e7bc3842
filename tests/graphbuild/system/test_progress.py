"""Progress: one bar on a terminal, numbered by the stages of the command; lines elsewhere, and nothing for what is short."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable

import pytest

from graphbuild.system import progress as module
from graphbuild.system.progress import progress, stages


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and keeps what is written."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation


class Screen:
    """What a terminal shows, without control sequences."""

    def __init__(self, stream: Terminal) -> None:
        self._stream = stream

    def __call__(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._stream.getvalue())

    def __enter__(self) -> Screen:
        # In the test and not in the fixture, for pytest gives stderr back to itself between the two.
        self._before, sys.stderr = sys.stderr, self._stream
        return self

    def __exit__(self, *_: object) -> None:
        sys.stderr = self._before


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal to take the place of stderr, on which the bar comes at once."""
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    for name in ("NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Screen(Terminal())


def shown(read: Callable[[], str], words: str) -> bool:
    """Wait for words: the bar is drawn by a thread."""
    end = time.monotonic() + 10
    while words not in read() and time.monotonic() < end:
        time.sleep(0.02)
    return words in read()


def test_stages_are_numbered_in_their_order(terminal: Screen) -> None:
    with terminal, stages("reading", "embedding", "indexing"):
        with progress("reading", 10, unit="texts") as meter:
            meter.advance(4)
            assert shown(terminal, "1/3 reading")
            assert shown(terminal, "4/10 texts")
        with progress("indexing", None):
            assert shown(terminal, "3/3 indexing")


def test_a_piece_of_work_shows_before_anything_has_advanced(terminal: Screen) -> None:
    with terminal, progress("opening", None):
        assert shown(terminal, "opening")


def test_of_pieces_within_pieces_the_innermost_is_shown_then_the_outer_again(terminal: Screen) -> None:
    with terminal, stages("figures", "targets"), progress("figures", 5) as outer:
        assert shown(terminal, "1/2 figures")
        with progress("partition", 3) as inner:
            inner.advance()
            assert shown(terminal, "1/2 figures: partition")
            assert shown(terminal, "1/3 rows")
        outer.advance(2)
        assert shown(terminal, "2/5 rows")


def test_the_bar_goes_with_the_last_work(terminal: Screen) -> None:
    with terminal, stages("one"), progress("one", 2):
        assert shown(terminal, "one")
        assert module._SCREEN._bar is not None
    assert module._SCREEN._bar is None
    assert not module._SCREEN.plans


def test_an_error_takes_the_bar_away_too(terminal: Screen) -> None:
    def work() -> None:
        with terminal, stages("one"), progress("one", 2):
            assert shown(terminal, "one")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert module._SCREEN._bar is None


def test_what_others_count_is_passed_on(terminal: Screen) -> None:
    with terminal, progress("placing", None, unit="epochs") as meter:
        meter.reach(120, 500)
        assert shown(terminal, "120/500 epochs")


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stages("one", "two"), progress("one", 3) as meter:
        meter.advance(3)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    with stages("reading", "embedding"), progress("embedding", 8, unit="texts") as meter:
        meter.advance(2, "loss 1")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "2/2 embedding"
    assert re.fullmatch(r"2/2 embedding: 2/8 texts, [\d,]+/s, [\d,]+ s left, loss 1", second)


def test_only_the_first_process_of_a_job_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    monkeypatch.setenv("RANK", "1")
    with stages("one"), progress("one", 8) as meter:
        meter.advance(2)
    assert capsys.readouterr().err == ""
