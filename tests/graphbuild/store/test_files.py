"""Shard files survive crashes: whole or absent, done or to be done again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphbuild.errors import ArtifactError
from graphbuild.store import files as shards

NAME = "texts/part-00000.parquet"


@pytest.fixture
def table() -> pa.Table:
    return pa.table({"text_id": pa.array([0, 1], pa.int32()), "text": ["a cat", "a dog"]})


@given(st.integers(0, 5000), st.integers(1, 700))
def test_ranges_cover_every_id_once_in_order(count: int, size: int) -> None:
    ranges = shards.shard_ranges(count, size)
    assert [i for r in ranges for i in range(r.start, r.stop)] == list(range(count))
    assert [r.index for r in ranges] == list(range(len(ranges)))
    assert all(len(r) == size for r in ranges[:-1])


def test_written_shard_is_finished_only_for_its_own_key(tmp_path: Path, table: pa.Table) -> None:
    receipt = shards.write_parquet(tmp_path, NAME, table, key="one")
    assert shards.finished(tmp_path, NAME, key="one") == receipt
    assert shards.finished(tmp_path, NAME, key="two") is None


def test_flipped_byte_truncation_and_removal_are_damage(tmp_path: Path, table: pa.Table) -> None:
    receipt = shards.write_parquet(tmp_path, NAME, table, key="k")
    path = tmp_path / NAME
    good = path.read_bytes()
    for bad, words in ((good[:20] + bytes([good[20] ^ 1]) + good[21:], "digest"), (good[:-1], "bytes"), (None, "missing")):
        path.unlink() if bad is None else path.write_bytes(bad)
        assert words in (shards.damage(tmp_path, receipt) or "")
        assert shards.finished(tmp_path, NAME, key="k") is None
        with pytest.raises(ArtifactError, match=r"part-00000\.parquet.*Run it"):
            shards.require_intact(tmp_path, {NAME: receipt}, remedy="Run it again.")
        path.write_bytes(good)


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write_half() -> None:
        with shards.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_write_leaves_nothing_under_the_name_and_its_rest_is_removed_later(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from graphbuild.store import files as shards\n"
        "with shards.atomic_path(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    assert len(list(tmp_path.iterdir())) == 1
    shards.remove_stale_temporaries(tmp_path)
    assert not list(tmp_path.iterdir())


def test_column_digest_depends_on_its_values_alone() -> None:
    whole = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    pieces = pa.table({"a": pa.chunked_array([[1], [2, 3]]), "b": ["p", "q", "r"]})
    assert shards.digest_columns(whole)["a"] == shards.digest_columns(pieces)["a"]
    assert shards.digest_columns(whole)["b"] != shards.digest_columns(pieces)["b"]


def test_column_digest_of_a_slice_is_that_of_a_copy() -> None:
    whole = pa.table({"a": [1, 2, 3, 4], "b": ["x", "y", None, "z"]})
    copy = pa.table({"a": [2, 3], "b": ["y", None]})
    assert shards.digest_columns(whole.slice(1, 2)) == shards.digest_columns(copy)


def test_same_table_gives_the_same_bytes(tmp_path: Path, table: pa.Table) -> None:
    digests = {shards.write_parquet(tmp_path / name, NAME, table, key="k").digest for name in ("one", "two")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("old", "new"), [('"seconds"', '"secoods"'), ("1.5", "1.4"), ('"facts"', '"fac4s"'), ('"own_digest"', '"own_dighst"')]
)
def test_a_receipt_that_says_something_else_than_was_written_is_none(tmp_path: Path, table: pa.Table, old: str, new: str) -> None:
    shards.write_parquet(tmp_path, NAME, table, key="k", facts={"seconds": 1.5, "by_length": {16: 2, 8: (1, 2)}})
    path = shards.receipt_path(tmp_path, NAME)
    assert shards.read_receipt(path) is not None
    path.write_text(path.read_text().replace(old, new))
    assert shards.read_receipt(path) is None
    # One of an earlier version.
    content = json.loads(path.read_text().replace(new, old))
    del content["own_digest"]
    path.write_text(json.dumps(content))
    assert shards.finished(tmp_path, NAME, key="k") is not None


def test_damaged_receipt_means_not_done(tmp_path: Path, table: pa.Table) -> None:
    shards.write_parquet(tmp_path, NAME, table, key="k")
    shards.receipt_path(tmp_path, NAME).write_text("{")
    assert shards.finished(tmp_path, NAME, key="k") is None
