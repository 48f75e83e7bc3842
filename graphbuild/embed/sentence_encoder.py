"""Sentence Transformers whose first module is a transformer: texts in, unit vectors out.

Shape letters: B rows of one encoder call, L tokens of its bucket, D vector width.
Token lengths fall into fixed buckets and every call has one of a few fixed shapes, because in half precision the bytes
depend on the shape. torch is loaded with the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.embed.attention import UnpaddedTransformer
from graphbuild.embed.backends import BackendTransformer
from graphbuild.embed.encoder_files import EncoderSpec
from graphbuild.embed.libraries import loading
from graphbuild.embed.text.table import Tokens
from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.arrays import Float32
from graphbuild.system.allocator import keep_freed_memory
from graphbuild.system.cluster import Report

_SHORTEST_BUCKET = 16
_LONGEST_INPUT = 512
_CALL_TOKENS = {"cpu": 4_096, "cuda": 65_536}


class SentenceEncoder:
    """A Sentence Transformer whose first module is a transformer; pooling and what follows are done in float32."""

    def __init__(self, spec: EncoderSpec, precision: str) -> None:
        import torch

        folder = Path(str(spec.folder))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            keep_freed_memory()
        self._model = _load(folder, self._device, _loading_options(spec), trusted=spec.trusted)
        self._transformer, *self._rest = list(self._model)
        if not hasattr(self._transformer, "auto_model"):
            kind = type(self._transformer).__name__
            raise OptionError(
                f"{folder}: the encoder starts with {kind}; only encoders that start with a transformer are supported."
            )
        if spec.backend == "torch":
            self._transformer.to(getattr(torch, precision))
        else:
            self._transformer = BackendTransformer(spec)
        self._tokenizer = self._model.tokenizer
        self.max_tokens = _max_tokens(self._model)
        self._prompt = _choose_prompt(self._model, folder, spec.prompt)
        self._takes_types = "token_type_ids" in self._tokenizer.model_input_names
        self._call_tokens = _CALL_TOKENS[self._device]
        self._unpadded = spec.attention is not None
        if self._unpadded:
            self._call_tokens = max(self._call_tokens, self.max_tokens)
            self._transformer = UnpaddedTransformer(self._transformer, self._call_tokens)
        self.dim = _choose_width(_width(self._model), spec.truncate_dim)
        self._buckets = _bucket_lengths(self.max_tokens)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """Return token ids of each text, cut to the encoder's length, and whether it was cut."""
        prompted = [self._prompt + text for text in texts]
        ids = self._token_ids(prompted, truncation=True, max_length=self.max_tokens)
        full = [row for row, tokens in enumerate(ids) if len(tokens) >= self.max_tokens]
        cut = [False] * len(ids)
        if full:
            whole = self._token_ids([prompted[row] for row in full], truncation=False)
            for row, tokens in zip(full, whole, strict=True):
                cut[row] = len(tokens) > self.max_tokens
        return [np.asarray(tokens, dtype=np.int32) for tokens in ids], cut

    @property
    def unknown_token(self) -> int | None:
        """The token that stands for what the vocabulary does not have; None where it has everything."""
        found: int | None = getattr(self._tokenizer, "unk_token_id", None)
        return found

    @property
    def special_tokens(self) -> frozenset[int]:
        """Tokens that stand for no part of a text."""
        return frozenset(self._tokenizer.all_special_ids) - {self.unknown_token}

    def _token_ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, **options)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def encode(self, tokens: Sequence[Tokens], report: Report = lambda _: None) -> Float32:
        """Return unit vectors of token sequences, (len(tokens), D) in float32; `report` is told how many were finished."""
        vectors = np.empty((len(tokens), self.dim), np.float32)
        for rows, features in self.padded_batches(tokens):
            vectors[rows] = self.transform(features)[: len(rows)]
            report(len(rows))
        _require_finite(vectors)
        return vectors

    def encode_one(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return the unit vector of one sequence, (D,), in a call of its own: one of fixed shape has many rows."""
        bucket = self._buckets[int(np.searchsorted(self._buckets, len(tokens)))]
        vectors = self.transform(self._features([tokens], bucket, rows=1))
        _require_finite(vectors)
        vector_D: NDArray[np.float32] = vectors[0]
        return vector_D

    def _batches(self, tokens: Sequence[Tokens]) -> Iterator[tuple[int, list[int]]]:
        """(bucket length, rows) of every call."""
        lengths = np.fromiter((len(sequence) for sequence in tokens), dtype=np.int64, count=len(tokens))
        bucket_of = np.searchsorted(self._buckets, lengths)
        for index, bucket in enumerate(self._buckets):
            rows = np.flatnonzero(bucket_of == index)
            # Of each row's tokens in the call: padding counts where it is computed.
            ends = np.cumsum(lengths[rows] if self._unpadded else np.full(len(rows), bucket))
            start = used = 0
            while start < len(rows):
                fitting = int(np.searchsorted(ends, used + self._call_tokens, side="right"))
                # A sequence that is longer than a call has one of its own.
                stop = max(start + 1, min(fitting, start + self._rows(bucket)))
                yield bucket, rows[start:stop].tolist()
                start, used = stop, int(ends[stop - 1])

    def padded_batches(self, tokens: Sequence[Tokens]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield (rows, tensors of fixed shape) of every call that `encode` makes."""
        for bucket, rows in self._batches(tokens):
            yield rows, self._features([tokens[row] for row in rows], bucket, rows=self._rows(bucket))

    def _rows(self, bucket: int) -> int:
        """B of every call with sequences of this bucket; without padding there is room for more, as most are shorter."""
        return max(1, self._call_tokens // bucket) * (2 if self._unpadded else 1)

    def _features(self, sequences: list[Tokens], bucket: int, *, rows: int) -> dict[str, Any]:
        """Tensors of one call; it is filled up so that its shape is fixed, with copies of the first row, or without tokens."""
        import torch

        ids_BL, mask_BL = self._pad(sequences, bucket, rows)
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids_BL).to(self._device),
            "attention_mask": torch.from_numpy(mask_BL).to(self._device),
        }
        if self._takes_types:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        return features

    def transform(self, features: dict[str, Any]) -> Float32:
        """Compute the unit vectors of one call's tensors; (B, D) float32."""
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            features = self._transformer(features)
            features = {name: _as_float32(value) for name, value in features.items()}
            for module in self._rest:
                features = module(features)
            return np.asarray(normalize(features["sentence_embedding"][:, : self.dim], dim=1).cpu().numpy(), dtype=np.float32)

    def _pad(self, sequences: list[Tokens], bucket: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids_BL = np.full((rows, bucket), self._tokenizer.pad_token_id or 0, np.int64)
        mask_BL = np.zeros((rows, bucket), np.int64)
        left = self._tokenizer.padding_side == "left"
        for row in range(len(sequences) if self._unpadded else rows):
            sequence = sequences[row if row < len(sequences) else 0]
            place = slice(bucket - len(sequence), bucket) if left else slice(0, len(sequence))
            ids_BL[row, place] = sequence
            mask_BL[row, place] = 1
        return ids_BL, mask_BL

    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer for later use without the encoder."""
        self._tokenizer.save_pretrained(str(folder))


def _require_finite(vectors: Float32) -> None:
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ArtifactError(f"the encoder gave numbers that are not finite (row {row:,}). Use --precision float32.")


def _loading_options(spec: EncoderSpec) -> dict[str, Any]:
    import torch

    # Flash attention knows half precision alone, and is told so before the weights come.
    flash = {"attn_implementation": spec.attention, "dtype": getattr(torch, spec.precision)} if spec.attention else {}
    return {"use_safetensors": True, **flash}


def _load(folder: Path, device: str, options: dict[str, Any], *, trusted: bool) -> Any:
    code = (
        "this encoder needs code from its own repository, which is run only if you have read it and name the encoder once more: "
        "--trust-remote-code NAME."
    )
    with loading(folder, kind="Sentence Transformer", code=code):
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=trusted,
            local_files_only=True,
            model_kwargs=options,
        ).eval()


def _max_tokens(model: Any) -> int:
    lengths = (model.max_seq_length, model.tokenizer.model_max_length)
    return int(min([length for length in lengths if length] + ([] if model.max_seq_length else [_LONGEST_INPUT])))


def _width(model: Any) -> int:
    # Renamed in Sentence Transformers 5; the old name warns.
    method = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(method())


def _choose_prompt(model: Any, folder: Path, requested: str | None) -> str:
    """Return the text before every text: one requested, by its name in the model's configuration or as it stands; or the default.

    Raises:
        OptionError: If the model leaves the tokens of prompts out of its mean, which is not done here.
    """
    named: dict[str, str] = model.prompts or {}
    if requested is None:
        return named.get(model.default_prompt_name or "", "") or ""
    if requested and any(not getattr(module, "include_prompt", True) for module in model):
        raise OptionError(f"{folder}: this encoder leaves prompts out of its mean, which is not supported. Leave out --prompt.")
    return named.get(requested, requested)


def _choose_width(width: int, requested: int | None) -> int:
    if requested is None:
        return width
    if not 1 <= requested <= width:
        raise OptionError(f"--truncate-dim {requested:,}: the encoder's vectors are {width:,} wide. Give a number from 1 to that.")
    return requested


def _bucket_lengths(max_tokens: int) -> list[int]:
    """16, 32, 64, ... up to the encoder's length."""
    lengths = []
    length = _SHORTEST_BUCKET
    while length < max_tokens:
        lengths.append(length)
        length *= 2
    return [*lengths, max_tokens]


def _as_float32(value: Any) -> Any:
    return value.float() if getattr(value, "is_floating_point", bool)() else value
