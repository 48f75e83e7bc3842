"""Sentence encoders: texts in, unit vectors out, the same bytes for the same text whatever else is in the batch.

Shape letters: B rows of one encoder call, L tokens of its bucket, D vector width.
Token lengths fall into fixed buckets and every call has one of a few fixed shapes, because in half precision the bytes
depend on the shape. An encoder's own code is run only where the user named it for that. torch is loaded with the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graphbuild.embed.attention import Machine
from graphbuild.embed.encoder_files import BUILT_IN_SHA256, EncoderSpec, require_recorded_files
from graphbuild.embed.hashing import HashingEncoder, parse_width
from graphbuild.embed.sentence_encoder import SentenceEncoder
from graphbuild.embed.text.table import Tokens
from graphbuild.errors import OptionError
from graphbuild.store.arrays import Float32
from graphbuild.system.cluster import Report

MIN_COSINE = 0.9995
"""Half precision is chosen by itself only where it agrees with float32 to this cosine."""
PROBES = tuple(
    f"{subject} {verb} {place}"
    for subject in ("A small dog", "Two children in red coats", "An old steam locomotive", "The word 42")
    for verb in ("is running", "waits quietly", "can be seen from far away", "was painted, slowly, by hand,")
    for place in ("on a beach.", "in front of a city hall at night", "under the bridge", "")
)
"""Sentences on which encoders are measured and compared."""


class Encoder(Protocol):
    """What embedding needs of an encoder."""

    dim: int
    max_tokens: int

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """Return token ids of each text, cut to the encoder's length, and whether it was cut."""

    def encode(self, tokens: Sequence[Tokens], report: Report = ...) -> Float32:
        """Return unit vectors of token sequences, (len(tokens), D) in float32; `report` is told how many were finished."""

    def encode_one(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return the unit vector of one sequence, (D,), fast: for queries. It may differ from `encode`'s by rounding."""

    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer for later use without the encoder."""

    @property
    def unknown_token(self) -> int | None:
        """The token that stands for what the vocabulary does not have; None where it has everything."""

    @property
    def special_tokens(self) -> frozenset[int]:
        """Tokens that stand for no part of a text."""


@lru_cache(maxsize=2)
def load_encoder(spec: EncoderSpec) -> Encoder:
    """Load an encoder, once per process, after its files were compared with the digests of `spec`.

    Raises:
        ArtifactMismatch: If its files here are others.
        OptionError: If it needs remote code, or is not made of a transformer.
        ArtifactError: If its files cannot be loaded.
    """
    if spec.folder is None:
        return HashingEncoder(parse_width(spec.name))
    require_recorded_files(spec)
    return SentenceEncoder(spec, spec.precision)


def choose_precision(spec: EncoderSpec, requested: str) -> tuple[EncoderSpec, float | None]:
    """Settle `auto`: bfloat16 on a CPU that multiplies in it, float16 on CUDA; float32 elsewhere, and where half is too coarse.

    Returns:
        The encoder with its precision, and the lowest cosine to float32 on 64 probe sentences, where that was measured.
    """
    if spec.backend != "torch":
        if requested not in ("auto", "float32"):
            raise OptionError(f"--precision {requested}: the file of --backend {spec.backend} has its own. Leave it out.")
        return spec, _agreement(spec)
    if requested != "auto" or spec.folder is None:
        return spec.with_precision("float32" if spec.folder is None else requested), None
    import torch

    if torch.cuda.is_available():
        half = spec.with_precision("float16")
    elif torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        half = spec.with_precision("bfloat16")
    else:
        return spec.with_precision("float32"), None
    if spec.sha256 == BUILT_IN_SHA256 and spec.truncate_dim is None:
        # Measured once for all: 0.99992 in bfloat16, 0.999998 in float16, lowest of 500 captions. A test holds it.
        return half, None
    cosine = _agreement(half)
    return (half if cosine >= MIN_COSINE else spec.with_precision("float32")), cosine


def use_flash(spec: EncoderSpec, machine: Machine) -> tuple[EncoderSpec, float]:
    """Settle `--attention flash`, for an encoder with its precision.

    Returns:
        The encoder with the implementation that this machine has, and its lowest cosine to float32 on 64 probe sentences.

    Raises:
        OptionError: If the machine, the precision or the architecture does not allow it, or its vectors are others.
        ArtifactError: If it cannot be loaded.
    """
    if spec.folder is None or spec.backend != "torch":
        what = f"--encoder {spec.name}" if spec.folder is None else f"--backend {spec.backend}"
        raise OptionError(f"--attention flash is for transformers that torch computes, and {what} is none. Leave one of them out.")
    flash = replace(spec, attention=machine.implementation())
    if spec.precision == "float32":
        raise OptionError("--attention flash computes in half precision. Add --precision float16 or bfloat16, or leave it out.")
    cosine = _agreement(flash)
    if cosine < MIN_COSINE:
        raise OptionError(
            f"--attention flash: vectors agree with those of float32 to a cosine of {cosine:.4f} only, and {MIN_COSINE} is asked: "
            "this encoder does not take sequences end to end. Leave it out."
        )
    return flash, cosine


def _agreement(half: EncoderSpec) -> float:
    full = SentenceEncoder(replace(half, backend="torch", attention=None), "float32")
    tokens, _ = full.tokenize(PROBES)
    exact_BD = full.encode(tokens)
    near_BD = load_encoder(half).encode(tokens)
    lowest = float(np.einsum("bd,bd->b", exact_BD, near_BD).min())
    return lowest if np.isfinite(lowest) else -1.0
