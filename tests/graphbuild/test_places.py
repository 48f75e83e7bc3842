"""The places people work in: read-only graphs and installations, no HOME, no entry among the users, and signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_embed import embed
from helpers_graph import clustered_vectors, write_graph

from graphbuild.errors import ResourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.cache import CACHE_VARIABLE, beside_or_cached, cache_folder

ROOT = Path(__file__).resolve().parents[2]
STRANGER = ["unshare", "-U", "--map-user=12345", "--map-group=12345"]
"""Without rights over files, and without an entry among the users, though it may be root that runs the tests."""


@pytest.fixture
def stranger(tmp_path: Path) -> dict[str, str]:
    """The environment of a user without a home; the temporary folder is one that can be written."""
    if shutil.which("unshare") is None or subprocess.run([*STRANGER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no user namespaces")
    (tmp_path / "temporary").mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", CACHE_VARIABLE)}
    return {**kept, "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir()
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


def seal(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)


def run(code: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*STRANGER, sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def test_commands_that_look_work_on_a_read_only_graph_and_leave_it_as_it_is(
    read_only: Path, tmp_path: Path, stranger: dict[str, str]
) -> None:
    # Of fewer texts than a map takes, for which UMAP would compile itself for seconds.
    write_graph(read_only / "g", clustered_vectors(12, 16), sample_counts=[5] * 12)
    build_knn(read_only / "g", KnnConfig(k=8))
    seal(read_only)
    before = sorted(read_only.rglob("*"))
    out = tmp_path / "temporary" / "page.html"
    commands = [
        ["report", "--out", str(out), "--batch-size", "16"],
        ["advise", "--batch-size", "16"],
        ["neighbors", "--id", "3"],
        ["inspect", "--sql", "SELECT count(*) FROM edges"],
    ]
    code = "from graphbuild.cli import cli\n" + "".join(
        f"cli(args={[name, '--graph-dir', str(read_only / 'g'), *rest]!r}, standalone_mode=False)\n" for name, *rest in commands
    )
    done = run(code, stranger, tmp_path)
    assert done.returncode == 0, done.stderr
    assert out.exists()
    assert sorted(read_only.rglob("*")) == before
    private = tmp_path / "temporary" / "xclr-graph-12345"
    assert private.stat().st_mode & 0o777 == 0o700
    assert list(private.glob("partition/*/partition/*.arrow"))


def test_the_cache_dir_that_is_named_is_used(read_only: Path, tmp_path: Path, stranger: dict[str, str]) -> None:
    write_graph(read_only / "g", clustered_vectors(30, 8))
    build_knn(read_only / "g", KnnConfig(k=4))
    seal(read_only)
    arguments = ["partition", "--graph-dir", str(read_only / "g"), "--cache-dir", str(tmp_path / "cache")]
    (tmp_path / "cache").mkdir()
    done = run(f"from graphbuild.cli import cli; cli(args={arguments!r}, standalone_mode=False)", stranger, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").glob("partition/*/partition/*.arrow"))


def test_compiled_kernels_of_a_read_only_installation_go_to_a_private_folder(
    read_only: Path, tmp_path: Path, stranger: dict[str, str]
) -> None:
    shutil.copytree(ROOT / "graphbuild", read_only / "graphbuild", ignore=shutil.ignore_patterns("__pycache__"))
    seal(read_only)
    code = (
        "import numpy as np, graphbuild; from graphbuild.store.lookup import _run_lengths as kernel; "
        "print(graphbuild.__file__, kernel(np.array([5, 5, 7], np.uint64), np.array([0, 2]), np.array([5, 8], np.uint64)))"
    )
    done = run(code, {**stranger, "PYTHONPATH": str(read_only)}, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"{read_only}/graphbuild/__init__.py [2 0]"), done.stderr
    assert list((tmp_path / "temporary/xclr-graph-12345/numba").rglob("*.nbi"))


def test_a_private_folder_that_others_could_have_prepared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"xclr-graph-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match=r"not a private folder of this user.*--cache-dir"):
        cache_folder("numba")


def test_derived_data_lie_beside_what_they_are_made_of_where_that_can_be_written(tmp_path: Path) -> None:
    assert beside_or_cached(tmp_path, "partition") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_cache_dir_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"file/numba: cannot be written\. Name another folder"):
        cache_folder("numba")


WAITING = """
import time, click
from graphbuild.system.process import run_cli
@click.command()
def wait():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("kept", flush=True)
run_cli(wait)
"""


def stopped_by(number: int, *, ignored: bool = False) -> tuple[int, str, str]:
    # Set in either case: these tests may themselves run under nohup.
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        if ignored:
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_with_one_line_and_what_it_cleans_up(number: signal.Signals, code: int) -> None:
    line = f"stopped by {number.name}. What was finished is kept: run the same command again to go on.\n"
    assert stopped_by(number) == (code, "kept\n", line)


def test_a_command_under_nohup_goes_on_when_the_terminal_is_gone() -> None:
    assert stopped_by(signal.SIGHUP, ignored=True)[0] == 143


def test_building_what_a_read_only_graph_has_already_is_nothing_to_do_and_something_else_is_refused(
    read_only: Path, tmp_path: Path, stranger: dict[str, str]
) -> None:
    captions = tmp_path / "temporary" / "a.csv"
    captions.write_text("caption\n" + "".join(f"{one} of {other}\n" for one in "abc" for other in "defg"))
    embed(read_only / "g", captions, "csv")
    build_knn(read_only / "g", KnnConfig(k=3))
    seal(read_only)
    before = sorted(read_only.rglob("*"))
    graph, source = ["--graph-dir", str(read_only / "g")], ["--dataset", "csv", "--source", str(captions)]
    embedding = ["embed", *source, *graph, "--encoder", "hashing:16", "--workers", "0"]
    code = (
        "import click\nfrom graphbuild.cli import cli\nfrom graphbuild.errors import OptionError\n"
        f"for command in ({embedding!r}, {['knn', *graph, '--k', '3']!r}):\n    cli(args=command, standalone_mode=False)\n"
        f"try:\n    cli(args={['knn', *graph, '--k', '2', '--overwrite']!r}, standalone_mode=False)\n"
        "except OptionError as error:\n    click.echo(f'refused: {error}')\n"
    )
    done = run(code, stranger, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing to do") == 2
    assert "refused: " in done.stdout
    assert "the folder cannot be written" in done.stdout
    assert sorted(read_only.rglob("*")) == before
