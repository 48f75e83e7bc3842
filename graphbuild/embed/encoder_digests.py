"""Digests by which an encoder's files are told from every other's, and the refusal of pickled weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.digests import digest_file, digest_json


def weights_sha256_of(folder: Path) -> str:
    """Return the sha256 of an encoder's weights; of several files, that of their digests.

    Raises:
        OptionError: If weights are pickled.
        SourceError: If there are none.
    """
    weights = sorted(folder.rglob("*.safetensors"))
    for pickled in sorted(folder.rglob("*.bin")):
        # Beside an .xml of its name it holds OpenVINO's weights, which are plain numbers.
        if not list(pickled.parent.glob("*.safetensors")) and not pickled.with_suffix(".xml").is_file():
            raise OptionError(
                f"{pickled}: pickled weights are refused, because loading them can run code. "
                "Save the model again with safe_serialization=True, or use one with .safetensors weights."
            )
    if not weights:
        raise SourceError(f"{folder}: no .safetensors weights here. Save the model with safe_serialization=True.")
    digests = [_sha256(path) for path in weights]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def backend_sha256_of(path: Path) -> str:
    """Return the sha256 of a model's file and what lies beside it: OpenVINO's `.bin`, ONNX's `.onnx_data` or `.data`."""
    beside = [path.with_suffix(".bin"), *(path.with_name(path.name + end) for end in ("_data", ".data"))]
    digests = [_sha256(one) for one in (path, *beside) if one.is_file()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_digest_of(folder: Path, *, code: bool = False) -> str:
    """Return the digest of an encoder's tokenizer and configuration, and of its own `code` where that may run."""
    kinds = (".json", ".txt", ".model", *((".py",) if code else ()))
    files = sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})
