"""Flash attention: how it is chosen, and sequences end to end in a call, by an attention in plain torch in its place."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_embed import embed, numbered_captions, write_captions
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AttentionInterface, AttentionMaskInterface, RobertaConfig, RobertaModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from graphbuild.cli import cli
from graphbuild.embed.attention import IMPLEMENTATIONS, Machine
from graphbuild.embed.encoder import MIN_COSINE, choose_precision, use_flash
from graphbuild.embed.encoder_files import EncoderSpec, find_encoder, missing_on_this_machine
from graphbuild.embed.sentence_encoder import SentenceEncoder
from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.manifest import Manifest

PLAIN = "one_sequence_after_another"
CALL_TOKENS = 4_096
GPU = Machine(capability=(9, 0), packages=frozenset(IMPLEMENTATIONS))


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, *, scaling: float, **flat: Any
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence, (1, T, heads, width), by the boundaries that flash attention takes."""
    found = torch.empty_like(query)
    assert query.shape[2] == int(flat["cu_seq_lens_q"][-1])
    for start, stop in pairwise(flat["cu_seq_lens_q"].tolist()):
        assert 0 < stop - start <= flat["max_length_q"]
        one = [each[:, :, start:stop].float() for each in (query, key, value)]
        found[:, :, start:stop] = ((one[0] @ one[1].mT * scaling).softmax(-1) @ one[2]).to(found.dtype)
    return found.transpose(1, 2).contiguous(), None


@pytest.fixture(autouse=True)
def plain() -> None:
    """The attention above, under a name of its own."""
    AttentionInterface.register(PLAIN, _attend)
    AttentionMaskInterface.register(PLAIN, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """Of all lengths up to more than the encoder takes."""
    long = [" ".join(["the dog and the cat"] * words) for words in (3, 15, 60)]
    return [*numbered_captions(12), "", *long]


def _both(spec: EncoderSpec, precision: str) -> tuple[SentenceEncoder, SentenceEncoder]:
    """The encoder as it is, and without padding."""
    return SentenceEncoder(spec, precision), SentenceEncoder(replace(spec, attention=PLAIN, precision=precision), precision)


@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-6), ("bfloat16", 1 - MIN_COSINE)])
def test_vectors_without_padding_are_those_with_it(captions: list[str], precision: str, apart: float) -> None:
    padded, unpadded = _both(find_encoder("all-MiniLM-L6-v2"), precision)
    tokens, _ = padded.tokenize(captions)
    assert (padded.encode(tokens) * unpadded.encode(tokens)).sum(axis=1).min() > 1 - apart
    assert padded.encode_one(tokens[3]) @ unpadded.encode_one(tokens[3]) > 1 - apart


def test_bytes_of_a_text_without_padding_do_not_depend_on_the_others(captions: list[str]) -> None:
    _, unpadded = _both(find_encoder("all-MiniLM-L6-v2"), "bfloat16")
    tokens, _ = unpadded.tokenize(captions)
    picked = [12, 7, 14, 3]
    assert np.array_equal(unpadded.encode([tokens[row] for row in picked]), unpadded.encode(tokens)[picked])


def test_calls_without_padding_are_fewer_and_hold_their_tokens_end_to_end() -> None:
    padded, unpadded = _both(find_encoder("all-MiniLM-L6-v2"), "float32")
    rng = np.random.default_rng(0)
    tokens = [np.full(length, 1_000, np.int32) for length in rng.integers(3, 257, 300)]
    calls = list(unpadded.padded_batches(tokens))
    held = [sum(len(tokens[row]) for row in rows) for rows, _ in calls]
    assert sorted(row for rows, _ in calls for row in rows) == list(range(300))
    assert sum(held) == sum(map(len, tokens))
    assert max(held) <= CALL_TOKENS
    assert [int(features["attention_mask"].sum()) for _, features in calls] == held
    assert len(calls) < len(list(padded.padded_batches(tokens)))


def test_positions_of_roberta_begin_where_it_counts_from(small_roberta: Path) -> None:
    padded, unpadded = _both(find_encoder(str(small_roberta)), "float32")
    tokens = [np.array([0, *range(5, 5 + length), 2], np.int32) for length in (1, 4, 20)]
    np.testing.assert_allclose(unpadded.encode(tokens), padded.encode(tokens), atol=1e-6)


@pytest.fixture(scope="module")
def small_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder whose positions begin at 2, and matter."""
    from transformers import AutoTokenizer

    base = tmp_path_factory.mktemp("roberta")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(vocab_size=40, max_position_embeddings=34, initializer_range=0.5, **sizes)).save_pretrained(base)
    AutoTokenizer.from_pretrained(find_encoder("all-MiniLM-L6-v2").folder).save_pretrained(base)
    saved = tmp_path_factory.mktemp("roberta-encoder")
    SentenceTransformer(modules=[Transformer(str(base), max_seq_length=32), Pooling(24)], device="cpu").save(str(saved))
    return saved


@pytest.mark.parametrize(
    ("machine", "lack"),
    [
        (Machine(capability=None, packages=GPU.packages), "has no CUDA GPU that torch sees"),
        (Machine(capability=(7, 5), packages=GPU.packages), "has a GPU of compute capability 7.5, and 8.0 is needed"),
        (Machine(capability=(8, 0), packages=frozenset()), "has neither flash_attn nor kernels"),
    ],
)
def test_machine_that_lacks_what_flash_attention_needs_is_told(machine: Machine, lack: str) -> None:
    assert str(machine.lacks()).startswith(lack)
    with pytest.raises(OptionError, match=f"--attention flash: this machine {lack}"):
        use_flash(find_encoder("all-MiniLM-L6-v2"), machine)


def test_package_that_is_there_says_which_implementation_is_taken_and_what_a_worker_needs() -> None:
    assert GPU.implementation() == "flash_attention_2"
    fetched = Machine(capability=(8, 0), packages=frozenset({"kernels"}))
    assert (fetched.implementation(), fetched.lacks("kernels-community/flash-attn2")) == ("kernels-community/flash-attn2", None)
    assert str(fetched.lacks("flash_attention_2")).startswith("has no flash_attn of a version")
    spec = replace(find_encoder("all-MiniLM-L6-v2"), attention="flash_attention_2")
    assert "the encoder runs with flash_attention_2 (--attention flash)" in str(missing_on_this_machine(spec))


def test_flash_attention_is_refused_in_float32_for_other_backends_and_where_it_cannot_be_loaded() -> None:
    spec = find_encoder("all-MiniLM-L6-v2")
    with pytest.raises(OptionError, match="computes in half precision"):
        use_flash(spec.with_precision("float32"), GPU)
    with pytest.raises(OptionError, match="--encoder hashing:8 is none"):
        use_flash(find_encoder("hashing:8"), GPU)
    with pytest.raises(OptionError, match="--backend onnx is none"):
        use_flash(replace(spec, backend="onnx"), GPU)
    # This machine has no such package, whatever it is taken for.
    with pytest.raises((ArtifactError, OptionError), match="has no CUDA GPU"):
        use_flash(spec.with_precision("bfloat16"), GPU)


def test_attention_decides_the_bytes_and_stands_in_the_manifest_where_it_is_not_torchs_own(tmp_path: Path) -> None:
    spec = choose_precision(find_encoder("all-MiniLM-L6-v2"), "auto")[0]
    assert "attention" not in spec.identity()
    assert replace(spec, attention="flash_attention_2").identity()["attention"] == "flash_attention_2"
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(3)})
    embed(tmp_path / "g", source, encoder="all-MiniLM-L6-v2")
    assert "attention" not in Manifest.load(tmp_path / "g").encoder
    options = ["--dataset", "parquet", "--source", str(source), "--graph-dir", str(tmp_path / "h"), "--attention", "flash"]
    refused = CliRunner().invoke(cli, ["embed", *options])
    assert str(refused.exception) == "--attention flash: this machine has no CUDA GPU that torch sees. Leave it out."
    assert not (tmp_path / "h").exists()
    with pytest.raises(OptionError, match="--attention does not apply to --dataset vectors"):
        embed(tmp_path / "h", source, "vectors", encoder="all-MiniLM-L6-v2", attention="flash")
