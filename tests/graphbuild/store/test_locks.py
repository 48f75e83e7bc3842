"""One process at a time, on every file system; and folders that cannot be flushed."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from graphbuild.store.atomic import write_text
from graphbuild.store.locks import LockedError, exclusive

ADVICE = "Wait."


def test_lock_is_free_again_after_its_block_and_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), exclusive(tmp_path / "lock", where=tmp_path, advice=ADVICE):
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_held_lock_names_process_and_command_but_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/graphbuild", "embed", "--source", "s3://KEY:SECRET@bucket"])
    with exclusive(tmp_path / "lock", where=tmp_path, advice=ADVICE):
        code = "import sys; from pathlib import Path; from graphbuild.store.locks import exclusive\n"
        code += "with exclusive(Path(sys.argv[1]) / 'lock', where=Path('g'), advice='Wait.'): pass"
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"LockedError: g: `graphbuild embed` (process {os.getpid()} on " in done.stderr
    assert "SECRET" not in done.stderr


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_file_system_without_locks_is_said_and_a_file_stands_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    # Left by a process that had locks.
    (tmp_path / "lock").touch()
    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "lock", where=tmp_path, advice=ADVICE):
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "this file system has no locks" in said
        with pytest.raises(LockedError), exclusive(tmp_path / "lock", where=tmp_path, advice=ADVICE):
            pass
    # Left by a process of this machine that is gone.
    process = subprocess.Popen(["true"])
    process.wait()
    (tmp_path / "lock.soft").write_text(f"{process.pid}\n{socket.gethostname()}\n")
    with exclusive(tmp_path / "lock", where=tmp_path, advice=ADVICE):
        pass


def test_a_file_is_flushed_before_it_takes_its_name_and_the_folder_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[bool, bool]] = []

    def fsync(handle: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(handle).st_mode), (tmp_path / "a").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a", "x")
    assert flushed == [(False, False), (True, True)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_folder_that_cannot_be_flushed_is_passed_over_and_a_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    flush, failing = os.fsync, stat.S_ISDIR

    def fsync(handle: int) -> None:
        if failing(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    failing = stat.S_ISREG
    with pytest.raises(OSError, match=os.strerror(code)):
        write_text(tmp_path / "b", "x")
