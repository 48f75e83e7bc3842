"""Files of weights: equal tensors and facts give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as save_safetensors
from torch import Tensor

from graphbuild.store.atomic import write_bytes

_LENGTH_BYTES = 8
_METADATA = "__metadata__"


def dump_weights(weights: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> bytes:
    """Return a `.safetensors` file's content.

    safetensors writes its metadata in random order (huggingface/safetensors#584); here they are sorted by name, so that digests
    of files can be compared.

    Args:
        weights: Tensors by name, wherever they are and however they lie in memory.
        facts: What the file says of them.
    """
    # safetensors knows no channels_last: loading puts the values back into whatever layout the model has.
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = save_safetensors(plain, metadata=dict(facts) if facts else None)
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES:end])
    if _METADATA in header:
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Tensors begin at a multiple of eight bytes.
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + content[end:]


def save_weights(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` file atomically; `dump_weights` says what it holds."""
    write_bytes(path, dump_weights(weights, facts))
