"""Whether an encoder covers the captions, by its tokenizer alone."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers_graph import clustered_vectors, write_graph
from tokenizers import Tokenizer, models, pre_tokenizers

import graphbuild
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.health.coverage import Vocabulary
from graphbuild.system.options import DEFAULT_ENCODER

ENGLISH = (
    "a brown dog runs along the beach at sunset",
    "Two children in red coats wait for the school bus.",
    "tench",
    "a photo of a great white shark",
    "a dog \U0001f436 in the snow",
)
OTHERS = (
    "ein brauner Hund läuft bei Sonnenuntergang am Strand entlang",
    "dos niños con abrigos rojos esperan el autobús escolar",
    "ruskea koira juoksee rantaa pitkin auringonlaskun aikaan",
    "коричневая собака бежит по пляжу на закате",
    "一只棕色的狗在日落时沿着海滩奔跑",
    "茶色の犬が夕暮れのビーチを走っています",
    "एक भूरा कुत्ता सूर्यास्त के समय समुद्र तट पर दौड़ रहा है",
    "ភ្នំ",
    "\U0001f436",
)
ALPHABETS = ("abcdefghijklmnop", "абвгдежзийклмноп", "αβγδεζηθικλμνξοπ", "אבגדהוזחטיכלמנסע")


@pytest.fixture(scope="module")
def built_in() -> Path:
    return Path(str(find_encoder(DEFAULT_ENCODER).folder)) / "tokenizer.json"


def test_the_built_in_encoder_covers_english_and_no_other_language(built_in: Path) -> None:
    vocabulary = Vocabulary.read(built_in)
    assert vocabulary.scripts == {"LATIN"}
    assert vocabulary.covers(ENGLISH) == [True] * len(ENGLISH)
    assert vocabulary.covers(OTHERS) == [False] * len(OTHERS)


def test_real_captions_are_covered_but_for_a_hundredth(built_in: Path, shared_data: Path) -> None:
    captions = pq.read_table(shared_data / "captions/captions.parquet", columns=["text"])["text"].to_pylist()[::300]
    covered = Vocabulary.read(built_in).covers(captions)
    assert sum(covered) / len(covered) > 0.99


def write_vocabulary_of_many_scripts(path: Path) -> Path:
    """Write one with 256 pieces of two letters in each of four scripts."""
    pairs = [pair for letters in ALPHABETS for pair in product(letters, letters)]
    pieces = ["[UNK]", *"".join(ALPHABETS), *("".join(pair) for pair in pairs)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, pairs, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def test_a_vocabulary_of_many_languages_may_split_words_as_it_likes(tmp_path: Path) -> None:
    vocabulary = Vocabulary.read(write_vocabulary_of_many_scripts(tmp_path / "tokenizer.json"))
    assert vocabulary.scripts == {"LATIN", "CYRILLIC", "GREEK", "HEBREW"}
    assert vocabulary.covers(["abcdefgh abcdefgh ponmlk dcba", "абвгдежз абвгдежз поном дага", "犬 犬 猫 猫"]) == [
        True,
        True,
        False,
    ]


@pytest.fixture
def foreign(tmp_path: Path, built_in: Path) -> Path:
    """A graph with the tokenizer of the built-in encoder; every third caption is in another language."""
    texts = [f"{OTHERS[i % 9]} {i}" if i % 3 == 0 else f"{ENGLISH[i % 5]} {i}" for i in range(60)]
    return with_tokenizer(tmp_path, texts, built_in)


def with_tokenizer(folder: Path, texts: list[str], tokenizer: Path) -> Path:
    write_graph(folder, clustered_vectors(len(texts), 8), texts=texts)
    build_knn(folder, KnnConfig(k=6))
    (folder / "tokenizer").mkdir(exist_ok=True)
    shutil.copy(tokenizer, folder / "tokenizer/tokenizer.json")
    return folder


def test_captions_in_a_foreign_language_are_a_warning_with_examples(foreign: Path) -> None:
    health = graphbuild.open(foreign).health(batch_size=8)
    found = health.measure("uncovered")
    assert found is not None
    # Each text of one emoji has a number beside it here, which is half of it.
    assert (found.verdict, found.value) == ("poor", pytest.approx(1 / 3))
    assert "multilingual" in found.why
    assert {entry["text_id"] % 3 for entry in health.uncovered} == {0}
    assert "texts that the encoder hardly knows" in health.summary()


def test_a_graph_without_a_tokenizer_is_not_judged(foreign: Path) -> None:
    (foreign / "tokenizer/tokenizer.json").unlink()
    assert graphbuild.open(foreign).health(batch_size=8).measure("uncovered") is None


def test_what_embed_counted_of_all_captions_counts_where_the_sample_has_less(tmp_path: Path, built_in: Path) -> None:
    view = graphbuild.open(with_tokenizer(tmp_path, [f"{ENGLISH[i % 5]} {i}" for i in range(60)], built_in))
    view.manifest.counts |= {"unknown_captions": 12, "captions": 60}
    found = view.health(batch_size=8).measure("uncovered")
    assert found is not None
    assert found.value == pytest.approx(0.2)
