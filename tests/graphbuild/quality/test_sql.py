"""`inspect --sql` is one SELECT over the tables, and what captions hold does not command a terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import unit_rows, write_graph

from graphbuild.cli import cli
from graphbuild.errors import UserError, visible
from graphbuild.quality.sql import run_sql
from graphbuild.store.digests import digest_file
from graphbuild.system.answers import print_bytes

HOSTILE = "a dog\x1b]0;owned\x07 \x9b31m \u202egod"
SHOWN = "a dog\\u001b]0;owned\\u0007 \\u009b31m \\u202egod"


@pytest.fixture
def graph_dir(tmp_path: Path) -> Path:
    write_graph(tmp_path / "graph", unit_rows(np.array([[1, 0.1], [0, 1]])), texts=[HOSTILE, "a plane"])
    return tmp_path / "graph"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.csv"
    path.write_text("password\nswordfish\n")
    return path


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('{}')",
        "SELECT * FROM READ_CSV ('{}')",
        "SELECT * FROM read_csv/* */('{}')",
        "SELECT * FROM \"read_csv\"('{}')",
        "SELECT * FROM `read_csv`('{}')",
        "WITH x AS (SELECT * FROM read_csv('{}')) SELECT * FROM x",
        "SELECT * FROM texts JOIN read_csv('{}') AS s ON true",
        "SELECT text FROM texts WHERE text IN (SELECT password FROM read_csv('{}'))",
        "SELECT E'\\'', a FROM read_csv('{}') -- '",
        "SELECT * FROM read_parquet('https://example.org/a.parquet')",
    ],
)
def test_no_table_function_reads_a_file_or_url(graph_dir: Path, secret: Path, query: str) -> None:
    with pytest.raises(UserError, match=r"(?i)^--sql: read_\w+: files and URLs are not read\. Tables: texts\(") as caught:
        run_sql(graph_dir, query.format(secret))
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE texts",
        "delete from texts",
        "TRUNCATE TABLE texts",
        "/* SELECT */ DROP TABLE texts",
        "-- SELECT\nDROP TABLE texts",
        "CREATE TABLE copy AS SELECT * FROM texts",
        "INSERT INTO texts VALUES (1)",
        "WITH x AS (SELECT 1) DELETE FROM texts",
        "SELECT * INTO copy FROM texts",
        "SELECT 1; DROP TABLE texts",
        "",
    ],
)
def test_whatever_is_no_select_is_refused(graph_dir: Path, query: str) -> None:
    with pytest.raises(UserError, match=r"^--sql: .*Tables: texts\("):
        run_sql(graph_dir, query)


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) as n from texts",
        "SELECT COUNT(*) AS n FROM texts;",
        "-- how many\nSELECT COUNT(*) AS n FROM texts",
        "(SELECT COUNT(*) AS n FROM texts)",
        "WITH t AS (SELECT * FROM texts) SELECT COUNT(*) AS n FROM t",
    ],
)
def test_every_way_to_write_a_select_is_accepted(graph_dir: Path, query: str) -> None:
    assert json.loads(run_sql(graph_dir, query, form="json")) == [{"n": 2}]


def test_a_column_may_be_called_as_a_reader_is(graph_dir: Path) -> None:
    (path,) = (graph_dir / "samples").glob("*.parquet")
    samples = pq.read_table(path)
    columns = [*samples.column_names, "read_at"]
    pq.write_table(samples.append_column("read_at", [[1, 2]]).rename_columns(columns), path)
    _accept(graph_dir, path)
    assert json.loads(run_sql(graph_dir, "SELECT MAX(read_at) AS n FROM samples", form="json")) == [{"n": 2}]


def _accept(graph_dir: Path, path: Path) -> None:
    manifest = json.loads((graph_dir / "graph.json").read_text())
    del manifest["digest"]
    for stage in manifest["stages"].values():
        for name, receipt in stage["files"].items():
            if name == str(path.relative_to(graph_dir)):
                receipt.update(bytes=path.stat().st_size, digest=digest_file(path))
    (graph_dir / "graph.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("form", "expected"), [("table", SHOWN), ("csv", HOSTILE), ("json", SHOWN)])
def test_control_characters_are_escapes_but_in_csv_that_goes_to_a_file(graph_dir: Path, form: str, expected: str) -> None:
    arguments = ["inspect", "--graph-dir", str(graph_dir), "--sql", "SELECT text FROM texts", "--format", form]
    outcome = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert expected in outcome.stdout_bytes.decode()


def test_json_with_escapes_is_the_same_text_to_a_program(graph_dir: Path) -> None:
    arguments = ["inspect", "--graph-dir", str(graph_dir), "--sql", "SELECT text FROM texts", "--json"]
    assert json.loads(CliRunner().invoke(cli, arguments).output)[0]["text"] == HOSTILE


def test_csv_in_a_terminal_has_escapes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        print_bytes(f"text\n{HOSTILE}\n".encode(), "csv")
        terminal.flush()
        monkeypatch.undo()
        shown = os.read(leader, 1000).decode()
    os.close(leader)
    assert shown.splitlines() == ["text", SHOWN]


def test_what_people_write_is_left_as_it_is() -> None:
    text = "né 犬 👩\u200d🚒 \u0928\u200d\ta\nb [red] \\x1b"
    assert visible(text) == text
