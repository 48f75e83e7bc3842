"""A command as a process: how both command lines begin, what ends them, and their exit codes."""

from __future__ import annotations

import gc
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from types import FrameType
from typing import Any

import click

from graphbuild.errors import UserError, describe_os_error, one_line, redact, visible

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, such as Polars, say what the system told them, in errors of their own."""
_AGAIN_SECONDS = 0.05
"""Until a signal that was lost is sent again: the callback that it came in has returned by then, or it is sent once more."""
_DISTRIBUTION = "xclr-graph"
_COLLECTED = 50_000
"""Objects made between two collections of garbage."""
_BOUND = re.compile(r"(?P<name>[\w.-]+)>=(?P<least>[\d.]+)(?!.*extra ==)")


def wait_without_spinning() -> None:
    """Let OpenMP threads sleep while they wait; has effect only before the first library that uses OpenMP is loaded.

    By default they spin, and on a machine that does anything else besides a parallel loop is then ten times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Stopped(SystemExit):
    """SIGTERM, as schedulers send it, or SIGHUP, as of a terminal that is gone: it ends a command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.name = signal.Signals(number).name


def _stop_at_signals() -> None:
    """Raise `Stopped` at the first of the signals; a second one ends the process at once."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    def begin() -> None:
        for each in numbers:
            signal.signal(each, stop)

    def deliver_again(lost: sys.UnraisableHookArgs) -> None:
        """Send a signal again that came where Python drops exceptions, such as in a callback of a C library."""
        if not isinstance(lost.exc_value, (Stopped, KeyboardInterrupt)):
            sys.__unraisablehook__(lost)
            return
        begin()
        number = lost.exc_value.number if isinstance(lost.exc_value, Stopped) else signal.SIGINT
        later = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        later.daemon = True
        later.start()

    # Where one is ignored, as SIGHUP under nohup, it stays so.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    begin()
    sys.unraisablehook = deliver_again


def run_cli(command: Callable[..., Any], *, debug_variable: str = "GRAPHBUILD_DEBUG") -> None:
    """Run a click command as the process: one line on stderr and an exit code, a traceback only with `--debug`.

    Exit codes: 0 done, 1 an error of input, artifacts or machine, 2 wrong usage, 130 interrupted, 143 and 129 stopped by
    SIGTERM and SIGHUP.
    """
    wait_without_spinning()
    _stop_at_signals()
    # Modules of torch are half a million objects: to look through them again and again while they load frees nothing.
    gc.set_threshold(_COLLECTED)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of Latin-1 must not end a command that has done its work.
            stream.reconfigure(errors="backslashreplace")
    # Taken out here, so that it may stand anywhere on the line, and not only before the subcommand.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or bool(os.environ.get(debug_variable))
    try:
        sys.exit(command(args=arguments, standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except Stopped as stop:
        # The terminal may be gone.
        with suppress(OSError):
            click.echo(f"stopped by {stop.name}. What was finished is kept: run the same command again to go on.", err=True)
        sys.exit(stop.code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted. What was finished is kept: run the same command again to go on.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not an error, but the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        click.echo(f"error: {visible(redact(_message(error)))}", err=True)
        sys.exit(getattr(error, "exit_code", 1))


def _message(error: Exception) -> str:
    if isinstance(error, UserError):
        return one_line(str(error))
    if isinstance(error, click.ClickException):
        return one_line(error.format_message())
    if isinstance(error, OSError):
        return one_line(describe_os_error(error))
    if isinstance(error, MemoryError):
        return "out of memory. Use fewer workers, or a smaller --memory-limit or --batch-size."
    if number := _OS_ERROR.search(str(error)):
        return one_line(describe_os_error(OSError(int(number[1]), os.strerror(int(number[1])))))
    if isinstance(error, UnicodeEncodeError) and not error.object[error.start : error.end].isprintable():
        return f"{one_line(error.object)}: is no UTF-8, which files and libraries here take for names and texts. Rename it."
    told = one_line(f"{type(error).__name__}: {error}")
    return f"{told} ({_too_old() or 'a bug in this program: run again with --debug and report the traceback'})"


def _too_old() -> str | None:
    """Say which dependency is older than any that this program was tried with; None where none is."""
    for entry in requires(_DISTRIBUTION) or ():
        bound = _BOUND.match(entry)
        with suppress(PackageNotFoundError):
            if bound and _numbers(found := version(bound["name"])) < _numbers(bound["least"]):
                return f"{bound['name']} {found} is installed, and at least {bound['least']} is needed: install that"
    return None


def _numbers(of: str) -> tuple[int, ...]:
    return tuple(int(part) for part in of.partition("+")[0].split(".") if part.isdecimal())
