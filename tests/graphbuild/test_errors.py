"""What a user sees when a command fails."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from graphbuild.cli import cli
from graphbuild.errors import describe_os_error, redact
from graphbuild.system import process
from train.cli import cli as train_cli

PROGRAM = """
import click, sys
from graphbuild.errors import OptionError
from graphbuild.system.process import run_cli

@click.group()
def cli(): pass

@cli.command()
@click.option("--k", type=int)
def fail(k):
    {body}

sys.argv = ["prog", *{arguments!r}]
run_cli(cli)
"""


def run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(body=body, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (cli, ["dedup", "--threshold", "nan"]),
        (cli, ["outliers", "--out", "a.parquet", "--below", "nan"]),
        (cli, ["outliers", "--out", "a.parquet", "--share", "nan"]),
        (cli, ["advise", "--tau-s", "nan"]),
        (cli, ["inspect", "--absent", "inf"]),
        (cli, ["knn", "--recall", "nan"]),
        (train_cli, ["eval", "run", "--val-fraction", "nan"]),
        (train_cli, ["compare", "run", "--equivalence", "inf"]),
        (cli, ["verify", "--seed", "-1"]),
        (cli, ["explore", "--seed", str(2**32)]),
        (cli, ["partition", "--seed", str(2**64)]),
    ],
)
def test_numbers_that_are_none_and_seeds_that_no_library_takes_are_wrong_usage(command: click.Group, arguments: list[str]) -> None:
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, arguments[-2] in result.output) == (2, True), result.output


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_in_a_callback_of_a_c_library_ends_the_command_all_the_same(name: str, code: int) -> None:
    body = f"""
    import ctypes, os, signal, time
    # A shell's background jobs ignore it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
    def callback():
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000): abs(1)
    ctypes.CFUNCTYPE(None)(callback)()
    time.sleep(60)
    """
    done = run(body, "fail")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (code, 1), done.stderr
    assert "What was finished is kept" in done.stderr


def test_a_full_disk_under_a_library_of_rust_is_told_and_no_bug(tmp_path: Path) -> None:
    body = f"""
    import polars, resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    polars.DataFrame({{'a': range(1000)}}).write_parquet({str(tmp_path / "a.parquet")!r})
    """
    done = run(body, "fail")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the file-size limit was reached. What was finished is kept"), done.stderr


def test_a_name_that_is_no_utf8_is_told_and_no_bug() -> None:
    done = run("import os, pyarrow.parquet as pq; pq.read_table(os.fsdecode(b'bad\\xff/a.parquet'))", "fail")
    assert done.returncode == 1
    assert done.stderr.startswith("error: bad\\udcff/a.parquet: is no UTF-8"), done.stderr


def test_user_error_is_one_line_on_stderr_and_exit_1() -> None:
    done = run("raise OptionError('k is\\n too large')", "fail")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: k is too large\n")


def test_wrong_usage_exits_2_and_names_the_option() -> None:
    done = run("pass", "fail", "--k", "many")
    assert done.returncode == 2
    assert "--k" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(arguments: tuple[str, ...]) -> None:
    done = run("raise OptionError('no')", *arguments)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_interrupt_exits_130_and_says_how_to_go_on() -> None:
    done = run("raise KeyboardInterrupt", "fail")
    assert done.returncode == 130
    assert "run the same command again" in done.stderr


def test_bug_is_one_line_that_names_its_type() -> None:
    done = run("{}['missing']", "fail")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "KeyError" in done.stderr


def test_bug_met_with_a_library_older_than_any_tried_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "requires", lambda _: ["polars>=1.36.1", "scikit-learn>=1.6; extra == 'explore'"])
    monkeypatch.setattr(process, "version", lambda _: "1.20.0+local")
    assert "polars 1.20.0+local is installed, and at least 1.36.1 is needed" in process._message(TypeError("is_pure"))
    monkeypatch.setattr(process, "version", lambda _: "1.40")
    assert "a bug in this program" in process._message(TypeError("is_pure"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EACCES])
def test_os_errors_name_the_file_and_what_to_do(code: int) -> None:
    text = describe_os_error(OSError(code, "?", "/data/x.parquet"))
    assert text.startswith("/data/x.parquet: ")
    assert text.endswith(".")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SEC/RET+x@bucket/a.parquet: no", "s3://***@bucket/a.parquet: no"),
        ("see https://user:pass@host/a?x=1 and ftp://me@h/b", "see https://***@host/a?x=1 and ftp://***@h/b"),
        ("https://h/a.tar?X-Amz-Signature=abc&n=1.", "https://h/a.tar?***"),
        ("'https://h/a?sv=1&sig=abc' is", "'https://h/a?***' is"),
        ("a path/with@sign and https://h/plain?page=2", "a path/with@sign and https://h/plain?page=2"),
    ],
)
def test_secrets_in_urls_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
