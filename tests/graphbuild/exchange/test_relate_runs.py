"""Runs of relate: their cost said first, in parts, on workers, and going on after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from graphbuild.cli import cli
from graphbuild.errors import OptionError
from graphbuild.exchange.relate import related
from graphbuild.exchange.relate.config import RelateConfig
from graphbuild.exchange.relate.estimate import estimate_relate
from graphbuild.exchange.relate.stage import Relation, Requested, relate_columns, relate_part
from graphbuild.store.locks import LockedError
from graphbuild.store.manifest import Manifest
from graphbuild.store.parts import Part, working_at
from graphbuild.store.stage import writing

COUNT, SHARD = 150, 40


@pytest.fixture
def config(tmp_path: Path) -> RelateConfig:
    rng = np.random.default_rng(0)
    titles = [f"title {i % 70}" for i in range(COUNT)]
    table = pa.table({"key": [f"k{i}" for i in range(COUNT)], "year": rng.integers(0, 40, COUNT), "title": titles})
    pq.write_table(table, tmp_path / "rows.parquet")
    kernels = ("year=number:5", "title=text:hashing:16")
    return RelateConfig(sources=(str(tmp_path / "rows.parquet"),), kernels=kernels, id_column="key", k=6, shard_size=SHARD)


def _shards(graph_dir: Path) -> dict[str, bytes]:
    return {path.relative_to(graph_dir).as_posix(): path.read_bytes() for path in sorted(graph_dir.glob("*/part-*"))}


def _scratch(graph_dir: Path) -> list[str]:
    return sorted(path.name for path in (graph_dir / "knn").iterdir() if not path.name.startswith("part-"))


def test_dry_run_says_what_a_run_takes_and_writes_nothing(tmp_path: Path, config: RelateConfig) -> None:
    expected = estimate_relate(tmp_path / "g", config)
    assert not (tmp_path / "g").exists()
    made = relate_columns(tmp_path / "g", config)
    assert (expected.samples, expected.texts, expected.k) == (COUNT, made.counts["texts"], 6)
    assert (expected.missing_shards, expected.shards) == (len(Manifest.load(tmp_path / "g").stages["knn"].files),) * 2
    assert (expected.pairs, expected.embedded) == (expected.texts**2, 70)
    # Headers of Arrow files come on top.
    written = sum(path.stat().st_size for path in (tmp_path / "g" / "knn").iterdir())
    assert expected.bytes < written < expected.bytes + 4_000 * expected.shards
    assert expected.seconds >= expected.embed_seconds > 0
    assert estimate_relate(tmp_path / "g", config).summary().endswith("nothing is missing")
    with pytest.raises(OptionError, match="built with other options"):
        estimate_relate(tmp_path / "g", replace(config, k=5))
    assert estimate_relate(tmp_path / "g", replace(config, k=5, overwrite=True)).missing_shards == expected.shards


def test_dry_run_counts_the_shards_that_are_missing(tmp_path: Path, config: RelateConfig) -> None:
    relate_columns(tmp_path / "g", config)
    (tmp_path / "g" / "knn" / "part-00001.arrow").unlink()
    expected = estimate_relate(tmp_path / "g", config)
    assert (expected.missing_shards, expected.pairs) == (1, SHARD * expected.texts)
    arguments = ["relate", "--source", config.sources[0], "--id-column", "key", "--k", "6", "--shard-size", str(SHARD)]
    arguments += [word for kernel in config.kernels for word in ("--kernel", kernel)]
    said = CliRunner().invoke(cli, [*arguments, "--graph-dir", str(tmp_path / "g"), "--dry-run", "--json"], catch_exceptions=False)
    assert json.loads(said.stdout)["missing_shards"] == 1


def test_parts_and_a_last_call_give_the_bytes_of_one_call(tmp_path: Path, config: RelateConfig) -> None:
    relate_columns(tmp_path / "whole", config)
    shards = len(Manifest.load(tmp_path / "whole").stages["knn"].files)
    first = relate_part(tmp_path / "g", config, Part(1, 2))
    assert (first.written, first.open) == (-(-shards // 2), shards // 2)
    assert "knn" not in Manifest.load(tmp_path / "g").stages
    second = relate_part(tmp_path / "g", config, Part(2, 2))
    assert second.open == 0
    assert "run `graphbuild relate` without --part" in second.summary()
    done = relate_columns(tmp_path / "g", config)
    assert done.facts["reused_shards"] == shards
    assert _shards(tmp_path / "g") == _shards(tmp_path / "whole")
    assert _scratch(tmp_path / "g") == []
    assert relate_part(tmp_path / "g", config, Part(1, 2)).written == 0


def test_workers_give_the_bytes_of_one_process_and_find_a_taxonomy_wherever_they_stand(
    tmp_path: Path, config: RelateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree.tsv").write_text("".join(f"title {i}\tgroup {i % 4}\n" for i in range(70)))
    monkeypatch.chdir(tmp_path)
    config = replace(config, kernels=(*config.kernels, "title=taxonomy:tree.tsv"))
    relate_columns(tmp_path / "one", config)
    relate_columns(tmp_path / "two", replace(config, workers=2))
    assert _shards(tmp_path / "one") == _shards(tmp_path / "two")


def test_texts_that_were_embedded_before_a_kill_are_not_embedded_again(
    tmp_path: Path, config: RelateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    relate_columns(tmp_path / "whole", config)
    with writing(tmp_path / "g") as manifest:
        Relation(tmp_path / "g", manifest, Requested.read(tmp_path / "g", config)).prepare()
    assert len(_scratch(tmp_path / "g")) == 3

    def refuse(*_arguments: object) -> np.ndarray:
        raise AssertionError("a text is embedded again")

    monkeypatch.setattr(related, "embed_now", refuse)
    relate_columns(tmp_path / "g", config)
    assert _shards(tmp_path / "g") == _shards(tmp_path / "whole")


def test_two_machines_at_one_part_or_a_whole_call_beside_one_are_refused(tmp_path: Path, config: RelateConfig) -> None:
    relate_part(tmp_path / "g", config, Part(1, 2))
    with working_at(tmp_path / "g", "relate", Part(2, 2)):
        with pytest.raises(LockedError, match="Part 2/2 of relate is taken"):
            relate_part(tmp_path / "g", config, Part(2, 2))
        with pytest.raises(LockedError, match="Wait until all parts of relate have ended"):
            relate_columns(tmp_path / "g", config)
    for change in ({"overwrite": True}, {"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}):
        with pytest.raises(OptionError, match="--part does what is missing in one process"):
            relate_part(tmp_path / "g", replace(config, **change), Part(2, 2))
