"""Folders of results: complete or not there, wherever the process is killed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from graphbuild.store.folders import atomic_folder, is_temporary, recover_folders, remove, remove_temporaries


class Killed(BaseException):
    """A process's end, after which nothing is cleaned up."""


def content(path: Path) -> str | None:
    return (path / "file").read_text() if (path / "file").exists() else None


def replace_folder(path: Path) -> None:
    with atomic_folder(path) as folder:
        (folder / "file").write_text("new")


def test_a_folder_appears_when_its_block_ends_well(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "one") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "one").exists()
    assert content(tmp_path / "one") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_block_that_fails_leaves_what_stood_there(tmp_path: Path) -> None:
    replace_folder(tmp_path / "one")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "one") as folder:
        (folder / "missing" / "file").write_text("half")
    assert content(tmp_path / "one") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("last", range(12))
def test_a_kill_at_any_call_leaves_the_old_or_the_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    path = tmp_path / "one"
    path.mkdir()
    (path / "file").write_text("old")
    calls = 0

    def counted(function: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            if calls == last:
                raise Killed
            calls += 1
            return function(*arguments, **options)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (shutil, "rmtree")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        with suppress(Killed):
            replace_folder(path)
    recover_folders(tmp_path)
    assert content(path) in ("old", "new")
    remove_temporaries(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (".part.parquet.12-0a1b2c3d.tmp", True),
        (".config.toml.tmp", True),
        (".notes.txt.tmp", False),
        ("part.12-0a1b2c3d.tmp", False),
        (".12-0a1b2c3d.tmp", False),
    ],
)
def test_only_our_own_temporaries_are_known_as_such(name: str, ours: bool) -> None:
    assert is_temporary(name, ("config.toml",)) is ours


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    remove(tmp_path / "link")
    assert not (tmp_path / "link").exists()
    assert content(tmp_path / "data") == "kept"
