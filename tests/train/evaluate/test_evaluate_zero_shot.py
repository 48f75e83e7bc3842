"""Zero-shot classification of a CLIP run, against a loop over images, classes and prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_train import CLASSES, tiny_config, write_images
from tokenizers import Tokenizer as Fast
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn import functional

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.data.augment import centre_views
from train.data.base import decode_centre
from train.data.held_out import held_out_mask
from train.data.parquet import ParquetImages
from train.data.store import CorruptImages, ImageStore
from train.evaluate.options import EvalOptions
from train.evaluate.protocols.image_text import recalls
from train.evaluate.protocols.zero_shot import read_templates
from train.evaluate.run import evaluate_run
from train.model.text_tower import Tokenizer, encode_texts
from train.run.checkpoint import load_encoder, load_text_tower
from train.run.folder import read_run_config
from train.run.loop import train

NAMES = ("zero", "one", "two", "three", "four")
TEMPLATES = ("a picture of {}", "colour {}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP run of a few steps, its graph, and images whose label is the word that their caption ends in."""
    root = tmp_path_factory.mktemp("zero")
    table = pq.read_table(write_images(root / "images.parquet", 40))
    labels = pa.array([NAMES[i % CLASSES] for i in range(40)])
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), root / "images.parquet")
    texts = [f"a picture of {name}" for name in NAMES]
    samples = [(f"img-{i}", i % CLASSES) for i in range(40)]
    write_graph(root / "graph", clustered_vectors(CLASSES, 8), texts=texts, samples=samples)
    build_knn(root / "graph", KnnConfig(k=2, sketch_dim=8))
    words = ["[UNK]", "a", "picture", "of", "colour", *NAMES]
    fast = Fast(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    (root / "graph/tokenizer").mkdir()
    fast.save(str(root / "graph/tokenizer/tokenizer.json"))
    sizes = {"text_width": 64, "text_layers": 1, "text_length": 6, "augment": "none"}
    paths = {"graph_dir": str(root / "graph"), "data": str(root / "images.parquet")}
    train(tiny_config(objective="clip", **paths, **sizes), root / "clip")
    train(tiny_config(objective="simclr", **paths), root / "simclr")
    (root / "templates.json").write_text(json.dumps(TEMPLATES))
    return root


def options(root: Path, **more: str | tuple[str, ...]) -> EvalOptions:
    return EvalOptions(data=str(root / "images.parquet"), device="cpu", allow_overlap=True, **more)  # type: ignore[arg-type]


def test_zero_shot_equals_a_loop_over_images_classes_and_prompts(root: Path) -> None:
    found = evaluate_run(root / "clip", options(root, templates=str(root / "templates.json"), protocols=("zero-shot",)))
    encoder, tower = load_encoder(root / "clip"), load_text_tower(root / "clip")
    tokenizer = Tokenizer(root / "graph/tokenizer", 6)
    source = ParquetImages([root / "images.parquet"])
    right = 0
    for row, name in enumerate(source.labels("label").codes):
        store = ImageStore(source, size=8, corrupt=CorruptImages("x", 0), decoder=decode_centre)
        image = store.batch(pa.array([row]).to_numpy())
        with torch.inference_mode():
            z = encoder(centre_views(image.pixels, image.sizes, 8))[0]
            means = [sum(encode_texts(tower, tokenizer, [one.replace("{}", word)])[0] for one in TEMPLATES) for word in NAMES]
        closest = max(range(CLASSES), key=lambda place: float(functional.cosine_similarity(z, means[place], dim=0)))
        right += NAMES[closest] == source.labels("label").names[name]
    scores = found.scores["trained"]["label"]
    assert scores["zero_shot_top1"] == pytest.approx(right / 40, abs=0.06)
    assert scores["zero_shot_chance"] == 0.2
    assert "zero_shot_top1" not in found.scores["untrained"]["label"]


def test_a_clip_run_is_asked_without_being_named_and_others_are_not(root: Path) -> None:
    assert "zero_shot_top1" in evaluate_run(root / "clip", options(root)).scores["trained"]["label"]
    assert "zero_shot_top1" not in evaluate_run(root / "simclr", options(root)).scores["trained"]["label"]


def test_zero_shot_of_a_run_without_a_text_tower_says_so(root: Path) -> None:
    with pytest.raises(ArtifactError, match="only a finished run of --objective clip"):
        evaluate_run(root / "simclr", options(root, protocols=("zero-shot",)))


@pytest.mark.parametrize("content", ["{}", "[]", '["a photo"]', "no json", None])
def test_templates_without_a_place_for_the_name_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "templates.json").write_text(content)
    with pytest.raises(OptionError, match=r"templates\.json"):
        read_templates(str(tmp_path / "templates.json"))


def test_published_templates_are_read(shared_data: Path) -> None:
    assert len(read_templates(str(shared_data / "classes/clip_imagenet_templates.json"))) == 80


def test_recall_equals_a_loop_over_sorted_neighbours() -> None:
    torch.manual_seed(0)
    images, texts = (functional.normalize(torch.randn(n, 8), dim=1) for n in (30, 70))
    own = [{row, 30 + row, int(torch.randint(70, ()))} for row in range(30)]
    pairs = torch.tensor([(row, text) for row, some in enumerate(own) for text in some]).T
    expected = [
        sum(bool(own[row] & set((images[row] @ texts.T).argsort(descending=True)[:k].tolist())) for row in range(30)) / 30
        for k in (1, 5, 10)
    ]
    assert recalls(images, texts, pairs) == pytest.approx(expected)
    assert 0 < expected[0] < expected[2]
    assert recalls(images, texts[:3], torch.tensor([[0], [2]]))[1:] == pytest.approx([1 / 30, 1 / 30])


def test_held_out_images_find_their_captions_and_captions_their_images(root: Path, tmp_path: Path) -> None:
    train(replace(read_run_config(root / "clip"), val_fraction=0.5), tmp_path / "run")
    found = evaluate_run(tmp_path / "run", EvalOptions(device="cpu", protocols=("image-text",)))
    encoder, tower = load_encoder(tmp_path / "run"), load_text_tower(tmp_path / "run")
    source = ParquetImages([root / "images.parquet"], id_column="id")
    mask = held_out_mask(source, None, 0.5)
    assert mask is not None
    rows = mask.nonzero()[0]
    batch = ImageStore(source, size=8, corrupt=CorruptImages("x", 0), decoder=decode_centre).batch(rows)
    own = [int(row) % CLASSES for row in rows]
    words = sorted(set(own))
    with torch.inference_mode():
        z = encoder(centre_views(batch.pixels, batch.sizes, 8))
        t = encode_texts(tower, Tokenizer(root / "graph/tokenizer", 6), [f"a picture of {NAMES[word]}" for word in words])
    right = sum(words[int((one @ t.T).argmax())] == word for one, word in zip(z, own, strict=True)) / len(own)
    back = sum(own[int((one @ z.T).argmax())] == word for one, word in zip(t, words, strict=True)) / len(words)
    scores = found.scores["trained"]["image_text"]
    assert (scores["to_text_r1"], scores["to_image_r1"]) == pytest.approx((right, back))
    assert (scores["to_text_r5"], scores["images"], scores["texts"]) == (1.0, len(rows), len(words))
    assert "to_text_r1" in found.summary()


def test_images_without_captions_in_the_graph_are_named_if_asked_for_and_left_out_otherwise(root: Path, tmp_path: Path) -> None:
    other = EvalOptions(data=str(write_images(tmp_path / "other.parquet", 10, prefix="other")), device="cpu", allow_overlap=True)
    with pytest.raises(OptionError, match=r"captions of none of the 10 images .*--val-fraction"):
        evaluate_run(root / "clip", replace(other, protocols=("image-text",)))
    assert "image_text" not in evaluate_run(root / "clip", other).scores["trained"]
