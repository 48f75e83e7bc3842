"""Trainings on each kind of graph: a record for each that can be made, and twins that hold the same similarities between others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from helpers_study import NAMES, short_evaluations, write_source

from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.graph import Graph
from pipelines.study.data import StudyData
from pipelines.study.kinds import TRIALS, Kinds, KindsConfig, execute
from pipelines.study.objectives import table
from train.config import TrainConfig
from train.run.loop import train


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> KindsConfig:
    root = tmp_path_factory.mktemp("kinds")
    (root / "source" / "flickr8k").mkdir(parents=True)
    write_source(root / "source")
    pictures = pl.read_parquet(root / "source/tiny_imagenet/val.parquet").select("image", "file")
    captions = [[f"a {NAMES[row % 10]} number {row}", "another"] for row in range(len(pictures))]
    flickr = pictures.with_columns(captions=pl.Series(captions), split=pl.lit("train"))
    flickr.write_parquet(root / "source/flickr8k/flickr8k_96.parquet")
    run = root / "simclr"
    data = str(root / "source/tiny_imagenet/val.parquet")
    train(
        TrainConfig(
            objective="simclr", data=data, id_column="file", model="small", image_size=32, batch_size=16, steps=1, epochs=1
        ),
        run,
    )
    return KindsConfig(
        source=root / "source",
        out=root / "out",
        records=root / "records.jsonl",
        tiny_run=run,
        flickr_run=run,
        names=("prompts-wordnet", "pictures-prompts", "pictures-shuffled", "flickr-both"),
        budget=64,
        batch_size=16,
        encoder="hashing:32",
    )


def test_table_of_the_documentation_is_that_of_its_records() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert table(docs / "graphs/records.jsonl", TRIALS) in (docs / "graphs.md").read_text(encoding="utf-8")


def test_every_kind_has_a_twin_and_makes_a_record_where_its_pictures_are_known(config: KindsConfig) -> None:
    with short_evaluations():
        execute(config)
    lines = [json.loads(line) for line in config.records.read_text().splitlines()]
    assert [line["arm"] for line in lines] == list(config.names)
    assert {line["options"]["tau_s"] for line in lines} == {"auto"}
    assert all(trial.twin in TRIALS for name, trial in TRIALS.items() if not name.endswith("-shuffled"))
    alone = KindsConfig(source=config.source, out=config.out, records=config.records)
    assert [name for name in TRIALS if alone.can(TRIALS[name].arm.graph)] == [
        name for name in TRIALS if not name.startswith(("pictures", "flickr-pictures", "flickr-both"))
    ]


def test_twin_has_the_vectors_of_other_samples(config: KindsConfig) -> None:
    kinds = Kinds(config, StudyData(config.out / "data", config.source))
    true, twin = (Graph.open(kinds.build(name)) for name in ("pictures", "pictures-shuffled"))
    files = pl.read_parquet(config.out / "data/seen.parquet")["file"].to_list()
    vectors = [load_embeddings(graph.path)[graph.sample_texts(files).text_ids].astype(np.float64) for graph in (true, twin)]
    moved = np.abs(vectors[0] - vectors[1]).max(axis=1) > 1e-3
    assert moved.mean() > 0.8
    ordered = [np.sort((one @ one.T).reshape(-1)) for one in vectors]
    np.testing.assert_allclose(ordered[0], ordered[1], atol=2e-3)


def test_mean_of_prompts_and_wordnet_is_stored(config: KindsConfig) -> None:
    kinds = Kinds(config, StudyData(config.out / "data", config.source))
    graph, prompts = (Graph.open(kinds.build(name)) for name in ("prompts+wordnet", "prompts"))
    seen = pl.read_parquet(config.out / "data/seen.parquet", columns=["file", "name", "wnid"])
    first = seen.unique("name", maintain_order=True)
    files, wnids = first["file"].to_list(), first["wnid"].to_list()
    vectors = load_embeddings(prompts.path)[prompts.sample_texts(files).text_ids].astype(np.float64)
    with np.load(config.source / "classes/tiny_imagenet_wordnet_pathdist.npz") as stored:
        order = [stored["wnids"].tolist().index(wnid) for wnid in wnids]
        paths = 1 / (1 + stored["dist"][np.ix_(order, order)].astype(np.float64))
    exact = (vectors @ vectors.T + paths) / 2
    texts = graph.sample_texts(files).text_ids
    rows = graph.rows(texts)
    for row, (ids, values) in enumerate(zip(rows.neighbor_ids, rows.similarities, strict=True)):
        places = [texts.tolist().index(one) for one in ids]
        np.testing.assert_allclose(values, exact[row, places], atol=1e-3)
