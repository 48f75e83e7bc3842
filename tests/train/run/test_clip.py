"""CLIP: its loss in tiles, its tokens and its text tower, and runs that learn to tell captions apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_targets import whole_clip_loss
from helpers_train import CLASSES, tiny_config, write_images
from torch import Tensor
from torch.nn import functional

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.torch.losses import clip_loss
from train.config import TrainConfig
from train.data.prepare import prepare
from train.model.text_tower import TextTokens, TextTower, Tokenizer, encode_texts
from train.run.checkpoint import checkpoints, load_encoder, load_text_tower
from train.run.loop import train
from train.run.metrics import read_metrics

WORDS = ["[UNK]", "colour", "zero", "one", "two", "three", "four", "a", "picture", "of"]
NUMBERS = WORDS[2:7]


def write_tokenizer(folder: Path) -> None:
    """A word tokenizer in the format of Hugging Face."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    fast = Fast(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    folder.mkdir(parents=True)
    fast.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Pictures whose captions name the class that their colour tells."""
    folder = tmp_path_factory.mktemp("clip")
    write_images(folder / "images.parquet", 40)
    texts = [f"a picture of colour {number}" for number in NUMBERS]
    write_graph(
        folder / "graph", clustered_vectors(CLASSES, 8), texts=texts, samples=[(f"img-{i}", i % CLASSES) for i in range(40)]
    )
    build_knn(folder / "graph", KnnConfig(k=2, sketch_dim=8))
    write_tokenizer(folder / "graph" / "tokenizer")
    sizes = {"text_width": 64, "text_layers": 1, "text_length": 6, "augment": "none", "checkpoint_every": 3}
    return tiny_config(graph_dir=str(folder / "graph"), data=str(folder / "images.parquet"), objective="clip", **sizes)


def unit(seed: int, count: int = 10, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("parts", [[range(10)], [range(0, 4), range(4, 10)]])
def test_tiled_clip_loss_and_gradients_equal_the_plain_ones(parts: list[range]) -> None:
    ids = torch.tensor([3, 1, 3, 0, 5, 1, 3, 9, 8, 7])
    plain, tiled = ([item.requires_grad_() for item in (unit(0), unit(1), torch.tensor(9.0).double())] for _ in range(2))
    whole_clip_loss(*plain, ids).backward()  # type: ignore[no-untyped-call]
    for anchors in parts:
        share = len(anchors) / 10
        (share * clip_loss(*tiled, ids, anchors, tile=3).loss).backward()
    for one, other in zip(plain, tiled, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


def test_entropy_of_the_clip_target_counts_repeated_texts() -> None:
    found = clip_loss(unit(0, 4), unit(1, 4), torch.tensor(5.0), torch.tensor([2, 2, 2, 0]), range(4), tile=3)
    assert found.target_entropy.item() == pytest.approx(3 * np.log(3) / 4)
    assert found.own_view_mass.item() == pytest.approx((3 / 3 + 1) / 4)


def test_tokens_of_a_batch_are_those_of_the_tokenizer_cut_and_marked(config: TrainConfig) -> None:
    assert config.graph_dir is not None
    graph = Graph.open(config.graph_dir)
    tokenizer = Tokenizer(graph.path / "tokenizer", 6)
    assert TextTokens(graph, tokenizer).batch(np.array([3, 0])).tolist() == [[7, 8, 9, 1, 5, -1], [7, 8, 9, 1, 2, -1]]
    short = TextTokens(graph, Tokenizer(graph.path / "tokenizer", 4))
    assert short.batch(np.array([1])).tolist() == [[7, 8, 9, 1]]
    assert short.cut == 5


def test_text_vector_does_not_depend_on_what_lies_beyond_its_end() -> None:
    torch.manual_seed(0)
    tower = TextTower(vocabulary=10, length=8, width=64, layers=2, out_dim=4).eval()
    alone, padded = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3, -1, -1, -1]])
    torch.testing.assert_close(tower(alone), tower(padded))
    assert tower(padded).norm().item() == pytest.approx(1.0)


def test_clip_learns_which_caption_belongs_to_a_picture(config: TrainConfig, tmp_path: Path) -> None:
    trained = replace(config, epochs=24, optimizer="adamw", lr=3e-3)
    train(trained, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert np.mean([line["kl"] for line in lines[-5:]]) < 0.3 * lines[0]["kl"]
    assert (lines[0]["hit_rate"], lines[0]["kl_to_dense"]) == (None, None)
    assert trained.graph_dir is not None
    tokenizer = Tokenizer(Path(trained.graph_dir) / "tokenizer", 6)
    texts = encode_texts(load_text_tower(tmp_path / "run"), tokenizer, [f"a picture of colour {number}" for number in NUMBERS])
    data = prepare(trained)
    from train.data.augment import centre_views

    pictures = data.store.batch(np.arange(20))
    with torch.inference_mode():
        images = load_encoder(tmp_path / "run")(centre_views(pictures.pixels, pictures.sizes, 8))
    guessed = (images @ texts.T).argmax(dim=1)
    assert (guessed == torch.arange(20) % CLASSES).float().mean() > 0.8


def test_stopped_clip_run_goes_on_to_the_same_bits(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    newest = checkpoints(tmp_path / "cut")[0]
    (newest / "state.pt").unlink()
    assert 0 < train(config, tmp_path / "cut").first_step < 10
    for load in (load_encoder, load_text_tower):
        one, other = (load(tmp_path / name).state_dict() for name in ("whole", "cut"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_clip_without_a_tokenizer_says_how_to_get_one(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"tokenizer\.json is missing\. Build the graph with a Sentence Transformer"):
        Tokenizer(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(tmp_path, 8)


def test_run_without_text_tower_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="only a finished run of --objective clip has a text tower"):
        load_text_tower(tmp_path)
    (tmp_path / "text_tower.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="not a text tower"):
        load_text_tower(tmp_path)
