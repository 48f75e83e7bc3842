"""The nearest texts of any text, against a brute force in float64."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers_embed import embed, graphbuild, numbered_captions, write_captions

import graphbuild as package
from graphbuild.cli import cli
from graphbuild.embed.hashing import HashingEncoder
from graphbuild.embed.index import build_index
from graphbuild.embed.nearest import VectorIndex, nearest_texts
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.digests import digest_file
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.manifest import Manifest

CAPTIONS = numbered_captions(600)


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    embed(folder / "g", write_captions(folder / "a.parquet", {"caption": CAPTIONS}), encoder="hashing:32", shard_size=250)
    return folder / "g"


def brute_force(graph_dir: Path, query: str, count: int) -> list[tuple[int, float]]:
    encoder = HashingEncoder(32)
    vector = encoder.encode(encoder.tokenize([query])[0])[0].astype(np.float16).astype(np.float64)
    scores = load_embeddings(graph_dir).astype(np.float64) @ vector
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:count]
    return [(row, float(scores[row])) for row in order]


def test_nearest_texts_are_those_of_a_float64_brute_force(graph_dir: Path) -> None:
    near = nearest_texts(graph_dir, "dog number 7 near the lake", count=12)
    expected = brute_force(graph_dir, "dog number 7 near the lake", 12)
    assert [(item.text_id, item.similarity) for item in near.found] == expected
    assert [item.text for item in near.found] == [CAPTIONS[row] for row, _ in expected]


def test_a_text_that_is_no_utf8_is_asked_as_a_caption_would_be_stored(graph_dir: Path) -> None:
    asked = "dog number 7 \udced\udca0 near the lake"
    assert nearest_texts(graph_dir, asked).query == "dog number 7 \ufffd\ufffd near the lake"


def test_ivf_index_finds_the_nearest_and_scores_it_exactly(graph_dir: Path) -> None:
    manifest = Manifest.load(graph_dir)
    build_index(graph_dir, manifest, overwrite=True, flat_limit=100)
    try:
        assert Manifest.load(graph_dir).stages["index"].config == {"kind": "ivf-float16", "lists": 98}
        near = nearest_texts(graph_dir, CAPTIONS[123], count=1)
        assert (near.found[0].text_id, near.found[0].similarity) == brute_force(graph_dir, CAPTIONS[123], 1)[0]
    finally:
        build_index(graph_dir, manifest, overwrite=True)


def test_ivf_index_is_mapped_and_gives_what_its_lists_hold(graph_dir: Path) -> None:
    manifest = Manifest.load(graph_dir)
    build_index(graph_dir, manifest, overwrite=True, flat_limit=100)
    try:
        index = VectorIndex(graph_dir / "index.faiss")
        assert f"{graph_dir}/index.faiss" in Path("/proc/self/maps").read_text()
        # More than the lists that are probed hold.
        ids, scores = index.nearest(load_embeddings(graph_dir)[123], 600)
        assert 1 < len(ids) == len(set(ids.tolist())) < 600
        assert ids.min() >= 0
        assert (np.diff(scores) <= 0).all()
        del index
    finally:
        build_index(graph_dir, manifest, overwrite=True)


def test_an_index_that_names_texts_of_another_graph_is_refused(tmp_path: Path) -> None:
    for name, count in (("small", 5), ("large", 50)):
        embed(tmp_path / name, write_captions(tmp_path / f"{name}.parquet", {"caption": CAPTIONS[:count]}), encoder="hashing:32")
    index = shutil.copyfile(tmp_path / "large/index.faiss", tmp_path / "small/index.faiss")
    manifest = Manifest.load(tmp_path / "small")
    files = manifest.stages["index"].files
    files["index.faiss"] = replace(files["index.faiss"], bytes=index.stat().st_size, digest=digest_file(index))
    manifest.save(tmp_path / "small")
    with pytest.raises(ArtifactError, match=r"index\.faiss names text \d+, which the graph does not have"):
        nearest_texts(tmp_path / "small", CAPTIONS[40])


def test_fewer_texts_than_wanted_are_all_returned(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": ["a dog", "a cat"]}))
    assert len(nearest_texts(tmp_path / "g", "a dog", count=50).found) == 2


def test_blank_query_is_refused(graph_dir: Path) -> None:
    with pytest.raises(OptionError, match="blank"):
        nearest_texts(graph_dir, " \t ")


def test_another_encoder_of_the_same_name_is_refused(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": ["a dog"]}))
    manifest = Manifest.load(tmp_path / "g")
    manifest.encoder["sha256"] = "0" * 64
    manifest.save(tmp_path / "g")
    with pytest.raises(ArtifactMismatch, match="000000000000"):
        nearest_texts(tmp_path / "g", "a dog")


def test_a_stored_caption_and_its_id_are_answered_by_stored_neighbours_without_encoder_or_index(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS[:60]}), encoder="hashing:32")
    expected = brute_force(tmp_path / "g", CAPTIONS[7], 6)
    build_knn(tmp_path / "g", KnnConfig(k=9))
    (tmp_path / "g/index.faiss").unlink()
    # Fresh interpreters, for what they import.
    code = "import sys; from graphbuild.cli import cli; cli(standalone_mode=False); print(sorted(sys.modules))"
    command = [sys.executable, "-c", code, "neighbors", "--graph-dir", str(tmp_path / "g"), "-n", "6", "--json"]
    shown = [
        subprocess.run([*command, *asked], capture_output=True, text=True)
        for asked in (
            [f" {CAPTIONS[7]}  "],
            ["--id", "7"],
        )
    ]
    for answer in shown:
        assert answer.stderr == ""
        found, modules = answer.stdout.splitlines()
        near = json.loads(found)
        assert near["query"] == CAPTIONS[7]
        assert [item["text_id"] for item in near["found"]] == [text_id for text_id, _ in expected]
        assert [item["similarity"] for item in near["found"]] == pytest.approx([score for _, score in expected], abs=1e-3)
        assert not {"torch", "faiss", "sentence_transformers", "polars"} & set(ast.literal_eval(modules))


def test_more_neighbours_than_are_stored_come_from_the_index(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS[:60]}), encoder="hashing:32")
    build_knn(tmp_path / "g", KnnConfig(k=9))
    near = nearest_texts(tmp_path / "g", 7, count=12)
    assert [item.text_id for item in near.found] == [text_id for text_id, _ in brute_force(tmp_path / "g", CAPTIONS[7], 12)]


def test_an_id_that_there_is_not_and_a_call_without_a_text_are_refused(graph_dir: Path) -> None:
    with pytest.raises(OptionError, match="no text_id 600; they run from 0 to 599"):
        nearest_texts(graph_dir, 600)
    for arguments in (["a", "--id", "3"], []):
        assert CliRunner().invoke(cli, ["neighbors", "--graph-dir", str(graph_dir), *arguments]).exit_code == 2


def test_neighbors_command_prints_similarity_id_and_text(graph_dir: Path) -> None:
    answer = graphbuild("neighbors", CAPTIONS[5], "--graph-dir", graph_dir, "-n", "1")
    assert (answer.returncode, answer.stderr) == (0, "")
    score, text_id, text = answer.stdout.strip().split(maxsplit=2)
    assert (text_id, text) == ("5", CAPTIONS[5])
    assert abs(float(score) - 1) < 2e-3


def test_a_view_opens_its_index_once(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": ["a dog", "a cat"]}), encoder="hashing:32")
    view = package.open(tmp_path / "g")
    first = view.neighbors("the dog", count=2)
    # Were it opened again, this would be missed.
    (tmp_path / "g" / "index.faiss").unlink()
    assert view.neighbors("the dog", count=2).equals(first)
